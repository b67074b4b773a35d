"""A network of which one layer cannot be quantized, and pictures that it labels without an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from litheseg.masks.classes import Classes
from litheseg.models import SegmentationModel
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle

CLASSES = Classes(("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
SIZE = (24, 32)
CHANNELS = 32


class Fragile(SegmentationModel):
    """Labels each pixel by its largest channel, through five layers, of which some have an outlier among their weights.

    The outlier weighs a channel that is always 0: it changes nothing, but with one scale per output channel it leaves
    the other weights nothing to be told apart by.
    """

    def __init__(self, num_classes: int, outliers: Sequence[int]) -> None:
        super().__init__(num_classes)
        sizes = [3, *[CHANNELS] * 4, num_classes]
        kernels = (1, 3, 1, 3, 1)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=kernel // 2)
            for before, after, kernel in zip(sizes, sizes[1:], kernels, strict=False)
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                layer.weight.copy_(1e-3 * torch.rand(layer.weight.shape, generator=generator))
                layer.bias.zero_()
                middle = layer.kernel_size[0] // 2
                for channel in range(3):
                    layer.weight[channel, channel, middle, middle] = 1
                if index < len(self.layers) - 1:
                    layer.weight[-1], layer.bias[-1] = 0, -1  # always 0 behind the ReLU
                if index in outliers:
                    layer.weight[:, -1] = 1000

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = image
        for layer in self.layers[:-1]:
            features = layer(features).relu()
        return {"logits": self.layers[-1](features), "features": features}


def fragile_bundle(folder: Path, outliers: Sequence[int]) -> Bundle:
    header = BundleHeader(
        architecture={"name": "fragile", "args": {"outliers": list(outliers)}},
        classes=CLASSES,
        size=SIZE,
        mean=(0.0, 0.0, 0.0),
        std=(0.5, 0.5, 0.5),
    )
    return save_bundle(folder / "model.safetensors", Fragile(3, outliers), header)


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of three by four pixels, one channel of each clearly the largest, and which."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, (8, 8)).repeat(3, 0).repeat(4, 1).astype(np.uint8)
    image = generator.integers(20, 120, (*SIZE, 3)).astype(np.uint8)
    image[np.arange(SIZE[0])[:, None], np.arange(SIZE[1]), labels] += 100
    return image, labels


def fragile_data(root: Path) -> Path:
    """10 training images and 4 to validate on."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text("- red\n- green\n- blue\n")
    for split, count, first in (("train", 10, 0), ("val", 4, 100)):
        for seed in range(first, first + count):
            image, labels = picture(seed)
            for part, pixels in (("images", image), ("masks", labels)):
                folder = root / part / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{seed:03d}.png")
    return root
