"""Classes that a network will hardly learn: in too few images, or smaller than what it sees as one point.

A network computes labels at a stride of 4 or 8 pixels, and what tells classes apart at strides up to 32. So of each
class is counted how many of its pixels lie in cells of so many pixels that are mostly of this class: thin and small
things fill none. On CamVid at 360 x 480, a quarter of the pixels of poles do at 8 pixels, and 97 % of those of roads.

Usage:
    >>> filled_cells(np.zeros((64, 64), np.uint8), 1).tolist()
    [[4096], [4096], [4096], [4096]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from litheseg.data.doctor.findings import Finding, make_finding

__all__ = ["STRIDES", "class_findings", "filled_cells"]

STRIDES = (4, 8, 16, 32)
"""Edges of the cells, in pixels."""

_CELL = STRIDES[-1]
_ROWS = 8 * _CELL  # of an image that are looked at together
_STRIDE, _FILLED = 1, 1 / 3  # place in `STRIDES` of the cells of which a class has to fill this share
_FEW, _MANY = 5, 20  # images with a class that are too few, where there are so many


def filled_cells(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each class lie in cells that are mostly of this class.

    Args:
        labels: uint8 H W, train ids; what is no class counts for none.
        classes: how many there are.

    Returns:
        int64 (len(`STRIDES`), classes).
    """
    found = np.zeros((len(STRIDES), classes), np.int64)
    clipped = np.minimum(labels, classes)
    right = -labels.shape[1] % _CELL
    for top in range(0, labels.shape[0], _ROWS):
        part = clipped[top : top + _ROWS]
        part = np.pad(part, ((0, -len(part) % _CELL), (0, right)), constant_values=classes)
        rows, columns = (edge // STRIDES[0] for edge in part.shape)
        cell = np.repeat(np.arange(rows), STRIDES[0])[:, None] * columns + np.repeat(np.arange(columns), STRIDES[0])
        flat = np.bincount((cell * (classes + 1) + part).ravel(), minlength=rows * columns * (classes + 1))
        counts = flat.reshape(rows, columns, classes + 1)[..., :classes]
        for place, stride in enumerate(STRIDES):
            found[place] += np.where(2 * counts > stride**2, counts, 0).sum((0, 1))
            rows, columns = (edge // 2 for edge in counts.shape[:2])
            if stride != _CELL:
                counts = counts.reshape(rows, 2, columns, 2, classes).sum((1, 3))
    return found


def class_findings(
    names: Sequence[str], pixels: np.ndarray, images: np.ndarray, filled: np.ndarray, total: int, split: str
) -> Iterator[Finding]:
    """Classes that will hardly be learned.

    Args:
        names: of the classes.
        pixels: int64 K: of each class.
        images: int64 K: that hold it.
        filled: sum of `filled_cells`.
        total: images with labels.
        split: for messages.
    """
    few = [k for k in np.flatnonzero((images > 0) & (images < _FEW)).tolist() if total >= _MANY]
    if few:
        shown = ", ".join(f"'{names[k]}' in {images[k]}" for k in few)
        message = f"classes in very few of the {total} images of '{split}', which will hardly be learned: {shown}"
        yield make_finding("few-images", message, [names[k] for k in few])
    share = filled / np.maximum(pixels, 1)
    small = np.flatnonzero((pixels > 0) & (share[_STRIDE] < _FILLED)).tolist()
    if small:
        edges = ", ".join(map(str, STRIDES))
        shown = "; ".join(f"'{names[k]}' {', '.join(f'{part:.0%}' for part in share[:, k])}" for k in small)
        message = (
            f"classes of '{split}' that are thinner or smaller than what a network tells apart: shares of their pixels "
            f"that lie in cells of {edges} pixels which they fill: {shown}"
        )
        yield make_finding("small-objects", message, [names[k] for k in small])
