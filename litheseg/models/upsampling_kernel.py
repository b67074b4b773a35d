"""Labels from low-resolution logits, compiled: what `upsampling` runs on a CPU.

Cell rows (the pixels between one row of samples and the next) are done one after the other. Two rows of samples are
kept, class by class, which is the order that vector instructions like, whatever the layout of the logits. Importing the
module compiles it (seconds), or loads what an earlier process compiled.

No parallel loops of Numba's: its OpenMP layer ends a process that forks, and its own layer may not be entered by two
threads. The kernel works on any range of cell rows, without the interpreter's lock; `upsampling` shares them out. It
does not know tensors, threads or sizes that make no sense.

Usage:
    >>> fill_labels(logits, labels, *rows, *columns, 0, logits.shape[0] * logits.shape[2])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import register_jitable

__all__ = ["fill_labels"]

_LARGEST = np.float32(np.finfo(np.float32).max)


@register_jitable
def _load(image: np.ndarray, row: int, values: np.ndarray, best: np.ndarray, winners: np.ndarray) -> None:
    """Copy a row of samples, K x w; find each sample's first largest class, K where one is not finite."""
    classes, width = values.shape
    for label in range(classes):
        value = values[label]
        for x in range(width):
            value[x] = image[label, row, x]
    best[:] = values[0]
    winners[:] = 0
    for label in range(1, classes):
        value = values[label]
        for x in range(width):
            better = value[x] > best[x]
            best[x] = value[x] if better else best[x]
            winners[x] = label if better else winners[x]
    for label in range(classes):
        value = values[label]
        for x in range(width):
            winners[x] = winners[x] if abs(value[x]) <= _LARGEST else classes


@register_jitable
def _fill(
    labels: np.ndarray,
    above: np.ndarray,
    below: np.ndarray,
    left: np.ndarray,
    across: int,
    mixed: np.ndarray,
    classes: int,
) -> int:
    """Fill a cell row (rows x W) with the winners of the upper left corners.

    Returns:
        How many cells need more; `mixed` lists them.
    """
    count, width = 0, len(above)
    for x in range(width):
        start, end, winner = left[x], left[x + 1], above[x]
        if start == end:
            continue
        after = min(x + across, width - 1)
        labels[0, start:end] = winner
        if winner == classes or above[after] != winner or below[x] != winner or below[after] != winner:
            mixed[count] = x
            count += 1
    for y in range(1, labels.shape[0]):
        labels[y] = labels[0]
    return count


@register_jitable
def _candidates(corners: np.ndarray, winners: tuple[int, int, int, int], beaten: np.ndarray, chosen: np.ndarray) -> int:
    """List the classes that may win in a cell, ascending; return how many.

    A class stays out if another is larger at all four corners (or as large, and comes first): inside, both are the same
    averages of their corners. `corners` is 4 x K.
    """
    classes, previous = len(beaten), -1
    beaten[:] = 0
    for winner in winners:
        if winner != previous:
            a, b, c, d = corners[0, winner], corners[1, winner], corners[2, winner], corners[3, winner]
            for label in range(classes):
                e, f, g, h = corners[0, label], corners[1, label], corners[2, label], corners[3, label]
                larger = (a > e) & (b > f) & (c > g) & (d > h)
                as_large = (a >= e) & (b >= f) & (c >= g) & (d >= h) & (winner < label)
                beaten[label] |= np.int32(larger | as_large)
        previous = winner
    for winner in winners:
        beaten[winner] = 0
    count = 0
    for label in range(classes):
        chosen[count] = label
        count += 1 - beaten[label]
    return count


