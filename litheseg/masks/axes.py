"""Where the pixels of an axis lie between its samples, for bilinear interpolation as in PyTorch.

As with ``align_corners=False``, samples and pixels are squares that cover the same image. A cell is what lies between
two neighbouring samples; the last one reaches beyond the last sample.

Usage:
    >>> rows = axis_of(samples=45, pixels=360)
    >>> # pixel 10 = rows.low[10] * sample[rows.lower[10]] + rows.high[10] * sample[rows.lower[10] + rows.step]
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from litheseg.errors import DataError

__all__ = ["Axis", "axis_of", "part_of"]


class Axis(NamedTuple):
    """The pixels of an axis, each between the sample `lower` and the next one (the last is repeated).

    Attributes:
        lower: int64, pixels; never falls.
        low: float32, pixels: the weight of `lower`, 1 - high.
        high: float32, pixels: the weight of the next one, in [0, 1).
        starts: int64, samples + 1: the first pixel of each cell, and the number of pixels.
        step: from `lower` to the next one: 1, or 0 where there are as many pixels as samples, which are copied.
    """

    lower: np.ndarray
    low: np.ndarray
    high: np.ndarray
    starts: np.ndarray
    step: int


@lru_cache(maxsize=64)
def axis_of(samples: int, pixels: int) -> Axis:
    """PyTorch's coordinates, (pixel + 1/2) x samples / pixels - 1/2 and not below 0, without its rounding."""
    position = np.maximum((2 * np.arange(pixels, dtype=np.int64) + 1) * samples - pixels, 0)  # in 1 / (2 pixels)
    lower = np.minimum(position // (2 * pixels), samples - 1)
    high = (position / (2 * pixels) - lower).astype(np.float32)
    return _axis(lower, np.float32(1) - high, high, samples, int(samples != pixels))


def part_of(axis: Axis, pixels: slice, first: int, count: int) -> tuple[Axis, slice]:
    """The axis of some of the pixels where some of the samples are at hand.

    Args:
        axis: of the whole.
        pixels: start and stop, in the whole; at least one.
        first: number, in the whole, of the first sample at hand.
        count: of the samples at hand.

    Returns:
        The axis, and which of the samples at hand it is of.

    Raises:
        DataError: a sample that the pixels need is not at hand.
    """
    lower, high = axis.lower[pixels] - first, axis.high[pixels]
    needed = min(int((lower + (high > 0)).max()), len(axis.starts) - 2 - first)
    if lower[0] < 0 or needed >= count:
        raise DataError(f"logits for the samples {first} to {first + count - 1}, but other ones are needed")
    if not axis.step:  # samples are copied: one for each pixel
        return axis_of(len(lower), len(lower)), slice(int(lower[0]), int(lower[0]) + len(lower))
    return _axis(lower, axis.low[pixels], high, count, axis.step), slice(0, count)


def _axis(lower: np.ndarray, low: np.ndarray, high: np.ndarray, samples: int, step: int) -> Axis:
    starts = np.searchsorted(lower, np.arange(samples + 1)).astype(np.int64)
    return Axis(lower, low, high, starts, step)
