"""Labels from low-resolution logits in NumPy: what `upsampling` runs where its C extension was not built.

All arithmetic is float32 and in the extension's order, so that both give the same labels bit by bit. Cells on a border
are grouped by their height and width in pixels (there are few kinds), and each group is interpolated at once: first the
candidate with the lowest class of every cell, then the second of the cells that have two, and so on.

Usage:
    >>> fill_labels(logits, labels, rows, columns, 0, logits.shape[0] * logits.shape[2])
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from litheseg.masks.axes import Axis

__all__ = ["fill_labels"]

_MAX_VALUES = 1 << 18  # in each of the few arrays that are alive together, unless a row of pixels has more


def fill_labels(logits: np.ndarray, labels: np.ndarray, rows: Axis, columns: Axis, first: int, last: int) -> None:
    """Label the pixels of some cell rows.

    Args:
        logits: float32 N x K x h x w, any strides.
        labels: uint8 N x H x W; written.
        rows: H pixels between h samples.
        columns: W pixels between w samples.
        first: cell row to begin with, counted through all images: image x h + row.
        last: cell row to end before.
    """
    _, classes, height, width = logits.shape
    many = max(1, _MAX_VALUES // (classes * width))
    with np.errstate(over="ignore", invalid="ignore"):  # not a number is a value like others
        while first < last:
            image, row = divmod(first, height)
            stop = min(height, row + many, row + last - first)
            samples = logits[image, :, row : min(stop + rows.step, height)]
            _fill_rows(samples, labels[image], rows, columns, row, stop)
            first += stop - row


@dataclass(frozen=True)
class _Cells:
    """Cells of one height and width on a border, and their corners: upper left, upper right, lower left, lower right.

    Attributes:
        top: int64 M, the first row of pixels of each.
        left: int64 M, the first column of pixels.
        corners: float32 4 x K x M, the logits.
        winners: int64 4 x M, the largest class.
        strange: bool M, whether a corner is not finite.
    """

    top: np.ndarray
    left: np.ndarray
    corners: np.ndarray
    winners: np.ndarray
    strange: np.ndarray


def _fill_rows(samples: np.ndarray, labels: np.ndarray, rows: Axis, columns: Axis, first: int, stop: int) -> None:
    """Label the cell rows `first` to `stop` of an image; `samples` are theirs and those below, K x rows x w."""
    winners = samples.argmax(0)
    starts = rows.starts[first : stop + 1]
    heights, widths = np.diff(starts), np.diff(columns.starts)
    own = winners[: stop - first].astype(np.uint8)
    labels[starts[0] : starts[-1]] = own.repeat(widths, axis=1).repeat(heights, axis=0)
    if not rows.step and not columns.step:
        return
    strange = ~np.isfinite(samples).all(0)
    here, beside = np.arange(stop - first), np.arange(len(widths))
    below, right = (here + rows.step).clip(max=len(winners) - 1), (beside + columns.step).clip(max=len(widths) - 1)
    places = [(here, beside), (here, right), (below, beside), (below, right)]
    unsure = np.any([strange[np.ix_(*place)] | (winners[np.ix_(*place)] != own) for place in places], axis=0)
    for height, width, (y, x) in _kinds(unsure, heights, widths, len(samples)):
        four = (np.stack([here[y], here[y], below[y], below[y]]), np.stack([x, right[x], x, right[x]]))
        corners = samples[(slice(None), *four)].swapaxes(0, 1)
        cells = _Cells(starts[y], columns.starts[x], corners, winners[four], strange[four].any(0))
        _interpolate(labels, cells, rows, columns, height, width)


def _kinds(
    unsure: np.ndarray, heights: np.ndarray, widths: np.ndarray, classes: int
) -> Iterator[tuple[int, int, tuple[np.ndarray, np.ndarray]]]:
    """Height and width in pixels, and the indices of cells that have them: at most so many that memory is bounded."""
    for height in np.unique(heights[heights > 0]):
        for width in np.unique(widths[widths > 0]):
            y, x = np.nonzero(unsure & (heights == height)[:, None] & (widths == width))
            many = max(1, _MAX_VALUES // max(height * width, 4 * classes))
            for begin in range(0, len(y), many):
                yield int(height), int(width), (y[begin : begin + many], x[begin : begin + many])


def _candidates(cells: _Cells) -> np.ndarray:
    """K x M: the classes that may win in a cell.

    A class stays out if another is larger at all four corners (or as large, and comes first): inside, both are the same
    averages of their corners. Where a corner is not finite all may win.
    """
    classes, count = cells.corners.shape[1:]
    beaten, numbers = np.zeros((classes, count), bool), np.arange(classes)[:, None]
    for winner in cells.winners:
        largest = cells.corners[:, winner, np.arange(count)][:, None]
        larger, as_large = (largest > cells.corners).all(0), (largest >= cells.corners).all(0)
        beaten |= larger | (as_large & (winner < numbers))
    return ~beaten | cells.strange


def _interpolate(labels: np.ndarray, cells: _Cells, rows: Axis, columns: Axis, height: int, width: int) -> None:
    """Label the pixels of cells that are all of a height and width."""
    candidates = _candidates(cells)
    counts = candidates.sum(0)
    order = np.argsort(-counts, kind="stable")  # so that those with a further candidate lie at the beginning
    ranked = np.argsort(~candidates[:, order], axis=0, kind="stable")
    corners, x = cells.corners[:, :, order], cells.left[order, None] + np.arange(width)
    near, far = columns.low[x][:, None], columns.high[x][:, None]
    many = max(1, _MAX_VALUES // width)
    for begin in range(0, height, many):  # in one go, but for huge cells
        y = cells.top[order, None] + np.arange(begin, min(begin + many, height))
        low, high = rows.low[y], rows.high[y]
        best, chosen = np.empty((*y.shape, width), np.float32), np.empty((*y.shape, width), np.uint8)
        for rank in range(counts.max()):
            cell = np.arange(np.count_nonzero(counts > rank))
            some, label = slice(0, len(cell)), ranked[rank, : len(cell), None, None]
            one, two, three, four = corners[:, ranked[rank, some], cell, None]
            ends = one * low[some] + three * high[some], two * low[some] + four * high[some]
            value = ends[0][..., None] * near[some] + ends[1][..., None] * far[some]
            # "Not smaller or equal" rather than "larger": not a number is the largest, and the first one of them.
            better = ~(value <= best[some]) & (best[some] == best[some]) if rank else np.True_
            np.copyto(best[some], value, where=better)
            np.copyto(chosen[some], label, where=better, casting="unsafe")
        labels[y[..., None], x[:, None]] = chosen
