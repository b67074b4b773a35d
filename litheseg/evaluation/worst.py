"""The worst class beside the mean: a mean of 70 % may hide a class that is never found.

Usage:
    >>> worst_class(("road", "pole"), (0.9, 0.02))
    ('pole', 0.02)
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["worst_class"]


def worst_class(names: Sequence[str], iou: Sequence[float | None]) -> tuple[str, float] | None:
    """Name and IoU of the class with the lowest one; None where the labels hold no class.

    Args:
        names: of the classes.
        iou: of each, in [0, 1]; NaN or None for a class that the labels do not hold.
    """
    known = [(value, name) for name, value in zip(names, iou, strict=True) if value is not None and value == value]
    return min(known)[::-1] if known else None
