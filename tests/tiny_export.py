"""A network that is exported in a second, and a bundle of it: everything that export has to deal with, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from litheseg.masks.classes import Classes
from litheseg.models.base import SegmentationModel, resize
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.nn import slim

CLASSES = Classes(("sky", "road", "car"), ((70, 130, 180), (128, 64, 128), (0, 0, 142)))
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


class TinyNet(SegmentationModel):
    """Stride 4, with a batch norm behind a sum (which nothing can swallow), a transposed convolution and dropout."""

    training_only = ("aux_head",)

    def __init__(self, num_classes: int, aux_head: bool = False) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 16, 2, 2, bias=False), nn.BatchNorm2d(16))
        self.sum_norm = nn.BatchNorm2d(16)
        self.classifier = nn.Conv2d(16, num_classes, 1)
        self.aux_head = nn.Conv2d(16, num_classes, 1) if aux_head else None

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        early = self.stem(image)
        small = self.down(early)
        back = resize(self.up(small), early.shape[-2:])
        features = F.avg_pool2d(F.relu(self.sum_norm(early + back)), 3, 2, 1)
        result = {"logits": self.classifier(features), "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head(features)
        return result


def build_tiny(num_classes: int, *, aux_head: bool = False, boundary_head: bool = False) -> TinyNet:
    """A network that only tests know."""
    return TinyNet(num_classes, aux_head)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms that do something, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 2.0),
                (module.bias, -0.5, 0.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def tiny_bundle(path: Path, *, widths: tuple[float, ...] = (1.0, 0.5), **fields: object) -> Bundle:
    """A bundle file; "tiny" must be in MODELS."""
    torch.manual_seed(0)
    model = randomise(slim(build_tiny(3, aux_head=True), widths))
    header = BundleHeader(
        architecture={"name": "tiny", "args": {}},
        classes=CLASSES,
        widths=widths,
        **{"size": (24, 32), "mean": MEAN, "std": STD, "provenance": {"data": "noise"}, **fields},  # type: ignore[arg-type]
    )
    return save_bundle(path, model, header)  # type: ignore[arg-type]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def photos(folder: Path, count: int = 3, size: tuple[int, int] = (30, 44)) -> Path:
    """A folder of smooth pictures, without labels."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(noise(5, 6, index)).resize(size[::-1]).save(folder / f"photo{index}.png")
    return folder


def plain_logits(bundle: Bundle, width: float, image: np.ndarray) -> np.ndarray:
    """What PyTorch says, float64, from normalisation in NumPy on: K h w at the network's own stride."""
    header = bundle.header
    ready = (image.astype(np.float64) / 255 - np.array(header.mean)) / np.array(header.std)
    network = bundle.plain(width).double()
    with torch.no_grad():
        logits = network.outputs(torch.from_numpy(ready.transpose(2, 0, 1))[None])["logits"]  # type: ignore[operator]
    return logits[0].numpy()


def plain_labels(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    full = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False)
    return full[0].argmax(0).numpy().astype(np.uint8)
