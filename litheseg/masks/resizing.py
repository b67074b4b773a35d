"""The one resize of images and of label masks: training, prediction, timing, serving and certificates all use it.

Images are resized bilinearly and antialiased: each pixel is a weighted mean under a triangle, which widens with the
scale when an image shrinks. Columns first, then rows; of 8 bits each rounded to uint8, in integers throughout, so the
result is the same in every bit on any machine; others in float32, uint16 rounded at the end. It is what PyTorch
computes (`interpolate` with ``antialias=True``: UpSampleKernel.cpp); the scheme for 8 bits, weights in 16 bits with as
many fractional bits as the largest leaves room for, is that of Pillow and Pillow-SIMD (Resample.c).

Usage:
    >>> small = resize_image(image, (360, 480))  # uint8 H W 3 -> uint8 360 480 3
    >>> labels = resize_mask(mask, (720, 960))  # uint8 H W -> uint8 720 960
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple, cast

import numpy as np

from litheseg.errors import DataError

__all__ = ["resize_image", "resize_mask"]

_BLOCK = 1 << 18  # sums that are held at once


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image to what a network takes: bilinear, antialiased.

    Args:
        image: uint8, uint16 or float32 H W C; any strides.
        size: (h, w) in pixels.

    Returns:
        h w C of the same type; the array itself where the size is right.

    Raises:
        DataError: an image of another type or shape, or a size that no image has.
    """
    if image.dtype not in (np.uint8, np.uint16, np.float32) or image.ndim != 3:
        raise DataError(f"an image is {image.dtype} {image.shape}; give uint8, uint16 or float32 (H, W, channels)")
    _check(image, size)
    if image.shape[:2] == tuple(size):
        return image
    if image.dtype != np.uint8:
        mixed = _mix_floats(_mix_floats(image, size[1], 1), size[0], 0)
        return mixed if image.dtype == np.float32 else np.rint(mixed).astype(np.uint16)
    columns, rows = _triangles(image.shape[1], size[1]), _triangles(image.shape[0], size[0])
    result = np.empty((*size, image.shape[2]), np.uint8)
    (_kernel() if image.shape[2] == 3 else _resize)(image, result, columns, rows)
    return result


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize labels: each pixel takes the label under its centre.

    Args:
        mask: uint8 H W; any strides.
        size: (h, w) in pixels.

    Returns:
        uint8 h w; the array itself where the size is right.

    Raises:
        DataError: a mask of another type or shape, or a size that no mask has.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise DataError(f"a mask is {mask.dtype} {mask.shape}; give uint8 (H, W)")
    _check(mask, size)
    # Rows are copied whole, which is cheap: columns are picked while there are fewer rows.
    for axis in (1, 0) if mask.shape[0] < size[0] else (0, 1):
        if mask.shape[axis] != size[axis]:
            mask = mask.take(_nearest(mask.shape[axis], size[axis]), axis)
    return mask


def _check(array: np.ndarray, size: tuple[int, int]) -> None:
    if 0 in array.shape or min(size) < 1:
        raise DataError(f"{array.shape[:2]} pixels cannot become {tuple(size)}; give sizes of one pixel or more")


class _Triangles(NamedTuple):
    """How the pixels of an axis are weighted means of the `old` ones.

    Attributes:
        starts: int32 [new]: the first pixel under each triangle, or one before it where the image would end first.
        weights: int16 [new, taps] of the pixels from there on, in units of 1 / 2 ** `precision`; 0 beyond the triangle.
            `taps` is even: the last of them may lie one pixel beyond the image.
        precision: fractional bits of the weights.
    """

    starts: np.ndarray
    weights: np.ndarray
    precision: int


@lru_cache(maxsize=64)
def _exact_triangles(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Where triangles start, int32 [new], and their weights, float64 [new, taps]; see `_Triangles`.

    Rounding is PyTorch's as long as the order of operations is.
    """
    scale = old / new
    support = max(scale, 1.0)
    centres = scale * (np.arange(new) + 0.5)
    starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centres + support + 0.5).astype(np.int64), old)
    most = min(int((ends - starts).max()), 2 * math.ceil(support) + 1)
    ends = np.minimum(ends, starts + most)
    pixels = np.minimum(starts, old - most)[:, None] + np.arange(most + most % 2)
    weights = np.maximum(1 - np.abs((pixels - centres[:, None] + 0.5) * (1 / support)), 0)
    weights[(pixels < starts[:, None]) | (pixels >= ends[:, None])] = 0
    weights /= weights.cumsum(1)[:, -1:]  # one after the other; `sum` adds in pairs
    return pixels[:, 0].astype(np.int32), weights


@lru_cache(maxsize=64)
def _triangles(old: int, new: int) -> _Triangles | None:
    """The weights of an axis, None where it keeps its size."""
    if old == new:
        return None
    starts, weights = _exact_triangles(old, new)
    precision = 0
    while precision < 22 and int(0.5 + weights.max() * 2 ** (precision + 1)) < 2**15:
        precision += 1
    tables = starts, (0.5 + weights * 2**precision).astype(np.int16)
    for table in tables:
        table.flags.writeable = False  # they were checked, and are read while the interpreter's lock is released
    return _Triangles(*tables, precision)


@cache
def _kernel() -> Callable[..., None]:
    """What does the work: compiled where there was a compiler when the package was installed."""
    try:
        return cast(Callable[..., None], importlib.import_module("litheseg.masks._resizing").resize)
    except ImportError:
        return _resize


def _resize(image: np.ndarray, result: np.ndarray, columns: _Triangles | None, rows: _Triangles | None) -> None:
    """Fill `result`, uint8 h w C, with the image, uint8 H W C."""
    if columns:
        image = _mix(image.transpose(1, 0, 2), columns).transpose(1, 0, 2)
    result[...] = _mix(image, rows) if rows else image


def _mix(image: np.ndarray, triangles: _Triangles) -> np.ndarray:
    """uint8 H W C to h W C; some columns at a time, so that sums of 32 bits stay few."""
    starts, weights, precision = triangles
    result = np.empty((len(starts), *image.shape[1:]), np.uint8)
    step = max(1, _BLOCK // (image.shape[2] * len(starts)))
    for first in range(0, image.shape[1], step):
        part = image[:, first : first + step]
        total = np.full((len(starts), *part.shape[1:]), 1 << (precision - 1), np.int32)
        for tap in range(weights.shape[1]):
            rows = np.minimum(starts + tap, len(image) - 1)
            total += weights[:, tap, None, None].astype(np.int32) * part[rows]
        result[:, first : first + step] = np.minimum(total >> precision, 255)
    return result


def _mix_floats(image: np.ndarray, new: int, axis: int) -> np.ndarray:
    """H W C with an axis of another length, in float32; the numbers themselves where it keeps its length."""
    moved = np.moveaxis(image, axis, 0)
    if len(moved) == new:
        return image
    starts, weights = _exact_triangles(len(moved), new)
    total = np.zeros((new, *moved.shape[1:]), np.float32)
    for tap, share in enumerate(weights.T.astype(np.float32)):
        total += share[:, None, None] * moved[np.minimum(starts + tap, len(moved) - 1)]
    return np.ascontiguousarray(np.moveaxis(total, 0, axis))


@lru_cache(maxsize=64)
def _nearest(old: int, new: int) -> np.ndarray:
    """int64 [new]: the pixel of `old` that lies under each centre."""
    return (2 * np.arange(new) + 1) * old // (2 * new)
