from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from litheseg.cost import count, width_costs
from litheseg.errors import LithesegError, WidthError
from litheseg.masks.classes import Classes
from litheseg.models import MODELS, SegmentationModel, build_model
from litheseg.models.bundle import BundleHeader, load_bundle, save_bundle
from litheseg.nn import extract, get_width, slim


class _Tiny(SegmentationModel):
    training_only = ("aux_head",)

    def __init__(self, num_classes: int, aux_head: bool) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.classifier = nn.Conv2d(32, num_classes, 1)
        self.aux_head = nn.Conv2d(32, num_classes, 1) if aux_head else None

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.stem(image)
        result = {"logits": self.classifier(features), "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head(features)
        return result


def _tiny(num_classes: int, *, aux_head: bool = True, boundary_head: bool = False) -> _Tiny:
    return _Tiny(num_classes, aux_head)


def test_every_width_is_counted_as_its_plain_model() -> None:
    model = slim(_tiny(5), (1.0, 0.5))
    rows = width_costs(model, size=(8, 12))
    assert [row.width for row in rows] == [1.0, 0.5]
    for row, channels in zip(rows, (32, 16), strict=True):
        assert row.params == 27 * channels + 2 * channels + 5 * channels + 5  # no auxiliary head
        assert row.macs == 24 * (27 + 5) * channels
        assert row.macs == count(extract(model, row.width), (8, 12)).macs
    assert model.aux_head is not None and get_width(model) == 1.0


def test_a_bundle_has_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", _tiny)
    classes = Classes.from_names(["a", "b", "c"])
    header = BundleHeader({"name": "tiny", "args": {}}, classes, widths=(1.0, 0.25), size=(8, 16))
    model = slim(_tiny(3), (1.0, 0.25))
    save_bundle(tmp_path / "m.safetensors", model, header)
    rows = width_costs(load_bundle(tmp_path / "m.safetensors"))
    assert rows == width_costs(model, size=(8, 16))


def test_a_plain_model_has_one_width_and_is_left_alone() -> None:
    model = _tiny(3)
    (row,) = width_costs(model, size=(2, 2))
    assert (row.width, row.params) == (1.0, 27 * 32 + 64 + 3 * 32 + 3)  # no auxiliary head
    assert model.training and model.aux_head is not None
    with pytest.raises(WidthError, match="plain model"):
        width_costs(model, [0.5], size=(2, 2))


def test_wrong_widths_and_sizes() -> None:
    model = slim(_tiny(3), (1.0, 0.5))
    with pytest.raises(WidthError):
        width_costs(model, [0.3], size=(8, 8))
    with pytest.raises(LithesegError, match="not positive"):
        width_costs(model, size=(0, 8))


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_a_real_network_agrees_with_torch(width: float) -> None:
    model = extract(slim(build_model("ddrnet", 11, base=16), (1.0, 0.5)), width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 96))
    assert 2 * count(model, (64, 96)).macs == counter.get_total_flops()
