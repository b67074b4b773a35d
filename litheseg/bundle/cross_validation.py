"""What to expect of a network that was trained on few images: every image scored once, by one that did not see it.

The val split of few images is a handful, and which ones are in it moves a score by more than most choices do. Over k
folds as many networks are trained the same way, each without another part of the images, which it is scored on; pixels
are counted over all of them. It is a score of the way of training, a little too low for the network that learned from
nearly all images. In a model file: ``metrics["1"]["cross_validated"]``.

Usage:
    >>> found = cross_validated(load_bundle("deployed/training/model.safetensors").header)
    >>> print(found[1.0])
    cross-validated over 3 folds, 24 images: mIoU 66.1 % (worst class membrane 52.0 %; folds 64.0 to 68.2 %)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litheseg.bundle.header import BundleHeader
from litheseg.bundle.verdicts import worst_class

__all__ = ["MEANING", "CrossValidated", "cross_validated"]

MEANING = (
    "Cross-validated: each image is scored once, by a network that was trained the same way without it. That is what "
    "to expect on more such images; the delivered network learned from more images than each of those. Its own score "
    "is on the few images of val alone, and so says less."
)
"""What a cross-validated score and a val score say."""


@dataclass(frozen=True)
class CrossValidated:
    """The scores of one width.

    Attributes:
        images: that were scored, each once.
        miou: of all of them together, in [0, 1].
        folds: of each fold's images; None where they hold no class.
        classes: IoU by the name of the class; None for one that no label holds.
    """

    images: int
    miou: float
    folds: tuple[float | None, ...]
    classes: Mapping[str, float | None]

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """Name and IoU of the class with the lowest one."""
        return worst_class(list(self.classes), list(self.classes.values()))

    def __str__(self) -> str:
        known = sorted(100 * score for score in self.folds if score is not None)
        worst = self.worst_class
        return (
            f"cross-validated over {len(self.folds)} folds, {self.images} images: mIoU {100 * self.miou:.1f} % ("
            + (f"worst class {worst[0]} {100 * worst[1]:.1f} %; " if worst else "")
            + f"folds {known[0]:.1f} to {known[-1]:.1f} %)"
        )


def cross_validated(header: BundleHeader) -> dict[float, CrossValidated]:
    """What a model file says, by width, the widest first; nothing where it was not cross-validated."""
    found = {}
    for width, entry in header.metrics.items():
        values: Any = entry.get("cross_validated") if isinstance(entry, Mapping) else None
        if isinstance(values, Mapping):
            classes = dict(zip(header.classes.names, values["iou"], strict=True))
            found[float(width)] = CrossValidated(values["images"], values["miou"], tuple(values["folds"]), classes)
    return dict(sorted(found.items(), reverse=True))
