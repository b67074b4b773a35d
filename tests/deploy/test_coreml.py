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
import torch.nn.functional as F
from registry import registered
from tiny_export import build_tiny, noise, photos, plain_logits, randomise
from torch import Tensor, nn

from litheseg.bundle.exported import Export, load_export
from litheseg.deploy.conversion import Conversion, write_network
from litheseg.deploy.coreml import STAND_IN, stand_in
from litheseg.deploy.coreml_program import CoreMlProgram
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


class Everything(nn.Module):
    """What encoders and decoders are made of, at sizes that do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 24)
        self.batch_norm = nn.BatchNorm2d(8)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu6(self.grouped(self.first(image)))
        pooled = F.avg_pool2d(x, 5, 2, 2, count_include_pad=False) + F.max_pool2d(x, 3, 2, 1)
        x = F.interpolate(pooled, size=(11, 17), mode="bilinear", align_corners=False)
        x = F.silu(self.batch_norm(self.up(F.hardswish(x)))) * torch.sigmoid(x.mean((2, 3), keepdim=True))
        x = F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=True)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        query, key, value = self.linear(tokens).chunk(3, dim=-1)
        mixed = torch.softmax(query @ key.transpose(1, 2) / 3, -1) @ value
        x = x + F.gelu(mixed.transpose(1, 2).reshape(x.shape))
        x = F.interpolate(F.pad(F.leaky_relu(x), (1, 2, 0, 1)), scale_factor=2, mode="nearest")
        return torch.cat([x[:, :3].clamp(-1, 1), torch.tanh(x[:, 3:]), x.amax(1, keepdim=True)], 1)


_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def export(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("export")
    what = {"formats": ("coreml",), "widths": (0.5,), "size": SIZE}
    return export_bundle(bundle, folder / "x", data=photos(folder / "photos"), **what)  # type: ignore[arg-type]


@off_mac
def test_the_program_computes_what_pytorch_does(bundle: Bundle, export: Export) -> None:
    artefact, image = export.artefacts[0], noise(*SIZE)
    engine = stand_in(export.file(artefact), artefact, export.header.images)
    np.testing.assert_allclose(engine(image), plain_logits(bundle, 0.5, image), rtol=1e-3, atol=1e-4)


@off_mac
def test_the_certificate_says_that_core_ml_was_not_run(export: Export) -> None:
    content = json.loads((export.folder / "certificate.json").read_text())
    assert {found["runtime"] for found in content["certificates"].values()} == {STAND_IN}
    remark = content["remarks"]["coreml-fp32-w0.5.mlpackage"]
    assert "1 conv_transpose" in remark and "not run in Core ML here" in remark and "on a Mac" in remark
    assert "4 of 4 weights bit for bit" in remark


def test_operators_are_those_of_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Deployed(randomise(Everything()), ImageFormat())
    write_network("coreml", Conversion(network, (45, 67)), tmp_path / "x.mlpackage")
    image = torch.from_numpy(noise(45, 67)[None])
    with torch.no_grad():
        expected = network(image)
    found = CoreMlProgram.read(tmp_path / "x.mlpackage")(image.permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-3, atol=1e-3)


def test_a_wrong_weight_is_found(bundle: Bundle, export: Export, tmp_path: Path) -> None:
    shutil.copytree(export.file(export.artefacts[0]), tmp_path / "x.mlpackage")
    weights = tmp_path / "x.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[-64:] = np.full(16, 3.0, np.float32).tobytes()
    weights.write_bytes(content)
    image = noise(*SIZE)
    engine = stand_in(tmp_path / "x.mlpackage", export.artefacts[0], export.header.images)
    assert not np.allclose(engine(image), plain_logits(bundle, 0.5, image), rtol=1e-2, atol=1e-2)


def test_a_package_alone_says_what_it_is(export: Export, tmp_path: Path) -> None:
    shutil.copytree(export.file(export.artefacts[0]), tmp_path / "alone.mlpackage")
    alone = load_export(tmp_path / "alone.mlpackage")
    assert alone.widths == (0.5,) and alone.file(alone.artefacts[0]) == tmp_path / "alone.mlpackage"


def test_a_changed_package_is_refused(bundle: Bundle, export: Export, tmp_path: Path) -> None:
    shutil.copytree(export.path, tmp_path / "x")
    (tmp_path / "x/coreml-fp32-w0.5.mlpackage/Data/com.apple.CoreML/weights/weight.bin").write_bytes(b"0")
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
