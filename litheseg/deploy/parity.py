"""The certificate of an export: how far it is from PyTorch in 32 bits, on real images.

Both see the same image at the same size. Their logits are brought to the image's own size as `litheseg evaluate` does,
so that the mIoU here is the one of the bundle; where the export gives labels, PyTorch's are taken at the same place. An
export that disagrees with PyTorch at more than a few pixels in ten thousand is broken even if its mIoU is the same.

Usage:
    >>> certificate = certify({"": open_engine(export)}, pytorch_reference(bundle, 1.0), samples, classes.names)[""]
    >>> certificate.agreement, certificate.worst_image
    (0.99998, 'val/0016E5_07961')
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litheseg.data.loading.transforms import normalise
from litheseg.deploy.samples import Picture
from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.metrics import confusion_matrix, iou_per_class, mean_iou
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.masks.resizing import resize_image, resize_mask
from litheseg.models.base import SegmentationModel, resize
from litheseg.models.bundle import Bundle
from litheseg.models.upsampling import upsample_labels
from litheseg.progress import track
from litheseg.runtime.engines import Engine

__all__ = ["THRESHOLD", "Certificate", "Reference", "certify", "pytorch_reference"]

THRESHOLD = 0.999
"""Least share of pixels at which an fp32 export must agree with PyTorch."""

Reference = Callable[[np.ndarray], np.ndarray]
"""An image, h w C -> float32 K h' w' logits, in PyTorch, fp32."""


@dataclass(frozen=True)
class Certificate:
    """What was found; shares are in [0, 1], and None stands for what unlabelled images or labels cannot tell.

    Attributes:
        runtime: that ran the export.
        images: how many were compared.
        origin: where they come from, in words.
        pixels: of all images together.
        differing: how many of them have another label.
        worst_image: the image with the smallest share.
        worst_agreement: that share.
        largest_difference: between logits, in their own unit; None for an export of labels.
        largest_logit: magnitude of PyTorch's largest, to read the difference by.
        classes: their names.
        miou: of the export.
        reference_miou: of PyTorch.
        iou: of the export, per class; None for a class that the labels lack.
        reference_iou: of PyTorch, likewise.
    """

    runtime: str
    images: int
    origin: str
    pixels: int
    differing: int
    worst_image: str
    worst_agreement: float
    largest_difference: float | None
    largest_logit: float
    classes: tuple[str, ...]
    miou: float | None = None
    reference_miou: float | None = None
    iou: tuple[float | None, ...] | None = None
    reference_iou: tuple[float | None, ...] | None = None

    @property
    def agreement(self) -> float:
        """Share of all pixels with the same label."""
        return 1 - self.differing / self.pixels

    @property
    def changes(self) -> dict[str, float]:
        """IoU that each class gained in the export (below 0: lost), of those that the labels hold."""
        pairs = zip(self.classes, self.iou or (), self.reference_iou or (), strict=False)
        return {name: own - other for name, own, other in pairs if own is not None and other is not None}

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """The class whose IoU changed most, and by how much (export minus PyTorch); None without labels."""
        return max(self.changes.items(), key=lambda change: abs(change[1]), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `agreement` is among them."""
        return asdict(self) | {"agreement": self.agreement}