@register_jitable
def _interpolate(
    labels: np.ndarray,
    corners: np.ndarray,
    chosen: np.ndarray,
    count: int,
    rows: tuple[np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray],
    place: tuple[int, int, int, int],
    ends: np.ndarray,
) -> None:
    """Label the pixels of a cell (rows x columns) with the largest of the chosen classes.

    "Not smaller or equal" rather than "larger": not a number is the largest, and the first one of them, as in PyTorch.
    """
    top, bottom, start, end = place
    for y in range(top, bottom):
        low, high = rows[0][y], rows[1][y]
        for index in range(count):
            label = chosen[index]
            ends[0, index] = corners[0, label] * low + corners[2, label] * high
            ends[1, index] = corners[1, label] * low + corners[3, label] * high
        one, two = chosen[0], chosen[1]
        if count == 2:
            a, b, c, d = ends[0, 0], ends[1, 0], ends[0, 1], ends[1, 1]
            for x in range(start, end):
                first = a * columns[0][x] + b * columns[1][x]
                second = c * columns[0][x] + d * columns[1][x]
                labels[y, x] = two if (not second <= first) & (first == first) else one
            continue
        for x in range(start, end):
            left, right = columns[0][x], columns[1][x]
            best, label = ends[0, 0] * left + ends[1, 0] * right, 0
            for index in range(1, count):
                value = ends[0, index] * left + ends[1, index] * right
                better = (not value <= best) & (best == best)
                best = value if better else best
                label = index if better else label
            labels[y, x] = chosen[label]


def _fill_labels(
    logits: np.ndarray,
    labels: np.ndarray,
    upper: np.ndarray,
    row_low: np.ndarray,
    row_high: np.ndarray,
    left: np.ndarray,
    column_low: np.ndarray,
    column_high: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Label the pixels of some cell rows.

    Args:
        logits: float32 N x K x h x w, any strides.
        labels: uint8 N x H x W, contiguous; written.
        upper: int64 h + 1, the first row of pixels of each cell row, and H.
        row_low: float32 H, the weight of the sample above each row of pixels.
        row_high: float32 H, the weight of the sample below.
        left: as `upper`, for columns.
        column_low: as `row_low`.
        column_high: as `row_high`.
        first: cell row to begin with, counted through all images: image x h + row.
        last: cell row to end before.
    """
    _, classes, height, width = logits.shape
    down, across = int(labels.shape[1] != height), int(labels.shape[2] != width)  # an axis of the same size is copied
    values = np.empty((2, classes, width), np.float32)  # two rows of samples; an even one lies in 0, an odd one in 1
    winners = np.empty((2, width), np.int32)
    held = np.empty(2, np.int64)  # which ones they are
    held[:] = -1
    best = np.empty(width, np.float32)
    corners, ends = np.empty((4, classes), np.float32), np.empty((2, classes), np.float32)
    beaten = np.empty(classes, np.int32)
    chosen, mixed = np.empty(classes + 1, np.int32), np.empty(width, np.int64)
    for cell_row in range(first, last):
        image, row = cell_row // height, cell_row % height
        top, bottom = upper[row], upper[row + 1]
        if top == bottom:
            continue
        after = min(row + down, height - 1)
        for needed in (row, after):
            slot = needed & 1
            if held[slot] != image * height + needed:
                _load(logits[image], needed, values[slot], best, winners[slot])
                held[slot] = image * height + needed
        above, below = values[row & 1], values[after & 1]
        count = _fill(labels[image, top:bottom], winners[row & 1], winners[after & 1], left, across, mixed, classes)
        rows, columns = (row_low, row_high), (column_low, column_high)
        for entry in range(count):
            x = mixed[entry]
            right = min(x + across, width - 1)
            for label in range(classes):
                corners[0, label], corners[1, label] = above[label, x], above[label, right]
                corners[2, label], corners[3, label] = below[label, x], below[label, right]
            four = (winners[row & 1, x], winners[row & 1, right], winners[after & 1, x], winners[after & 1, right])
            if classes in four:
                options = classes
                for label in range(classes):
                    chosen[label] = label
            else:
                options = _candidates(corners, four, beaten, chosen)
            _interpolate(
                labels[image], corners, chosen, options, rows, columns, (top, bottom, left[x], left[x + 1]), ends
            )


def _compiled() -> Callable[..., None]:
    """The kernel; kept on disk for the next process wherever Numba finds a folder that it may write to."""
    table = (types.int64[::1], types.float32[::1], types.float32[::1])
    logits, labels = types.Array(types.float32, 4, "A"), types.uint8[:, :, ::1]
    signature = types.void(logits, labels, *table, *table, types.int64, types.int64)
    options: dict[str, Any] = {"nogil": True}
    try:
        return njit(signature, cache=True, **options)(_fill_labels)
    except (OSError, RuntimeError):  # no folder for it, or a full disk: compile without keeping
        return njit(signature, **options)(_fill_labels)


fill_labels = _compiled()
