"""Scores of label maps: IoU, pixel accuracy, boundary IoU, and mean IoU within a band along label borders.

`SegmentationMetrics` counts in int64 and divides once, at the end, so the result is that of the whole data set,
whatever the batches, and exact across processes. `litheseg.evaluation.evaluate` makes label maps from models.

A mean is taken over the classes that the labels hold; ignored pixels (255) count nowhere. The band is the "trimap" of
DeepLab (Chen et al., TPAMI 2018, section 4.3) and of Kohli et al. (IJCV 2009).

Boundary IoU (Cheng et al., CVPR 2021, section 4): for each class, the pixels of the class within `dilation` pixels of
its contour are compared between prediction and labels, by intersection over union. As in the paper's code, the frame's
edge is a contour where a class touches it, and distance is that of a square window. Ours: an ignored region makes no
contour, in neither map.

Usage:
    >>> metrics = SegmentationMetrics(num_classes=11)
    >>> metrics.update(logits.argmax(1), mask)
    >>> metrics.compute().miou
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from litheseg.errors import DataError, LithesegError
from litheseg.losses.boundary import boundary_mask, dilate
from litheseg.masks.classes import IGNORE_INDEX

__all__ = ["Scores", "SegmentationMetrics", "confusion_matrix", "dilation_for", "iou_per_class", "mean_iou"]


@dataclass(frozen=True)
class Scores:
    """How well label maps fit their labels; every number is in [0, 1], or NaN where the labels allow none.

    Attributes:
        miou: mean of `iou` over the classes that the labels hold.
        iou: per class; NaN for a class that the labels do not hold.
        pixel_accuracy: share of the labelled pixels that are right.
        boundary_iou: mean of `class_boundary_iou` over the classes that the labels hold.
        class_boundary_iou: per class; NaN for a class without a contour in the labels.
        band_miou: mean IoU over the pixels near a label border only.
        confusion: int64 [K, K], pixels by label (row) and prediction (column).
    """

    miou: float
    iou: tuple[float, ...]
    pixel_accuracy: float
    boundary_iou: float
    class_boundary_iou: tuple[float, ...]
    band_miou: float
    confusion: np.ndarray[Any, np.dtype[np.int64]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON; None in place of NaN, which JSON lacks."""
        return {name: _plain(value) for name, value in asdict(self).items()}


