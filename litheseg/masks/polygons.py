"""Masks as polygons and back: the exact outline of pixels, simplified outlines, and the pixels inside a polygon.

An outline runs along pixel edges: corners are whole numbers, pixel (row, column) covers the square from (column, row)
to (column + 1, row + 1). Parts that touch only at a corner are separate; a hole belongs to the part around it. Own code
because OpenCV's contours run through pixel centres, and Pillow's and COCO's polygons grow by up to a pixel. Simplified
as by Douglas and Peucker, Cartographica 10 (1973).

Usage:
    >>> trace(np.array([[True, True], [True, False]]))[0].exterior.tolist()
    [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]
    >>> fill([(1, 1), (3, 1), (3, 3), (1, 3)], height=4, width=4).sum()
    4
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from litheseg.errors import DataError

__all__ = ["MAX_CORNERS", "Polygon", "fill", "simplify", "trace"]

MAX_CORNERS = 1_000_000
"""Of one mask; beyond it polygons are no sensible form, and take minutes."""


@dataclass
class Polygon:
    """One connected part.

    Attributes:
        exterior: corners (N, 2) as x, y; the last joins the first. Clockwise as seen (y points down).
        holes: likewise, anticlockwise.
        area: pixels.
    """

    exterior: np.ndarray
    area: int
    holes: list[np.ndarray] = field(default_factory=list)


def trace(mask: np.ndarray, min_area: int = 1) -> list[Polygon]:
    """Outline the connected parts of a mask.

    Args:
        mask: bool H W.
        min_area: parts and holes of fewer pixels are left out.

    Returns:
        In the order of their topmost row.

    Raises:
        DataError: an outline of more than `MAX_CORNERS` corners.
    """
    parts, count = _parts(mask)
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    areas[0] = 0
    inside = np.pad((areas >= min_area)[parts] & mask, 1)
    polygons: dict[int, Polygon] = {}
    for ring in _rings(inside):
        x, y = int(ring[0, 0]), int(ring[0, 1])
        if inside[y + 1, x + 1]:
            part = int(parts[y, x])
            polygons[part] = Polygon(ring, int(areas[part]))
        elif _area(ring) >= min_area:
            polygons[int(parts[y - 1, x])].holes.append(ring[::-1])
    return list(polygons.values())


def simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out corners that lie within `tolerance` pixels of the line without them; a ring keeps three or more."""
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    far = int(((ring - ring[0]) ** 2).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]]).astype(np.float64)
    kept = np.zeros(len(closed), bool)
    kept[[0, far, -1]] = True
    pending = [(0, far), (far, len(ring))]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            kept[middle] = True
            pending += [(first, middle), (middle, last)]
    simple: np.ndarray = ring[kept[:-1]]
    return simple if len(simple) >= 3 else ring


def fill(points: Sequence[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """The pixels whose centre lies inside a polygon (even-odd rule).

    Args:
        points: corners (x, y) in pixels, in order; the last joins the first. They may lie outside the image.
        height: of the image, in pixels.
        width: likewise.

    Returns:
        bool H x W; pixel (row, column) has its centre at (column + 0.5, row + 0.5).
    """
    # Along a row, everything right of an edge changes sides: mark the first such pixel, then sum up.
    corners = np.asarray(points, np.float64)
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    first, last = (np.clip(np.ceil(pick(y0, y1) - 0.5), 0, height).astype(int) for pick in (np.minimum, np.maximum))
    edge = np.repeat(np.arange(len(corners)), last - first)  # one entry for each row that an edge crosses
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    crossing = x0[edge] + (rows + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    changes = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(changes, (rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)), 1)
    inside: np.ndarray = np.bitwise_xor.accumulate(changes, axis=1)[:, :width].view(bool)
    return inside


def _parts(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected parts of a mask: their numbers, from 1, for each pixel (int32 H W, 0 outside), and how many there are.

    Runs of pixels are joined to those that they touch in the next row: every part points to a part of a lower number
    that touches it, until none does.
    """
    height, width = mask.shape
    flat = np.pad(mask, ((0, 0), (0, 1))).ravel()  # a column of zeros, so that runs end with their row
    edges = np.flatnonzero(np.diff(flat.view(np.int8), prepend=np.int8(0)))
    starts, ends = edges[::2], edges[1::2]
    # Of each run, the first and the last (exclusive) of the runs below that it touches.
    first = np.searchsorted(ends, starts + width + 1, side="right")
    last = np.searchsorted(starts, ends + width + 1, side="left")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    roots = np.arange(len(starts))
    while len(upper):
        one, other = roots[upper], roots[lower]
        apart = one != other
        upper, lower, one, other = upper[apart], lower[apart], one[apart], other[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(roots, above := roots[roots]):
            roots = above
    names, numbers = np.unique(roots, return_inverse=True)
    labels = np.zeros(flat.size, np.int32)
    labels[flat] = np.repeat(numbers.astype(np.int32) + 1, ends - starts)
    return labels.reshape(height, width + 1)[:, :width], len(names)


def _rings(inside: np.ndarray) -> Iterator[np.ndarray]:
    """Outlines of a mask with an empty margin of one pixel; each begins at its topmost, then leftmost corner.

    Along a row of grid points, an edge starts at every first corner and ends at every second; along a column likewise.
    So an outline goes by turns to its partner in the row and to its partner in the column. Where two parts touch at a
    point, that point is two corners; which of them comes first in the column keeps the parts separate.
    """
    upper_left, upper_right = inside[:-1, :-1], inside[:-1, 1:]
    lower_left, lower_right = inside[1:, :-1], inside[1:, 1:]
    touching = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    corners = (upper_left ^ upper_right ^ lower_left ^ lower_right) | touching
    y, x = np.nonzero(corners)
    double = touching[y, x]
    if len(y) + double.sum() > MAX_CORNERS:
        raise DataError(f"an outline of more than {MAX_CORNERS} corners; leave out small parts, or ask for run lengths")
    second = np.repeat(~upper_left[y, x] & double, 1 + double)  # whose first corner comes second in the column
    y, x, double = (np.repeat(values, 1 + double) for values in (y, x, double))
    rank = (np.arange(len(y)) % 2 == 0) & double
    by_column = np.lexsort((rank ^ second, y, x))
    partner = np.empty(len(y), np.int64)
    partner[by_column[::2]], partner[by_column[1::2]] = by_column[1::2], by_column[::2]
    points = np.column_stack([x, y])
    yield from (points[ring] for ring in _cycles(partner.tolist()))


def _cycles(partner: list[int]) -> Iterator[list[int]]:
    seen = bytearray(len(partner))
    for start in range(len(partner)):
        if seen[start]:
            continue
        here, ring = start, list[int]()
        while not seen[here]:
            across = here ^ 1  # in the row, corners are neighbours by twos
            ring += (here, across)
            seen[here] = seen[across] = 1
            here = partner[across]
        yield ring


def _area(ring: np.ndarray) -> float:
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of points (N, 2) to the line through two, or to the one point if they are the same."""
    along, offsets = end - start, points - start
    length = float(np.hypot(*along))
    if length == 0:
        return np.hypot(offsets[:, 0], offsets[:, 1])
    return np.abs(along[0] * offsets[:, 1] - along[1] * offsets[:, 0]) / length
