from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import CLASSES, noise, photos, plain_logits, randomise
from torch import Tensor, nn

import litheseg.deploy.conversion as room
from litheseg.bundle.exported import Export, load_export
from litheseg.deploy.export import WEIGHTS_FILE, export_bundle
from litheseg.errors import BundleError, LithesegError
from litheseg.models.base import SegmentationModel
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.models.ddrnet import RepConv
from litheseg.nn import slim
from litheseg.runtime.engines import open_engine
from litheseg.runtime.in_openvino import openvino_core

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("onnxscript")

WIDTHS = (1.0, 0.5)


class _Joined(SegmentationModel):
    """Slices of every kind: first channels, parts of a concatenation, transposed; and a block that cannot share."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.left = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.join = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = RepConv(32, 32)
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 32, 2, 2), nn.BatchNorm2d(32), nn.ReLU())
        self.classifier = nn.Conv2d(32, num_classes, 3, padding=1)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.up(self.block(self.join(torch.cat((self.left(image), self.right(image)), 1))))
        return {"logits": self.classifier(features), "features": features}


def _joined(num_classes: int, *, aux_head: bool = False, boundary_head: bool = False) -> _Joined:
    return _Joined(num_classes)


_registered = registered(joined=_joined)


@pytest.fixture(autouse=True, scope="module")
def _converted_once() -> Iterator[None]:
    """Networks of one width are converted to ONNX once only."""
    converted: dict[int, Any] = {}
    convert = room.onnx_model

    def once(program: Any, output: str) -> Any:
        size = sum(value.numel() for value in program.state_dict.values())  # tells the width
        if size not in converted:
            converted[size] = convert(program, output)
        return copy.deepcopy(converted[size])

    with patch.object(room, "onnx_model", once):
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    header = BundleHeader({"name": "joined", "args": {}}, CLASSES, widths=WIDTHS, size=(20, 28))
    model: Any = randomise(slim(_Joined(3), WIDTHS))
    return save_bundle(tmp_path_factory.mktemp("bundle") / "m.safetensors", model, header)


@pytest.fixture(scope="module")
def alone(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_bundle(bundle, tmp_path_factory.mktemp("alone") / "x", check=False)


@pytest.fixture(scope="module")
def shared(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    pictures = photos(tmp_path_factory.mktemp("data") / "photos")
    return export_bundle(bundle, tmp_path_factory.mktemp("shared") / "x", shared=True, data=pictures)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_bit_is_the_same(bundle: Bundle, alone: Export, shared: Export, width: float, runtime: str) -> None:
    image = noise(20, 28)
    logits = open_engine(shared, width=width, runtime=runtime)(image)
    assert np.array_equal(logits, open_engine(alone, width=width, runtime=runtime)(image))
    np.testing.assert_allclose(logits, plain_logits(bundle, width, image), rtol=1e-4, atol=1e-4)


def test_weights_are_stored_once(alone: Export, shared: Export) -> None:
    size = {
        name: sum(f.stat().st_size for f in export.folder.iterdir())
        for name, export in (("alone", alone), ("shared", shared))
    }
    assert size["shared"] < 0.9 * size["alone"]
    kinds = set()
    for artefact in shared.artefacts:
        assert set(artefact.files) == {artefact.path, WEIGHTS_FILE}
        model = onnx.load(str(shared.file(artefact)), load_external_data=False)
        external = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
        assert {f"network.{name}.weight.0" for name in ("left.0", "right.0", "join.0", "up.0")} <= external
        assert not any("block" in name for name in external)
        kinds |= {node.op_type for node in model.graph.node}
    assert {"Slice", "Gather", "Mul"} <= kinds
    assert shared.shared_files == {WEIGHTS_FILE: (shared.folder / WEIGHTS_FILE).stat().st_size}


def test_of_narrow_widths_only_what_they_have_is_stored(bundle: Bundle, shared: Export, tmp_path: Path) -> None:
    narrow = export_bundle(bundle, tmp_path / "narrow", shared=True, widths=(0.5,), check=False)
    sizes = [(export.folder / WEIGHTS_FILE).stat().st_size for export in (narrow, shared)]
    assert sizes[0] < 0.6 * sizes[1]
    image = noise(20, 28)
    expected = open_engine(shared, width=0.5, runtime="onnxruntime")(image)
    assert np.array_equal(open_engine(narrow, width=0.5, runtime="onnxruntime")(image), expected)


def test_runtimes_do_the_slicing_when_they_load(alone: Export, shared: Export, tmp_path: Path) -> None:
    for width in WIDTHS:
        counts = []
        for export in (alone, shared):
            file = str(export.file(export.find(width)))
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
            options.log_severity_level = 3
            onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            compiled = openvino_core().compile_model(file, "CPU")
            nodes = onnx.load(options.optimized_model_filepath).graph.node
            counts.append((len(nodes), len(compiled.get_runtime_model().get_ops())))
        assert counts[0] == counts[1]


def test_the_weights_belong_to_the_export(shared: Export, tmp_path: Path) -> None:
    name = shared.find(0.5).path
    (tmp_path / name).write_bytes((shared.folder / name).read_bytes())
    with pytest.raises(BundleError, match=rf"lacks its weights, {WEIGHTS_FILE}; copy both files together"):
        load_export(tmp_path / name)
    (tmp_path / WEIGHTS_FILE).write_bytes((shared.folder / WEIGHTS_FILE).read_bytes())
    image = noise(20, 28)
    assert np.array_equal(open_engine(tmp_path / name)(image), open_engine(shared, width=0.5)(image))
    assert WEIGHTS_FILE in (shared.folder / "README.md").read_text()


def test_what_cannot_share(bundle: Bundle, tmp_path: Path) -> None:
    for options in ({"formats": ("torch",)}, {"further": lambda export: []}):
        with pytest.raises(LithesegError, match="only fp32 networks in ONNX share weights"):
            export_bundle(bundle, tmp_path / "x", shared=True, check=False, **options)  # type: ignore[arg-type]
