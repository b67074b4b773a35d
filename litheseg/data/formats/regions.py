"""Shapes as annotation tools draw them, painted into one label image.

The rules are the same for all formats. A pixel belongs to a polygon if its centre lies inside; lines that cross turn
inside and outside round (even-odd); what lies outside the image is cut off. Where shapes of different classes overlap,
`OVERLAPS` says which one counts.

Usage:
    >>> square = polygon_region([[(1, 1), (3, 1), (3, 3), (1, 3)]])
    >>> paint([(1, square)], (4, 4), "later").tolist()[1]
    [254, 1, 1, 254]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from litheseg.errors import DataError
from litheseg.masks.classes import IGNORE_INDEX, UNKNOWN_INDEX
from litheseg.masks.polygons import fill
from litheseg.masks.run_lengths import coco_counts

__all__ = [
    "UNLABELLED",
    "Overlap",
    "Region",
    "Window",
    "bitmap_region",
    "corners",
    "ellipse",
    "paint",
    "polygon_region",
    "reaches_out",
    "rectangle",
    "runs_region",
    "turned",
]

UNLABELLED = UNKNOWN_INDEX
"""In a label image: no shape is there."""

Overlap = Literal["later", "smaller", "ignore"]
"""The later shape of the file counts, or the smaller one; or such pixels are ignored."""

_ARC = 180  # corners of an ellipse

Window = tuple[int, int, np.ndarray]
"""Row and column of the upper left corner, and bool h w."""


@dataclass(frozen=True)
class Region:
    """One shape.

    Attributes:
        area: in pixels, to order shapes by.
        draw: takes the (H, W) of the image, and gives the part of it that holds the shape.
    """

    area: float
    draw: Callable[[tuple[int, int]], Window]


def paint(regions: Sequence[tuple[int, Region]], size: tuple[int, int], overlap: Overlap) -> np.ndarray:
    """Paint shapes one over the other.

    Args:
        regions: class (`IGNORE_INDEX` for what is to be ignored) and shape, in the order of the file.
        size: (H, W) of the image.
        overlap: which one counts where shapes of different classes overlap.

    Returns:
        uint8 H W: classes, `UNLABELLED` where there is no shape.

    Raises:
        DataError: run lengths of another size.
    """
    canvas = np.full(size, UNLABELLED, np.uint8)
    if overlap == "smaller":
        regions = sorted(regions, key=lambda entry: -entry[1].area)
    for label, region in regions:
        row, column, inside = region.draw(size)
        part = canvas[row : row + inside.shape[0], column : column + inside.shape[1]]
        clash = inside & (part != UNLABELLED) & (part != label) if overlap == "ignore" else None
        part[inside] = label
        if clash is not None:
            part[clash] = IGNORE_INDEX
    return canvas


def polygon_region(rings: Sequence[Sequence[tuple[float, float]]], *, fractions: bool = False) -> Region:
    """A shape of one or several polygons; a pixel in any of them belongs to it.

    Args:
        rings: corners (x, y) in pixels, of each polygon.
        fractions: they are in fractions of width and height instead.
    """

    def draw(size: tuple[int, int]) -> Window:
        scale = (size[1], size[0]) if fractions else (1, 1)
        scaled = [[(x * scale[0], y * scale[1]) for x, y in ring] for ring in rings]
        every = np.array([corner for ring in scaled for corner in ring], np.float64)
        (left, top), (right, bottom) = np.floor(every.min(0)), np.ceil(every.max(0))
        top, bottom = np.clip([top, bottom], 0, size[0]).astype(int)
        left, right = np.clip([left, right], 0, size[1]).astype(int)
        inside = np.zeros((bottom - top, right - left), bool)
        if inside.size:
            for ring in scaled:
                inside |= fill([(x - left, y - top) for x, y in ring], *inside.shape)
        return top, left, inside

    return Region(sum(_area(ring) for ring in rings), draw)


def runs_region(counts: Any, stated: Any) -> Region:
    """A shape of COCO's run lengths.

    Args:
        counts: the lengths, column by column beginning with pixels outside; or COCO's string of them.
        stated: the (H, W) that belongs to them.

    Raises:
        DataError: lengths that do not sum up to the size, or what are no lengths.
    """
    lengths = coco_counts(counts)
    height, width = (int(edge) for edge in stated)
    if lengths.min(initial=0) < 0 or lengths.sum() != height * width:
        raise DataError(f"run lengths of {lengths.sum()} pixels for a size of {height}x{width} (HxW)")

    def draw(size: tuple[int, int]) -> Window:
        if size != (height, width):
            raise DataError(f"run lengths of {height}x{width} (HxW) for an image of {size[0]}x{size[1]}")
        return 0, 0, np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T

    return Region(float(lengths[1::2].sum()), draw)


def bitmap_region(inside: np.ndarray, top: int = 0, left: int = 0) -> Region:
    """A shape as a picture, bool h w, whose upper left pixel is in row `top` and column `left` of the image."""

    def draw(size: tuple[int, int]) -> Window:
        part = inside[max(-top, 0) : max(size[0] - top, 0), max(-left, 0) : max(size[1] - left, 0)]
        return max(top, 0), max(left, 0), part

    return Region(float(inside.sum()), draw)


def corners(values: Any) -> list[tuple[float, float]]:
    """Corners (x, y) from x, y, x, y, ... or from pairs; empty if they enclose nothing.

    Raises:
        DataError: no numbers, an odd number of them, or ones that are not finite.
    """
    try:
        flat = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(f"a polygon of what are no numbers ({error})") from error
    if len(flat) % 2 or not np.isfinite(flat).all():
        raise DataError("a polygon of an odd number of coordinates, or of ones that are not finite")
    points = [(x, y) for x, y in flat.reshape(-1, 2).tolist()]
    xs, ys = {x for x, _ in points}, {y for _, y in points}
    return points if len(points) > 2 and len(xs) > 1 and len(ys) > 1 else []


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """The corners of a rectangle between two points."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def ellipse(x: float, y: float, across: float, down: float) -> list[tuple[float, float]]:
    """Corners along an ellipse around a point, of these radii; too many to be seen."""
    steps = 2 * math.pi / _ARC * np.arange(_ARC)
    return [(x + across * math.cos(step), y + down * math.sin(step)) for step in steps.tolist()]


def turned(points: Sequence[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    """Corners turned clockwise, as seen, around their middle."""
    middle = np.mean([np.min(points, 0), np.max(points, 0)], axis=0)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    return [(x, y) for x, y in ((np.array(points) - middle) @ matrix + middle).tolist()]


def reaches_out(rings: Sequence[Sequence[tuple[float, float]]], size: tuple[float, float], margin: float = 1) -> bool:
    """Whether a corner lies outside an image of (H, W), by more than tools' usual rounding."""
    height, width = size[0] + margin, size[1] + margin
    return any(not -margin <= x <= width or not -margin <= y <= height for ring in rings for x, y in ring)


def _area(ring: Sequence[tuple[float, float]]) -> float:
    pairs = zip(ring, [*ring[1:], ring[0]], strict=True)
    return abs(math.fsum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2