class SegmentationMetrics(nn.Module):
    """Accumulates batches of label maps into `Scores`.

    Args:
        num_classes: K.
        band_radius: pixels; the band is `boundary_mask(mask, band_radius)`, the one that training uses.
        boundary_dilation: pixels; None for 2 % of each image's diagonal (Cheng et al.).

    Raises:
        LithesegError: an argument below what makes sense.
    """

    def __init__(self, num_classes: int, *, band_radius: int = 3, boundary_dilation: int | None = None) -> None:
        super().__init__()
        if num_classes < 1 or band_radius < 0 or (boundary_dilation is not None and boundary_dilation < 1):
            raise LithesegError(
                f"metrics need 1 or more classes, a band of 0 or more and a dilation of 1 or more pixels; got "
                f"{num_classes} classes, band_radius={band_radius}, boundary_dilation={boundary_dilation}"
            )
        self.num_classes, self.band_radius, self.boundary_dilation = num_classes, band_radius, boundary_dilation
        self._counts = _Counts(num_classes)

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Count one batch.

        Args:
            prediction: integer N H W, 0..K-1.
            mask: integer N H W, 0..K-1 or 255.

        Raises:
            LithesegError: sizes that differ.
            DataError: a class outside 0..K-1 in either.
        """
        _check(prediction, mask, self.num_classes)
        prediction, mask = prediction.to(torch.int32), mask.to(torch.int32)
        inside = confusion_matrix(prediction, mask, self.num_classes, boundary_mask(mask, self.band_radius))
        dilation = self.boundary_dilation or dilation_for(*mask.shape[-2:])
        self._counts.update(inside, _boundary_counts(prediction, mask, self.num_classes, dilation))

    def reset(self) -> None:
        """Forget everything counted."""
        self._counts.reset()

    def compute(self) -> Scores:
        """The scores of everything counted since the last `reset`, over all processes (so call it in all of them)."""
        pairs, contours = (counts.cpu().numpy() for counts in self._counts.compute())
        both, predicted, labelled = contours
        confusion = pairs.sum(0)
        iou, contour_iou = iou_per_class(confusion), _ratio(both, predicted + labelled - both, labelled > 0)
        return Scores(
            miou=_mean(iou),
            iou=tuple(iou.tolist()),
            pixel_accuracy=float(np.trace(confusion) / confusion.sum()) if confusion.any() else math.nan,
            boundary_iou=_mean(contour_iou),
            class_boundary_iou=tuple(contour_iou.tolist()),
            band_miou=mean_iou(pairs[1]),
            confusion=confusion,
        )


class _Counts(Metric):
    """The sums behind the scores: torchmetrics adds them up over processes, in int64."""

    full_state_update = False
    pairs: Tensor
    contours: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        pairs = torch.zeros(2, num_classes, num_classes, dtype=torch.int64)
        self.add_state("pairs", pairs, dist_reduce_fx="sum")
        self.add_state("contours", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pairs: Tensor, contours: Tensor) -> None:
        self.pairs += pairs
        self.contours += contours

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.pairs, self.contours


def confusion_matrix(prediction: Tensor, mask: Tensor, num_classes: int, band: Tensor | None = None) -> Tensor:
    """Pixels by label (row) and prediction (column).

    Args:
        prediction: integer, any shape, 0..K-1.
        mask: integer, the same shape, 0..K-1 or 255, which is left out.
        num_classes: K.
        band: bool, the same shape.

    Returns:
        Int64 [K, K]; with a band [2, K, K], first the pixels outside it, then those inside.
    """
    square, sides = num_classes**2, 1 if band is None else 2
    pairs = mask * num_classes + prediction
    if band is not None:
        pairs = pairs + band * square
    # Ignored pixels go to one more bin: several times faster than picking the others out.
    pairs = pairs.where(mask != IGNORE_INDEX, sides * square).flatten()
    counts = torch.bincount(pairs, minlength=sides * square + 1)[:-1].view(sides, num_classes, num_classes)
    return counts[0] if band is None else counts


def dilation_for(height: int, width: int, fraction: float = 0.02) -> int:
    """`fraction` of an image's diagonal in whole pixels, at least 1; 2 % is the paper's choice."""
    return max(1, round(fraction * (height**2 + width**2) ** 0.5))


def _class_contours(labels: Tensor, valid: Tensor, dilation: int) -> Tensor:
    """Pixels within `dilation` pixels of the contour of their own class.

    A pixel is inside its class, away from the contour, when the (2 * dilation + 1)^2 window around it lies in the frame
    and holds no other class: smallest label = largest label. So one pass serves all classes.

    Args:
        labels: integer N H W, 0..254 where valid.
        valid: bool N H W; pixels outside it are no contour and make none.
        dilation: pixels, 1 or more.

    Returns:
        Bool N H W.
    """
    own = labels.to(torch.uint8)
    # Invalid pixels are 0, which never raises a maximum; the smallest label is the largest complement.
    differs = dilate(own.where(valid, 0), dilation) != own
    differs |= dilate((255 - own).where(valid, 0), dilation) != 255 - own
    differs[:, :dilation] = differs[:, -dilation:] = True
    differs[:, :, :dilation] = differs[:, :, -dilation:] = True
    return differs & valid


def _boundary_counts(prediction: Tensor, mask: Tensor, num_classes: int, dilation: int) -> Tensor:
    """Pixels near the contours of each class.

    Args:
        prediction: integer N H W, 0..K-1.
        mask: integer N H W, 0..K-1 or `IGNORE_INDEX`.
        num_classes: K.
        dilation: pixels, 1 or more.

    Returns:
        Int64 [3, K]: pixels near the contour in both maps and of the same class, in the prediction, in the labels.
    """
    valid = mask != IGNORE_INDEX
    predicted = _class_contours(prediction, valid, dilation)
    labelled = _class_contours(mask, valid, dilation)
    both = predicted & labelled & (prediction == mask)
    pairs = ((mask, both), (prediction, predicted), (mask, labelled))
    # One more bin for all other pixels is several times faster than picking the pixels out.
    counts = [
        torch.bincount(labels.where(chosen, num_classes).flatten(), minlength=num_classes + 1)
        for labels, chosen in pairs
    ]
    return torch.stack(counts)[:, :num_classes]


def iou_per_class(confusion: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Float64 [K] IoU from a [K, K] confusion matrix; NaN for a class that the labels do not hold."""
    right, labelled = np.diag(confusion), confusion.sum(1)
    return _ratio(right, labelled + confusion.sum(0) - right, labelled > 0)


def mean_iou(confusion: np.ndarray[Any, Any]) -> float:
    """Mean IoU over the classes that the labels hold; NaN if they hold none."""
    return _mean(iou_per_class(confusion))


def _check(prediction: Tensor, mask: Tensor, num_classes: int) -> None:
    if prediction.shape != mask.shape or mask.ndim != 3:
        raise LithesegError(
            f"prediction {tuple(prediction.shape)} and mask {tuple(mask.shape)} must both be the same N H W; "
            "resize the logits to the mask's size before argmax"
        )
    for name, labels in (("mask", mask.where(mask != IGNORE_INDEX, 0)), ("prediction", prediction)):
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise DataError(
                f"{name} holds classes {low} to {high}, but the metrics count 0 to {num_classes - 1}; "
                "give the model and the data the same classes (255 is ignored)"
            )


def _ratio(
    above: np.ndarray[Any, Any], below: np.ndarray[Any, Any], where: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.where(where, above / np.maximum(below, 1), np.nan)


def _mean(values: np.ndarray[Any, Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
