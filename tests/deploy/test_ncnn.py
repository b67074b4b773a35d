"""ncnn: files of several architectures equal to PyTorch at any size, and what cannot be had said in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from registry import registered
from tiny_export import CLASSES, TinyNet, build_tiny, noise, photos, plain_labels, plain_logits, randomise
from torch import Tensor, nn

import litheseg.runtime.engines as room
from litheseg.budget.candidates import Candidate, Variant
from litheseg.budget.kit import write_kit
from litheseg.budget.measure import Exports
from litheseg.bundle.exported import Export, load_export
from litheseg.deploy.conversion import Conversion, write_network
from litheseg.deploy.export import export_bundle
from litheseg.deploy.network import Deployed
from litheseg.errors import BundleError, LithesegError, MissingExtraError, ModelError
from litheseg.masks.image_format import ImageFormat
from litheseg.models import build_model
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import open_engine
from litheseg.runtime.in_ncnn import open_network
from litheseg.runtime.kit import measure_kit
from litheseg.runtime.predictor import Predictor

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")

_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def export(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Both widths, of any size, compared with PyTorch."""
    folder = tmp_path_factory.mktemp("export")
    return export_bundle(bundle, folder / "x", formats=("ncnn",), size=None, data=photos(folder / "photos"))


@pytest.mark.parametrize("size", [(24, 32), (65, 97), (130, 51)])
def test_logits_are_those_of_pytorch_at_any_size(bundle: Bundle, export: Export, size: tuple[int, int]) -> None:
    for width in (1.0, 0.5):
        logits = open_engine(export, width=width, runtime="ncnn", threads=1)(noise(*size))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, plain_logits(bundle, width, noise(*size)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddrnet", {"base": 8, "head_channels": 16, "blocks": 1}),
        ("segmenter", {"encoder": "efficientnet_lite0", "pretrained": "none", "channels": 16}),
    ],
)
def test_architectures(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Real ones; pooled context, resizing by a factor and to a size, lateral sums."""
    torch.manual_seed(0)
    model, images = randomise(build_model(name, 3, **options)).requires_grad_(False), ImageFormat()
    size, image = (64, 96), noise(64, 96)
    write_network("ncnn", Conversion(Deployed(model, images).eval(), size), tmp_path / "x.param")
    mean, std = (np.array(values) for values in (images.mean, images.std))
    ready = torch.from_numpy(((image / 255 - mean) / std).transpose(2, 0, 1)[None])
    expected = model.double().outputs(ready)["logits"].numpy()  # type: ignore[operator]
    found = open_network(str(tmp_path / "x.param"), threads=1)(image[None])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_folder_holds_what_runs_and_what_was_found(export: Export) -> None:
    files = {path.name for path in export.folder.iterdir()}
    assert {f"ncnn-fp32-w{width}.{suffix}" for width in (1, 0.5) for suffix in ("param", "bin")} <= files
    found = json.loads((export.folder / "certificate.json").read_text())["certificates"].values()
    assert [entry["runtime"] for entry in found] == ["ncnn"] * 2 and all(entry["differing"] == 0 for entry in found)


def test_the_readmes_lines_run(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(24, 32)).save(tmp_path / "photo.png")
    code = (export.folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('"ncnn-', f'"{export.folder}/ncnn-').replace("photo.jpg", str(tmp_path / "photo.png"))
    names: dict[str, Any] = {}
    exec(code, names)
    logits = open_engine(export, width=1.0, runtime="ncnn")(noise(24, 32))
    assert np.array_equal(names["labels"][0], logits.argmax(0))


def test_a_file_alone_says_what_it_is_and_wants_its_weights(export: Export, tmp_path: Path) -> None:
    for suffix in (".param", ".bin"):
        (tmp_path / f"alone{suffix}").write_bytes((export.folder / f"ncnn-fp32-w0.5{suffix}").read_bytes())
    alone = load_export(tmp_path / "alone.param")
    assert alone.widths == (0.5,) and alone.classes == CLASSES
    assert open_engine(alone)(noise(24, 32)).shape == (3, 6, 8)
    (tmp_path / "alone.bin").write_bytes(b"half")
    with pytest.raises(LithesegError, match=r"ncnn .* cannot run .*alone\.param \(its weights cannot be read"):
        open_engine(alone)
    (tmp_path / "alone.bin").unlink()
    with pytest.raises(BundleError, match=r"lacks its weights, alone\.bin"):
        load_export(tmp_path / "alone.param")


def test_photos_are_labelled_as_in_pytorch(bundle: Bundle, export: Export) -> None:
    image = noise(70, 90)
    labels = Predictor(export, runtime="ncnn", width=0.5)(image)
    assert (labels == plain_labels(plain_logits(bundle, 0.5, image), (70, 90))).mean() > 0.999


def test_threads_may_share_a_network(export: Export) -> None:
    engine = open_engine(export, runtime="ncnn")
    images = [noise(24, 32, seed) for seed in range(12)]
    alone = [engine(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine, images))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_fit_and_a_kit_may_choose_it(bundle: Bundle, tmp_path: Path) -> None:
    size = (24, 32)
    engine = Exports(bundle, tmp_path / "exports").engine(Candidate(Variant(0.5, size, "fp32"), "ncnn", 1))
    np.testing.assert_allclose(engine(noise(*size)), plain_logits(bundle, 0.5, noise(*size)), rtol=1e-4, atol=1e-5)
    write_kit(bundle, tmp_path / "kit", widths=(0.5,), sizes=[size], formats=("ncnn",))
    assert (tmp_path / "kit" / "in_ncnn.py").is_file()
    kit = json.loads((tmp_path / "kit" / "kit.json").read_text())
    [row] = measure_kit(kit, tmp_path / "kit", threads=[1], repeats=1)["rows"]
    assert (row["runtime"], row["width"]) == ("ncnn", 0.5)


class Unbound(nn.Module):
    """Has an operator that the format lacks."""

    def forward(self, logits: Tensor) -> Tensor:
        return torch.stack([part.sort(1)[0] for part in logits.unbind(2)], 2)


class OddNet(TinyNet):
    """A network with one layer that cannot be had."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.classifier = nn.Sequential(self.classifier, Unbound())  # type: ignore[assignment]


def test_an_operator_that_it_lacks_is_named_with_the_layer(tmp_path: Path) -> None:
    network = Deployed(OddNet(3), ImageFormat()).eval().requires_grad_(False)
    with pytest.raises(ModelError, match=r"ncnn has no operator 'aten::sort', which layer 'classifier\.1' needs"):
        write_network("ncnn", Conversion(network, (32, 48)), tmp_path / "x.param")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_the_box_lacks_is_named_with_the_layer(export: Export, tmp_path: Path) -> None:
    for path in export.folder.glob("ncnn-fp32-w0.5.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\nInterp ", b"\nNewerOp "))
    newer = load_export(tmp_path / "ncnn-fp32-w0.5.param")
    with pytest.raises(LithesegError, match=r"no operator 'NewerOp', which layer '\S+' needs: pip install --upgrade"):
        open_engine(newer)


