"""ExecuTorch: programs equal to PyTorch, what runs beside XNNPACK named, and any number of threads in one process."""

from __future__ import annotations

import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import build_tiny, noise, photos, plain_logits
from torch import Tensor, nn

from litheseg.bundle.exported import Export, load_export
from litheseg.deploy.conversion import Conversion, write_network
from litheseg.deploy.export import export_bundle
from litheseg.deploy.network import Deployed
from litheseg.errors import LithesegError, ModelError
from litheseg.masks.image_format import ImageFormat
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import open_engine

pytest.importorskip("executorch")

SIZE = (24, 32)


class Strange(nn.Module):
    """Has an operator that the format lacks."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.erfinv(image)


_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def export(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("export")
    what = {"formats": ("executorch",), "widths": (0.5,), "size": SIZE}
    return export_bundle(bundle, folder / "x", data=photos(folder / "photos"), **what)  # type: ignore[arg-type]


def test_logits_are_those_of_pytorch(bundle: Bundle, export: Export) -> None:
    image = noise(*SIZE)
    logits = open_engine(export, width=0.5, runtime="executorch")(image)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, plain_logits(bundle, 0.5, image), rtol=1e-4, atol=1e-5)


def test_the_certificate_says_what_runs_beside_xnnpack(export: Export) -> None:
    content = json.loads((export.folder / "certificate.json").read_text())
    assert {found["runtime"] for found in content["certificates"].values()} == {"executorch"}
    remark = content["remarks"]["executorch-fp32-w0.5.pte"]
    assert "XNNPACK runs" in remark and "_to_dim_order_copy of the input" in remark
    assert remark in (export.folder / "README.md").read_text().replace("\\", "")


def test_a_file_alone_says_what_it_is(export: Export, tmp_path: Path) -> None:
    alone = tmp_path / "alone.pte"
    alone.write_bytes((export.folder / "executorch-fp32-w0.5.pte").read_bytes())
    assert load_export(alone).widths == (0.5,) and load_export(alone).classes == export.classes


def test_numbers_of_threads_may_change(export: Export) -> None:
    """Programs keep the address of a pool of threads: without care, this ends the process."""
    engines = [open_engine(export, width=0.5, runtime="executorch", threads=threads) for threads in (1, 2, None)]
    image = noise(*SIZE)
    expected = engines[0](image)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda index: engines[index % 3](image), range(12)))
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_any_size_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--size HxW"):
        export_bundle(bundle, tmp_path / "x", formats=("executorch",), size=None, check=False)


def test_an_operator_that_it_lacks_is_named_with_the_layer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"erfinv.*in wrong"):
        write_network(
            "executorch",
            Conversion(Deployed(nn.Sequential(OrderedDict(wrong=Strange())), ImageFormat()), SIZE),
            tmp_path / "x",
        )


def test_a_gpu_is_refused(export: Export) -> None:
    with pytest.raises(LithesegError, match="not on 'cuda'"):
        open_engine(export, runtime="executorch", device="cuda")
