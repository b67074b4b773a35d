"""Core ML: packages whose programs, as they were written, compute what PyTorch does; Core ML itself runs on a Mac."""

from __future__ import annotations

import json
import platform
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import build_tiny, noise, photos, plain_logits, tiny_bundle
from torch import Tensor, nn

from litheseg.bundle.exported import Export, load_export
from litheseg.deploy.conversion import Conversion, write_network
from litheseg.deploy.coreml import STAND_IN, stand_in
from litheseg.deploy.export import export_bundle
from litheseg.deploy.network import Deployed
from litheseg.errors import LithesegError, ModelError
from litheseg.masks.image_format import ImageFormat
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import open_engine

pytest.importorskip("coremltools")
off_mac = pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")

SIZE = (24, 32)


class Odd(nn.Module):
    """Has an operator that the format lacks."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.lgamma(image)


_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "model.safetensors")


@pytest.fixture(scope="module")
def export(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("export")
    return export_bundle(bundle, folder / "x", formats=("coreml",), size=SIZE, data=photos(folder / "photos"))


@off_mac
def test_the_program_computes_what_pytorch_does(bundle: Bundle, export: Export) -> None:
    artefact, image = export.find(width=0.5), noise(*SIZE)
    engine = stand_in(export.file(artefact), artefact, export.header.images)
    np.testing.assert_allclose(engine(image), plain_logits(bundle, 0.5, image), rtol=1e-3, atol=1e-4)


@off_mac
def test_the_certificate_says_that_core_ml_was_not_run(export: Export) -> None:
    content = json.loads((export.folder / "certificate.json").read_text())
    assert {found["runtime"] for found in content["certificates"].values()} == {STAND_IN}
    remark = content["remarks"]["coreml-fp32-w1.mlpackage"]
    assert "1 conv_transpose" in remark and "not run in Core ML here" in remark and "on a Mac" in remark
    assert "4 of 4 weights bit for bit" in remark


def test_a_wrong_weight_is_found(bundle: Bundle, export: Export, tmp_path: Path) -> None:
    shutil.copytree(export.file(export.artefacts[0]), tmp_path / "x.mlpackage")
    weights = tmp_path / "x.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[-64:] = np.full(16, 3.0, np.float32).tobytes()
    weights.write_bytes(content)
    image = noise(*SIZE)
    engine = stand_in(tmp_path / "x.mlpackage", export.artefacts[0], export.header.images)
    assert not np.allclose(engine(image), plain_logits(bundle, 1.0, image), rtol=1e-2, atol=1e-2)


def test_a_package_alone_says_what_it_is(export: Export, tmp_path: Path) -> None:
    shutil.copytree(export.file(export.find(width=0.5)), tmp_path / "alone.mlpackage")
    alone = load_export(tmp_path / "alone.mlpackage")
    assert alone.widths == (0.5,) and alone.file(alone.artefacts[0]) == tmp_path / "alone.mlpackage"


def test_a_changed_package_is_refused(bundle: Bundle, export: Export, tmp_path: Path) -> None:
    shutil.copytree(export.path, tmp_path / "x")
    (tmp_path / "x/coreml-fp32-w1.mlpackage/Data/com.apple.CoreML/weights/weight.bin").write_bytes(b"0")
    with pytest.raises(LithesegError, match="checksum"):
        load_export(tmp_path / "x")


@off_mac
def test_it_says_that_it_runs_on_a_mac_only(export: Export) -> None:
    with pytest.raises(LithesegError, match="runs on Darwin only"):
        open_engine(export, runtime="coreml")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [({"size": None}, "--size HxW"), ({"layout": "NCHW"}, "leave out"), ({"output_kind": "labels"}, "leave out")],
)
def test_what_it_does_not_take(bundle: Bundle, tmp_path: Path, options: dict[str, object], remedy: str) -> None:
    with pytest.raises(ModelError, match=remedy):
        export_bundle(bundle, tmp_path / "x", formats=("coreml",), check=False, **{"size": SIZE, **options})  # type: ignore[arg-type]


def test_an_operator_that_it_lacks_is_named_with_the_layer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lgamma.*in wrong"):
        write_network(
            "coreml", Conversion(Deployed(nn.Sequential(OrderedDict(wrong=Odd())), ImageFormat()), SIZE), tmp_path / "x"
        )