def _old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "version", lambda package: "1.0.20240410")


def _absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_absent, {}, r"'ncnn': pip install 'litheseg\[ncnn\]'"),
        (_old, {}, r"ncnn 1\.0\.20240410 is too old .*pip install --upgrade 'ncnn>=1\.0\.20250916'"),
        (None, {"device": "cuda"}, "ncnn runs on the CPU here, not on 'cuda'"),
        (None, {"precision": "bf16"}, "ncnn runs no bf16 networks"),
    ],
)
def test_what_cannot_be_had(
    export: Export,
    change: Callable[[pytest.MonkeyPatch], None] | None,
    options: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if change:
        change(monkeypatch)
    with pytest.raises(LithesegError, match=message):
        open_engine(export, runtime="ncnn", **options)


def test_exports_that_cannot_be_had(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"layout": "NCHW"}, {"output_kind": "labels"}):
        with pytest.raises(ModelError, match="leave out --layout and --labels"):
            export_bundle(bundle, tmp_path / "x", formats=("ncnn",), check=False, **options)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pnnx", None)
    with pytest.raises(MissingExtraError, match=r"'pnnx': pip install 'litheseg\[export\]'"):
        export_bundle(bundle, tmp_path / "x", formats=("ncnn",), check=False)
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_not_rgb(tmp_path: Path) -> None:
    """Of 16 bits and two channels: planes are made by NumPy."""
    images = ImageFormat(2, "uint16", (0.2, 0.4), (0.3, 0.1))
    model = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    write_network("ncnn", Conversion(Deployed(model, images).eval(), (12, 20)), tmp_path / "x.param")
    image = np.random.default_rng(0).integers(0, 65536, (12, 20, 2), np.uint16)
    ready = (image / 65535 - np.array(images.mean)) / np.array(images.std)
    expected = model.double()(torch.from_numpy(ready.transpose(2, 0, 1)[None])).numpy()
    found = open_network(str(tmp_path / "x.param"))(image[None])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
