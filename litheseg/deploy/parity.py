"""The certificate of an export: how far it is from PyTorch in 32 bits, on real images.

Both see the same image at the same size. Their logits are brought to the image's own size as `litheseg evaluate` does,
so that the mIoU here is the one of the bundle; where the export gives labels, PyTorch's are taken at the same place. An
export that disagrees with PyTorch at more than a few pixels in ten thousand is broken even if its mIoU is the same.

Usage:
    >>> certificate = certify(open_engine(export), pytorch_reference(bundle, 1.0), samples, classes.names)
    >>> certificate.agreement, certificate.worst_image
    (0.99998, 'val/0016E5_07961')
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litheseg.data.transforms import normalise
from litheseg.deploy.samples import Picture
from litheseg.errors import BundleError, DataError, LithesegError
from litheseg.evaluation.metrics import confusion_matrix, iou_per_class, mean_iou
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.masks.resizing import resize_image, resize_mask
from litheseg.models.base import SegmentationModel, resize
from litheseg.models.bundle import Bundle
from litheseg.models.upsampling import upsample_labels
from litheseg.runtime.engines import Engine

__all__ = ["THRESHOLD", "Certificate", "Reference", "certify", "certify_all", "pytorch_reference"]

THRESHOLD = 0.999
"""Least share of pixels at which an fp32 export must agree with PyTorch."""

Reference = Callable[[np.ndarray], np.ndarray]
"""uint8 h w 3 -> float32 K h' w' logits, in PyTorch, fp32."""


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
    def worst_class(self) -> tuple[str, float] | None:
        """The class whose IoU changed most, and by how much (export minus PyTorch); None without labels."""
        pairs = zip(self.classes, self.iou or (), self.reference_iou or (), strict=False)
        changes = [(name, own - other) for name, own, other in pairs if own is not None and other is not None]
        return max(changes, key=lambda change: abs(change[1]), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `agreement` is among them."""
        return asdict(self) | {"agreement": self.agreement}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Certificate:
        """What `to_dict` gave.

        Raises:
            BundleError: something else.
        """
        names = {entry.name for entry in fields(cls)}
        content = {name: value for name, value in content.items() if name != "agreement"}
        if set(content) != names:
            raise BundleError(f"a certificate must have exactly {', '.join(sorted(names))}")
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in content.items()}
        return cls(**values)


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
        return np.asarray(network.outputs(normalise(pixels, header.mean, header.std)[None])["logits"][0].numpy())

    return run


def certify(
    engine: Engine,
    reference: Reference,
    samples: Iterable[Picture],
    classes: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    origin: str = "",
) -> Certificate:
    """Compare an engine with PyTorch.

    Args:
        engine: the export.
        reference: PyTorch.
        samples: the images, with or without labels.
        classes: their names.
        size: height and width that images are resized to for the network; None leaves each at its own.
        origin: where the images come from, in words.

    Raises:
        DataError: no images, or one that cannot be read.
        LithesegError: the export gives numbers that are not finite.
    """
    return certify_all({"": engine}, reference, samples, classes, size=size, origin=origin)[""]


@torch.inference_mode()
def certify_all(
    engines: Mapping[str, Engine],
    reference: Reference,
    samples: Iterable[Picture],
    classes: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    origin: str = "",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Certificate]:
    """As `certify`, for several engines of one network; images are decoded, and PyTorch runs, once.

    Args:
        engines: by names of the caller's own.
        reference: see `certify`, as for the others.
        samples: likewise.
        classes: likewise.
        size: likewise.
        origin: likewise.
        progress: called with the number of images that are done.
    """
    tallies = {name: _Tally(tuple(classes)) for name in engines}
    count = 0
    for count, sample in enumerate(samples, start=1):
        seen = sample.image if size is None else resize_image(sample.image, size)
        expected = reference(seen)
        for name, engine in engines.items():
            result = engine(seen)
            labels = _labels(result, seen, sample.image)
            wanted = expected if engine.output == "logits" else _at_input(expected, seen)
            tallies[name].add(sample, labels, _labels(wanted, seen, sample.image))
            tallies[name].compare(sample.name, result if engine.output == "logits" else None, expected)
        if progress is not None:
            progress(count)
    if not count:
        raise DataError("there are no images to check the export on; name a folder of images")
    return {name: tally.certificate(engines[name].runtime, count, origin) for name, tally in tallies.items()}


class _Tally:
    """Counts over images."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._same = self._pixels = 0
        self._worst = ("", 2.0)
        self._difference: float | None = None
        self._magnitude = 0.0
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

    def compare(self, name: str, logits: np.ndarray | None, expected: np.ndarray) -> None:
        self._magnitude = max(self._magnitude, float(np.abs(expected).max()))
        if logits is not None:
            if not np.isfinite(logits).all():
                raise LithesegError(f"the export gives logits for '{name}' that are not finite; export another format")
            self._difference = max(self._difference or 0.0, float(np.abs(logits - expected).max()))

    def certificate(self, runtime: str, images: int, origin: str) -> Certificate:
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
            largest_logit=self._magnitude,
            classes=self._classes,
            **scores,
        )


def _at_input(logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return upsample_labels(torch.from_numpy(logits), (seen.shape[0], seen.shape[1])).numpy()


def _labels(result: np.ndarray, seen: np.ndarray, image: np.ndarray) -> Tensor:
    """uint8 H x W at the image's own size, of logits K h w or of labels h w."""
    full = (image.shape[0], image.shape[1])
    if result.ndim == 2:
        return torch.from_numpy(resize_mask(result, full))
    logits = torch.from_numpy(result)[None]
    # As models are scored: to the size that the network saw, then to that of the labels.
    return upsample_labels(logits if seen.shape == image.shape else resize(logits, seen.shape[:2]), full)[0]