def pytorch_reference(bundle: Bundle, width: float) -> Reference:
    """A bundle's network as it was trained and scored: nothing folded, nothing converted.

    Raises:
        WidthError: a width that the bundle does not have.
    """
    network, header = bundle.plain(width), bundle.header
    assert isinstance(network, SegmentationModel)

    @torch.inference_mode()
    def run(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return np.asarray(network.outputs(normalise(pixels, header.images)[None])["logits"][0].numpy())

    return run


@torch.inference_mode()
def certify(
    engines: Mapping[str, Engine],
    reference: Reference,
    samples: Iterable[Picture],
    classes: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    origin: str = "",
    label: str = "comparing with PyTorch, images",
) -> dict[str, Certificate]:
    """Compare engines of one network with PyTorch; images are decoded, and PyTorch runs, once for all of them.

    Args:
        engines: of exports, by names of the caller's own.
        reference: PyTorch.
        samples: the images, with or without labels.
        classes: their names.
        size: height and width that images are resized to for the network; None leaves each at its own.
        origin: where the images come from, in words.
        label: what is shown while it goes on.

    Returns:
        A certificate of each engine.

    Raises:
        DataError: no images, or one that cannot be read.
        LithesegError: an export gives numbers that are not finite.
    """
    tallies = {name: _Tally(tuple(classes)) for name in engines}
    count, largest = 0, 0.0
    for sample in track(samples, label):
        count += 1
        seen = sample.image if size is None else resize_image(sample.image, size)
        expected = reference(seen)
        largest = max(largest, float(np.abs(expected).max()))
        for name, engine in engines.items():
            result = engine(seen)
            wanted = expected
            if engine.output == "logits":
                tallies[name].compare(sample.name, result, expected)
            else:  # labels are compared at the same place
                wanted = upsample_labels(torch.from_numpy(expected), (seen.shape[0], seen.shape[1])).numpy()
            tallies[name].add(sample, _labels(result, seen, sample.image), _labels(wanted, seen, sample.image))
    if not count:
        raise DataError("there are no images to check the export on; name a folder of images")
    return {name: tally.certificate(engines[name].runtime, count, origin, largest) for name, tally in tallies.items()}


class _Tally:
    """Counts over images."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._same = self._pixels = 0
        self._worst = ("", 2.0)
        self._difference: float | None = None
        self._confusions = [np.zeros((len(classes),) * 2, np.int64) for _ in range(2)]
        self._labelled = False

    def add(self, sample: Picture, labels: Tensor, expected: Tensor) -> None:
        same = int((labels == expected).sum())
        self._same += same
        self._pixels += labels.numel()
        self._worst = min(self._worst, (sample.name, same / labels.numel()), key=lambda entry: entry[1])
        if sample.mask is not None:
            self._labelled |= bool((sample.mask != IGNORE_INDEX).any())
            mask = torch.from_numpy(sample.mask).long()
            for counts, found in zip(self._confusions, (labels, expected), strict=True):
                counts += confusion_matrix(found.long(), mask, len(self._classes)).numpy()

    def compare(self, name: str, logits: np.ndarray, expected: np.ndarray) -> None:
        if not np.isfinite(logits).all():
            raise LithesegError(f"the export gives logits for '{name}' that are not finite; export another format")
        self._difference = max(self._difference or 0.0, float(np.abs(logits - expected).max()))

    def certificate(self, runtime: str, images: int, origin: str, largest_logit: float) -> Certificate:
        scores: dict[str, Any] = {}
        if self._labelled:
            for prefix, counts in zip(("", "reference_"), self._confusions, strict=True):
                scores[f"{prefix}miou"] = mean_iou(counts)
                scores[f"{prefix}iou"] = tuple(None if np.isnan(v) else float(v) for v in iou_per_class(counts))
        return Certificate(
            runtime=runtime,
            images=images,
            origin=origin,
            pixels=self._pixels,
            differing=self._pixels - self._same,
            worst_image=self._worst[0],
            worst_agreement=self._worst[1],
            largest_difference=self._difference,
            largest_logit=largest_logit,
            classes=self._classes,
            **scores,
        )


def _labels(result: np.ndarray, seen: np.ndarray, image: np.ndarray) -> Tensor:
    """uint8 H x W at the image's own size, of logits K h w or of labels h w."""
    full = (image.shape[0], image.shape[1])
    if result.ndim == 2:
        return torch.from_numpy(resize_mask(result, full))
    logits = torch.from_numpy(result)[None]
    # As models are scored: to the size that the network saw, then to that of the labels.
    return upsample_labels(logits if seen.shape == image.shape else resize(logits, seen.shape[:2]), full)[0]
