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
from tiny_quantize import Fragile, fragile_bundle, fragile_data, picture
from torch import Tensor, nn

from litheseg.bundle.exported import Export, load_export
from litheseg.deploy.conversion import Conversion, write_network
from litheseg.deploy.export import export_bundle
from litheseg.deploy.network import Deployed
from litheseg.deploy.quantize import Quantizer, calibration_samples
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


_registered = registered(tiny=build_tiny, fragile=lambda num_classes, *, outliers, **_: Fragile(num_classes, outliers))


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


def test_int8_keeps_what_it_breaks_in_floating_point(tmp_path: Path) -> None:
    """The layer with outliers is found among all in PyTorch, the result is judged in ExecuTorch."""
    bundle, data = fragile_bundle(tmp_path, outliers=[2]), fragile_data(tmp_path / "data")
    calibration, check = calibration_samples(bundle, data)
    quantizer = Quantizer(bundle, calibration, check, threads=1, formats=("executorch",))
    export = export_bundle(bundle, tmp_path / "export", formats=("executorch",), data=data, check=False)
    _, report = quantizer.quantize(export, export.find(precision="fp32"))
    assert [(len(trial.kept), trial.holds) for trial in report.trials] == [(0, False), (1, True)]
    assert report.kept[0].name == "layers.2" and len(report.ranking) == 5
    found = report.result.certificate
    assert found.runtime == "executorch" and found.miou is not None and found.miou > 0.99
    image, labels = picture(7)
    int8 = open_engine(tmp_path / "export" / "executorch-int8-w1.pte", precision="int8", threads=1)
    assert int8(image).dtype == np.float32 and np.array_equal(int8(image).argmax(0), labels)
    assert report.result.size_bytes < report.fp32_bytes


def test_a_gpu_is_refused(export: Export) -> None:
    with pytest.raises(LithesegError, match="not on 'cuda'"):
        open_engine(export, runtime="executorch", device="cuda")
