"""Polygons as pixels: a pixel belongs to a polygon when its centre does (even-odd rule).

Pixel (row, column) has its centre at (column + 0.5, row + 0.5). It does not know labels. PIL's polygons are not used:
they include their outline, and so grow by up to a pixel.

Usage:
    >>> fill([(1, 1), (3, 1), (3, 3), (1, 3)], height=4, width=4).sum()
    4
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

__all__ = ["fill"]


def fill(points: Sequence[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """The pixels inside a polygon.

    Args:
        points: corners (x, y) in pixels, in order; the last joins the first. They may lie outside the image.
        height: of the image, in pixels.
        width: likewise.

    Returns:
        bool H x W.
    """
    # Along a row, everything right of an edge changes sides: mark the first such pixel, then sum up.
    changes = np.zeros((height, width + 1), bool)
    for (x0, y0), (x1, y1) in itertools.pairwise([*points, points[0]]):
        if y0 == y1:
            continue
        first, last = np.clip(np.ceil(np.array([min(y0, y1), max(y0, y1)]) - 0.5), 0, height).astype(int)
        rows = np.arange(first, last)
        crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        changes[rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(changes, axis=1)[:, :width]
