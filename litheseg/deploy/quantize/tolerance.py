"""Whether int8 may stand for fp32: how far mIoU and each class may fall.

mIoU alone would let a class go: among eleven classes, one that loses five points costs less than half a point of the
mean. So each class has a limit of its own, four times as wide as that of the mean, since a class has fewer pixels and
moves more; one with hardly any pixels has none, since a handful of them decides. Where nothing is labelled, all that
can be told is how many pixels change their label.

It does not know how int8 came about.

Usage:
    >>> Tolerance(miou=0.5).violations(certificate, shares)
    (Violation(text='mIoU fell by 0.80 points (at most 0.5)', excess=0.3),)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from litheseg.deploy.parity import Certificate
from litheseg.deploy.samples import Samples
from litheseg.errors import LithesegError
from litheseg.masks.classes import IGNORE_INDEX

__all__ = ["Tolerance", "Violation", "class_changes", "class_shares"]


@dataclass(frozen=True)
class Violation:
    """Something that is worse than allowed.

    Attributes:
        text: in words.
        excess: by how many points more than allowed, > 0.
    """

    text: str
    excess: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Tolerance:
    """How much worse int8 may be than fp32.

    Attributes:
        miou: points of mIoU (hundredths), on labelled images.
        class_iou: points of a class's IoU, on labelled images; None for no limit.
        class_share: classes with a smaller share of the labelled pixels have no limit of their own; in [0, 1].
        agreement: the least share of pixels that both label alike, where nothing is labelled; in [0, 1].

    Raises:
        LithesegError: a value out of range.
    """

    miou: float = 0.5
    class_iou: float | None = 2.0
    class_share: float = 0.001
    agreement: float = 0.95

    def __post_init__(self) -> None:
        limits = {"miou": (self.miou, 100), "class_iou": (self.class_iou or 0, 100)}
        limits |= {"class_share": (self.class_share, 1), "agreement": (self.agreement, 1)}
        for name, (value, high) in limits.items():
            if not 0 <= value <= high:
                raise LithesegError(f"tolerance '{name}' is {value:g}; give a number from 0 to {high}")

    def violations(self, certificate: Certificate, shares: Sequence[float]) -> tuple[Violation, ...]:
        """What is worse than allowed; nothing if int8 may stand for fp32.

        Args:
            certificate: of int8, compared with fp32.
            shares: of the labelled pixels, per class; see `class_shares`.
        """
        if certificate.miou is None or certificate.reference_miou is None:
            found = certificate.agreement
            text = f"only {found:.2%} of the pixels are labelled as in fp32 (at least {self.agreement:.2%})"
            return _exceeding(text, 100 * (1 - found), 100 * (1 - self.agreement))
        fall = 100 * (certificate.reference_miou - certificate.miou)
        broken = _exceeding(f"mIoU fell by {fall:.2f} points (at most {self.miou:g})", fall, self.miou)
        for (name, change), share in zip(class_changes(certificate).items(), shares, strict=True):
            if self.class_iou is not None and not math.isnan(change) and share >= self.class_share:
                text = f"{name} fell by {-change:.1f} points (at most {self.class_iou:g})"
                broken += _exceeding(text, -change, self.class_iou)
        return broken


def class_changes(certificate: Certificate) -> dict[str, float]:
    """Points of IoU that each class gained (below 0: lost); NaN for those that the labels lack."""
    none = (None,) * len(certificate.classes)
    pairs = zip(certificate.iou or none, certificate.reference_iou or none, strict=True)
    changes = (math.nan if own is None or other is None else 100 * (own - other) for own, other in pairs)
    return dict(zip(certificate.classes, changes, strict=True))


def class_shares(samples: Samples, num_classes: int) -> tuple[float, ...]:
    """The share of the labelled pixels that each class has; 0 throughout where nothing is labelled."""
    counts = np.zeros(num_classes, np.int64)
    for picture in samples if samples.labelled else ():
        if picture.mask is not None:
            counts += np.bincount(picture.mask[picture.mask != IGNORE_INDEX], minlength=num_classes)
    return tuple((counts / max(int(counts.sum()), 1)).tolist())


def _exceeding(text: str, value: float, limit: float) -> tuple[Violation, ...]:
    """A violation if `value` is above `limit`, or is no number."""
    return () if value <= limit else (Violation(text, value - limit),)
