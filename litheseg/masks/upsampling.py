"""Labels at full size straight from low-resolution logits, without ever forming the full-size logits.

Between four neighbouring samples every logit is a bilinear average of the four. A class that is the largest at all four
is therefore the largest at every pixel between them; only cells whose corners disagree, those on a border, have to be
interpolated, and there only the classes that may win. That equals bilinear interpolation as PyTorch's
(``align_corners=False``) followed by argmax, at any scale, up or down.

Guarantee: a pixel's label is that of exact interpolation wherever its two largest interpolated logits are further
apart than 8 float32 rounding steps (8 x 2^-23) of the largest magnitude among its samples. Nearer than that, float32
rounding decides, and PyTorch may differ. All types are interpolated in float32. Among equals the
first class wins. Around a sample that is not finite all classes are interpolated, as in PyTorch: not a number is the
largest, and infinity times a weight of 0 is not a number.

A small C extension does the work where it was built, NumPy elsewhere (`upsampling_arrays`), with the same labels bit by
bit, in several threads if the image is large enough. Calls from several threads, and after a fork, are safe.
`litheseg.models.upsampling` does the same for tensors on any device.

Usage:
    >>> labels = upsample_labels(logits, (360, 480))  # N x 11 x 45 x 60 -> uint8 N x 360 x 480
"""

from __future__ import annotations

import importlib
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

import numpy as np

from litheseg.errors import DataError, LithesegError
from litheseg.machine import cores
from litheseg.masks import upsampling_arrays
from litheseg.masks.axes import Axis, axis_of, part_of

__all__ = ["LogitsPart", "check_logits", "check_size", "upsample_labels", "upsample_part"]

_SHARE = 1 << 18  # pixels below which another thread costs more than it saves: a third of a millisecond, compiled
_SHARES = 4  # per thread, since borders lie where they like


@dataclass(frozen=True)
class LogitsPart:
    """A rectangle of an image whose logits are made piece by piece.

    Attributes:
        samples: rows and columns of the whole image's logits.
        size: H and W of the whole image.
        first: row and column, in the whole, of the first sample at hand.
        box: the rectangle, in pixels of the whole image: top, bottom, left, right.
    """

    samples: tuple[int, int]
    size: tuple[int, int]
    first: tuple[int, int]
    box: tuple[int, int, int, int]


def upsample_labels(logits: np.ndarray, size: tuple[int, int], *, threads: int | None = None) -> np.ndarray:
    """Label every pixel with the largest of the interpolated logits.

    Args:
        logits: N x K x h x w or K x h x w, floating point, any strides and byte order; K of 1 to 255.
        size: H and W, larger or smaller than h and w.
        threads: at most so many; None for as many as the cores that this process may use.

    Returns:
        uint8 N x H x W or H x W.

    Raises:
        DataError: logits of another shape or type.
        LithesegError: a size that is not positive.
    """
    check_size(size)
    values = _checked(logits)
    labels = _labels(values, axis_of(values.shape[2], size[0]), axis_of(values.shape[3], size[1]), threads)
    return labels if logits.ndim == 4 else labels[0]


def upsample_part(logits: np.ndarray, part: LogitsPart, *, threads: int | None = None) -> np.ndarray:
    """The labels of a rectangle, as `upsample_labels` of the whole image's logits has them there.

    Args:
        logits: K x h x w, floating point: the samples around the rectangle, one beyond it where the whole has one.
        part: where they lie.
        threads: at most so many; None for as many as the cores that this process may use.

    Returns:
        uint8, the rectangle's height x width.

    Raises:
        DataError: logits of another shape or type, or without samples that the rectangle needs.
        LithesegError: a rectangle that is empty or not inside the image.
    """
    top, bottom, left, right = part.box
    if not (0 <= top < bottom <= part.size[0] and 0 <= left < right <= part.size[1]):
        raise LithesegError(f"box {part.box!r} of an image of {part.size!r}: give top, bottom, left, right inside it")
    values = _checked(logits)
    if len(values) != 1:
        raise DataError(f"logits of shape {logits.shape}; give those of one image")
    whole = [axis_of(samples, pixels) for samples, pixels in zip(part.samples, part.size, strict=True)]
    rows, down = part_of(whole[0], slice(top, bottom), part.first[0], values.shape[2])
    columns, across = part_of(whole[1], slice(left, right), part.first[1], values.shape[3])
    labels = _labels(values[:, :, down, across], rows, columns, threads)
    return labels if logits.ndim == 4 else labels[0]


def check_size(size: tuple[int, int]) -> None:
    """Refuse what is not a height and a width.

    Raises:
        LithesegError: not two positive integers.
    """
    if len(size) != 2 or not all(isinstance(extent, int) and extent > 0 for extent in size):
        raise LithesegError(f"size {size!r}: give height and width in pixels")


def check_logits(shape: Sequence[int], dtype: object, floating: bool) -> None:
    """Refuse logits, of NumPy or another library, that cannot become labels.

    Args:
        shape: of the logits.
        dtype: for the message.
        floating: whether it is one of floating point.

    Raises:
        DataError: not floating point, not N x K x h x w or K x h x w, other than 1 to 255 classes, or no samples.
    """
    if not floating or len(shape) not in (3, 4):
        raise DataError(f"logits {dtype} of shape {tuple(shape)}; give floating point, N x K x h x w")
    if not (1 <= shape[-3] <= 255 and shape[-2] and shape[-1]):
        raise DataError(f"logits of shape {tuple(shape)}; give 1 to 255 classes and at least one sample")


def _checked(logits: np.ndarray) -> np.ndarray:
    """The logits as native float32 N x K x h x w; a view where they are."""
    check_logits(logits.shape, logits.dtype, np.issubdtype(logits.dtype, np.floating))
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite
        values = np.require(logits, np.float32, ["ALIGNED"])
    return values if logits.ndim == 4 else values[None]


def _labels(logits: np.ndarray, rows: Axis, columns: Axis, threads: int | None) -> np.ndarray:
    labels = np.empty((len(logits), len(rows.low), len(columns.low)), np.uint8)
    work = partial(_kernel(), logits, labels, rows, columns)
    _share(work, logits.shape[0] * logits.shape[2], labels.size, threads)
    return labels


@cache
def _kernel() -> Callable[..., None]:
    """What does the work: compiled where there was a compiler when the package was installed."""
    try:
        return cast(Callable[..., None], importlib.import_module("litheseg.masks._upsampling").fill_labels)
    except ImportError:
        return upsampling_arrays.fill_labels


class _Threads:
    """Threads shared by all callers, started when first needed; a forked process starts its own."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self._lock, self._pool = threading.Lock(), cast(ThreadPoolExecutor | None, None)

    def pool(self) -> ThreadPoolExecutor:
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(cores(), thread_name_prefix="upsampling")
            return self._pool


_threads = _Threads()


def _share(work: Callable[[int, int], None], total: int, pixels: int, threads: int | None) -> None:
    """Run `work` on the cell rows 0 to `total`, in as many threads as the pixels are worth; this one is among them."""
    threads = threads or cores()
    parts = max(1, min(_SHARES * threads, pixels // _SHARE, total)) if threads > 1 else 1
    bounds = [total * part // parts for part in range(parts + 1)]
    pending = list(itertools.pairwise(bounds))

    def take() -> None:
        while True:
            try:
                first, last = pending.pop()
            except IndexError:
                return
            work(first, last)

    helpers = [_threads.pool().submit(take) for _ in range(min(threads, parts) - 1)]
    take()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun on a busy machine is not waited for: nothing is left to do
            helper.result()
