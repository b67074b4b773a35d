"""A tiny model with soft probabilities, and photos for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_labelling import CLASSES, noise, save
from torch import Tensor, nn

from litheseg.models import MODELS, SegmentationModel
from litheseg.models.bundle import Bundle, BundleHeader, load_bundle, save_bundle
from litheseg.nn import slim


class _Tinted(SegmentationModel):
    """A class for each colour, the surer the purer it is; logits at half the size, as networks have them."""

    def __init__(self) -> None:
        super().__init__(3)
        self.features, self.classifier = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 3, 1, bias=False)
        with torch.no_grad():
            for layer, gain in ((self.features, 1.0), (self.classifier, 8.0)):
                layer.weight.zero_()
                for index in range(3):
                    layer.weight[index, index] = gain

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = nn.functional.avg_pool2d(self.features(image), 2)
        return {"logits": self.classifier(features), "features": features}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(MODELS, "tinted", lambda num_classes, aux_head, boundary_head: _Tinted())
    header = BundleHeader(
        {"name": "tinted", "args": {}},
        CLASSES,
        widths=(1.0, 0.5),
        size=(12, 16),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    save_bundle(tmp_path / "model.safetensors", slim(_Tinted(), (1.0, 0.5)), header)
    return tmp_path / "model.safetensors"


@pytest.fixture
def bundle(model: Path) -> Bundle:
    return load_bundle(model)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of several sizes: two of noise that are the same, one pure, one in a folder."""
    folder = tmp_path / "photos"
    save(folder / "a.png", noise(20, 30, seed=1))
    save(folder / "b.png", noise(20, 30, seed=1))
    pure = np.zeros((20, 30, 3), np.uint8)
    pure[:, :15, 0] = pure[:, 15:, 1] = 255
    save(folder / "c.png", pure)
    save(folder / "deep" / "d.png", noise(17, 13, seed=2))
    return folder
