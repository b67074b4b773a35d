"""Labels of an image of any size, tile by tile, as if the network had seen the whole.

Tiles overlap, and their logits turn gradually from one to the other in the middle half of what they share; the outer
quarters, where a network sees the edge of its tile, count for nothing. Tiles start on multiples of `GRID`, which the
strides inside networks divide, so that every layer samples the same pixels as on the whole image; logits are upsampled
with the whole image's geometry. So a network that looks no further than a quarter of the overlap gives exactly the
labels of the whole image (but for float32 rounding, where two classes tie). One that looks further differs in places,
without visible seams. Besides the image and its labels, memory holds one tile and what it shares with others.

Usage:
    >>> labels = predict_tiles(engine, image, tile=(1024, 1024))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from litheseg.errors import LithesegError
from litheseg.masks.upsampling import LogitsPart, upsample_part

__all__ = ["GRID", "predict_tiles", "tile_starts"]

GRID = 64
"""Tiles start on multiples of it, in pixels; the total stride of a network must divide it."""

_STRIDES = tuple(2**power for power in range(7))  # of logits: what divides the grid


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where along an axis tiles start, in pixels; the last one may be shorter than the others, by less than `GRID`.

    Args:
        length: of the axis.
        tile: length of a tile.
        overlap: that neighbours share at least.

    Raises:
        LithesegError: an overlap below `GRID`, or a tile that is not larger than the overlap by `GRID`.
    """
    step = (tile - overlap) // GRID * GRID
    if overlap < GRID or step < GRID:
        raise LithesegError(
            f"tiles of {tile} pixels that share {overlap}: let them share {GRID} at least, and be {GRID} larger than "
            f"that; tiles of 1024 pixels that share 256 are usual"
        )
    if length <= tile:
        return [0]
    last = -(-(length - tile) // GRID) * GRID
    return [*range(0, last, step), last]


def predict_tiles(
    network: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    tile: tuple[int, int],
    overlap: int | None = None,
    fixed: bool = False,
    threads: int | None = None,
) -> np.ndarray:
    """Label an image.

    Args:
        network: uint8 h x w x 3 -> logits, float32 K x h' x w', or labels, uint8 h x w; of labels, each pixel takes
            those of the tile in which it lies nearer to the middle.
        image: uint8 H x W x 3.
        tile: height and width of the tiles.
        overlap: that neighbouring tiles share at least, in pixels; None for a quarter of a tile.
        fixed: whether the network takes images of the size of `tile` only; the last row and column of smaller ones are
            then repeated.
        threads: of the CPU, for upsampling; None for as many as there are cores.

    Returns:
        uint8 H x W.

    Raises:
        LithesegError: a tile that does not suit the overlap, or logits at a stride that does not divide `GRID`.
    """
    overlap = max(GRID, min(tile) // 4) if overlap is None else overlap
    starts = [tile_starts(length, side, overlap) for length, side in zip(image.shape, tile, strict=False)]
    labels = np.empty(image.shape[:2], np.uint8)
    paste: _Labels | _Logits | None = None
    for row, top in enumerate(starts[0]):
        for column, left in enumerate(starts[1]):
            pixels = image[top : top + tile[0], left : left + tile[1]]
            if fixed:
                missing = [(0, side - length) for length, side in zip(pixels.shape, tile, strict=False)]
                pixels = np.pad(pixels, [*missing, (0, 0)], mode="edge")
            result = network(pixels)
            if paste is None and result.ndim == 2:
                paste = _Labels(labels, tile, starts)
            elif paste is None:
                axes = [_axis(labels.shape[i], starts[i], tile[i], result.shape[i + 1], fixed) for i in (0, 1)]
                paste = _Logits(labels, axes[0], axes[1], threads)
            paste(result, row, column)
    return labels


class _Labels:
    """Puts labels in their places; tiles are cut in the middle of what they share."""

    def __init__(self, labels: np.ndarray, tile: tuple[int, int], starts: Sequence[Sequence[int]]) -> None:
        self._labels, self._starts = labels, starts
        middles = [[(a + side + b) // 2 for a, b in pairwise(own)] for own, side in zip(starts, tile, strict=True)]
        self._cuts = [[0, *own, length] for own, length in zip(middles, labels.shape, strict=True)]

    def __call__(self, result: np.ndarray, row: int, column: int) -> None:
        place, part = [], []
        for starts, cuts, index in zip(self._starts, self._cuts, (row, column), strict=True):
            place.append(slice(cuts[index], cuts[index + 1]))
            part.append(slice(cuts[index] - starts[index], cuts[index + 1] - starts[index]))
        self._labels[tuple(place)] = result[tuple(part)]


@dataclass(frozen=True)
class _Axis:
    """An axis of the logits.

    Attributes:
        pixels: of the image.
        samples: of the whole image's logits.
        starts: of the tiles, in samples.
        stops: likewise.
        cuts: where the pixels of each tile begin, and the end.
    """

    pixels: int
    samples: int
    starts: Sequence[int]
    stops: Sequence[int]
    cuts: Sequence[int]


def _axis(pixels: int, starts: Sequence[int], tile: int, count: int, fixed: bool) -> _Axis:
    """Of an image, where the first tile has `count` samples."""
    if len(starts) == 1 and not (fixed and pixels < tile):  # in one piece
        return _Axis(pixels, count, [0], [count], [0, pixels])
    stride = next((stride for stride in _STRIDES if -(-tile // stride) == count), None)
    if stride is None:
        raise LithesegError(
            f"a network that gives {count} samples for {tile} pixels cannot label in tiles: its stride does not divide "
            f"{GRID}; label images as a whole, at a size that it can take"
        )
    samples = -(-pixels // stride)
    first = [start // stride for start in starts]
    last = [min(start + -(-tile // stride), samples) for start in first]
    # A tile ends at the last pixel before the next tile's first sample: (pixel + 1/2) samples / pixels - 1/2 < start.
    cuts = [-(-((2 * start + 1) * pixels - samples) // (2 * samples)) for start in first[1:]]
    return _Axis(pixels, samples, first, last, [0, *cuts, pixels])


@dataclass
class _Logits:
    """Blends logits into those of the tiles before, and labels what no later tile will change.

    Tiles come row by row. A tile is blended with the one before it, then with the strip kept of the row above.
    """

    labels: np.ndarray
    rows: _Axis
    columns: _Axis
    threads: int | None
    _before: np.ndarray = field(default_factory=lambda: np.empty(0))  # of the tile before: the columns it shares
    _above: np.ndarray = field(default_factory=lambda: np.empty(0))  # of the row above: the rows it shares
    _next: np.ndarray = field(default_factory=lambda: np.empty(0))  # the same of this row, as it grows

    def __call__(self, result: np.ndarray, row: int, column: int) -> None:
        top, left = self.rows.starts[row], self.columns.starts[column]
        logits = np.array(result[:, : self.rows.stops[row] - top, : self.columns.stops[column] - left])
        if column:
            _blend(self._before, logits, 2)
        elif row:
            self._above = self._next
        if column + 1 < len(self.columns.starts):
            self._before = logits[:, :, self.columns.starts[column + 1] - left :].copy()
            # The first sample of the next tile is this one's still: labels between the two need it.
            logits = logits[:, :, : self.columns.starts[column + 1] - left + 1]
        across = slice(left, left + logits.shape[2])
        if row:
            _blend(self._above[:, :, across], logits, 1)
        if row + 1 < len(self.rows.starts):
            self._keep(logits[:, self.rows.starts[row + 1] - top :], across)
            logits = logits[:, : self.rows.starts[row + 1] - top + 1]
        self._label(logits, row, column)

    def _keep(self, shared: np.ndarray, across: slice) -> None:
        if not across.start:
            self._next = np.empty((*shared.shape[:2], self.columns.samples), np.float32)
        self._next[:, :, across] = shared

    def _label(self, logits: np.ndarray, row: int, column: int) -> None:
        rows, columns = self.rows, self.columns
        box = (*rows.cuts[row : row + 2], *columns.cuts[column : column + 2])
        part = LogitsPart(
            samples=(rows.samples, columns.samples),
            size=(rows.pixels, columns.pixels),
            first=(rows.starts[row], columns.starts[column]),
            box=(box[0], box[1], box[2], box[3]),
        )
        self.labels[box[0] : box[1], box[2] : box[3]] = upsample_part(logits, part, threads=self.threads)


def _blend(old: np.ndarray, new: np.ndarray, axis: int) -> None:
    """Let the first samples of `new` along `axis`, which lie where those of `old` do, turn from `old` to `new`."""
    shared = old.shape[axis]
    old, new = np.moveaxis(old, axis, -1), np.moveaxis(new, axis, -1)[..., :shared]
    weight = ((np.arange(shared) + 0.5) * 2 / shared - 0.5).astype(np.float32)
    first, last = int((weight <= 0).sum()), int((weight < 1).sum())
    new[..., :first] = old[..., :first]
    middle = slice(first, last)
    # In this form logits that are equal stay what they are, to the bit.
    new[..., middle] = old[..., middle] + weight[middle] * (new[..., middle] - old[..., middle])
