"""A network whose labels can be read off the image: each pixel is red, green or blue, whichever channel is largest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from litheseg.masks.classes import Classes
from litheseg.models import SegmentationModel
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.nn import slim

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
CLASSES = Classes(("red", "green", "blue"), (RED, GREEN, BLUE))


class Dominant(SegmentationModel):
    """The largest channel, at every width."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.features, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.classifier = nn.Conv2d(16, num_classes, 1)
        with torch.no_grad():
            for layer in (self.features, self.classifier):
                layer.weight.zero_()
                layer.bias.zero_()
            for index in range(3):
                self.features.weight[index, index] = self.classifier.weight[index, index] = 1

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.features(image))
        return {"logits": self.classifier(features), "features": features}


def dominant(num_classes: int, *, aux_head: bool = False, boundary_head: bool = False) -> Dominant:
    """What `MODELS["dominant"]` is to be."""
    return Dominant(num_classes)


def colour_bundle(path: Path, *, resizes: bool = True) -> Bundle:
    """Save one with widths 1 and 0.5, trained at 8 x 16; "dominant" must be in `MODELS`."""
    header = BundleHeader(
        architecture={"name": "dominant", "args": {}},
        classes=CLASSES,
        widths=(1.0, 0.5),
        size=(8, 16),
        resizes=resizes,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return save_bundle(path, slim(dominant(3), (1.0, 0.5)), header)


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    """Left half red, right half split into green over blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = RED
    image[: height // 2, width // 2 :] = GREEN
    image[height // 2 :, width // 2 :] = BLUE
    return image


def truth(height: int = 24, width: int = 40) -> np.ndarray:
    """Labels of `picture`."""
    return picture(height, width).argmax(2).astype(np.uint8)
