"""COCO's run lengths: a mask as the lengths of its runs, column by column, zeros first.

The packed form is that of COCO's API (`rleToString` in maskApi.c): from the third on, each length less the one before
the last; then signed groups of five bits, the lowest first, each a printable character. It knows labels, but no class
names.

Usage:
    >>> runs = class_runs(np.array([[0, 1], [1, 1]], np.uint8))
    >>> runs[1].tolist(), pack(runs[1])
    ([1, 3], '13')
"""

from __future__ import annotations

import numpy as np

__all__ = ["class_runs", "pack"]

_BITS = 5
_MORE = 1 << _BITS  # the bit that says "another group follows"
_FIRST_CHARACTER = 48


def class_runs(mask: np.ndarray) -> dict[int, np.ndarray]:
    """Run lengths of every class that a mask holds.

    Args:
        mask: uint8 H W, not empty.

    Returns:
        class -> int64 lengths of the runs of other pixels and of its own, in turn, column by column, beginning with the
        others (0 if there are none); they sum up to H * W.
    """
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    return {int(k): _alternating(starts[values == k], ends[values == k], flat.size) for k in np.unique(values)}


def pack(runs: np.ndarray) -> str:
    """Run lengths as COCO's string."""
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    groups = max(1, -(-(int(np.abs(values).max(initial=0)).bit_length() + 1) // _BITS))
    shifted = values[:, None] >> (_BITS * np.arange(groups))
    # A group is the last one when what remains above it only repeats its sign bit.
    last = shifted >> _BITS == -(shifted >> (_BITS - 1) & 1)
    before = np.cumsum(last, axis=1) - last
    characters = (shifted & (_MORE - 1)) + np.where(last, 0, _MORE) + _FIRST_CHARACTER
    return bytes(characters[before == 0].astype(np.uint8)).decode("ascii")


def _alternating(starts: np.ndarray, ends: np.ndarray, total: int) -> np.ndarray:
    gaps = starts - np.concatenate([[0], ends[:-1]])
    runs = np.column_stack([gaps, ends - starts]).ravel()
    return np.append(runs, total - ends[-1]) if ends[-1] < total else runs
