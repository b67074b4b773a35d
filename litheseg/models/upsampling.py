"""Labels at full size straight from low-resolution logits, without ever forming the full-size logits.

Between four neighbouring samples every logit is a bilinear average of the four. A class that is the largest at all four
is therefore the largest at every pixel between them; only cells whose corners disagree, those on a border, have to be
interpolated, and there only the classes that may win. That equals ``F.interpolate(..., mode="bilinear",
align_corners=False)`` followed by argmax, at any scale, up or down.

What is promised: a pixel's label is that of exact interpolation wherever its two largest interpolated logits are
further apart than 8 float32 rounding steps (8 x 2^-23) of the largest magnitude among its samples. Nearer than that,
float32 decides, here as in PyTorch, each in its own way. All types are interpolated in float32: PyTorch would round
bfloat16 and float16 again. Among equals the first class wins. Around a sample that is not finite all classes are
interpolated, as in PyTorch: not a number is the largest, and infinity times a weight of 0 is not a number.

On a CPU a compiled kernel does the work (`upsampling_kernel`), in several threads if the image is worth it; on other
devices, or where Numba cannot be used, plain PyTorch operations do, with the same labels. Calls from several threads,
and after a fork, are safe. It does not know networks, nor what labels mean.

Usage:
    >>> labels = upsample_labels(logits, (360, 480))  # N x 11 x 45 x 60 -> uint8 N x 360 x 480
    >>> maps = label_maps(logits, (360, 480), confidence="uint8", borders=True)
"""

from __future__ import annotations

import importlib
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.errors import DataError, LithesegError

__all__ = ["LabelMaps", "Part", "label_maps", "upsample_labels", "upsample_part", "warm_up"]

Array = TypeVar("Array", Tensor, np.ndarray)

_MAX_VALUES = 1 << 24  # of interpolated logits that PyTorch holds at once
_TEMPORARIES = 8  # arrays of that size that are alive together
_SHARE = 1 << 18  # pixels below which another thread costs more than it saves: about half a millisecond
_SHARES = 4  # per thread, since borders lie where they like


@dataclass(frozen=True)
class LabelMaps(Generic[Array]):
    """What can be read off the logits at full size; without N if the logits had none.

    Attributes:
        labels: uint8 N x H x W, class indices.
        confidence: N x H x W, probability of the label: float32 in [1/K, 1], or uint8, 255 times that, rounded; None
            unless asked for.
        borders: bool N x H x W, whether the right or the lower neighbour has another label; None unless asked for.
    """

    labels: Array
    confidence: Array | None = None
    borders: Array | None = None


@dataclass(frozen=True)
class Part:
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


class _Axis(NamedTuple):
    """Where the pixels of an axis lie between its samples: between `lower` and the next one (the last is repeated)."""

    lower: np.ndarray  # int64, pixels
    low: np.ndarray  # float32, pixels: weight of `lower`
    high: np.ndarray  # float32, pixels: weight of the next one
    starts: np.ndarray  # int64, samples + 1: first pixel of each cell


def upsample_labels(
    logits: Array, size: tuple[int, int], *, threads: int | None = None, max_values: int = _MAX_VALUES
) -> Array:
    """Label every pixel with the largest of the interpolated logits.

    Args:
        logits: N x K x h x w or K x h x w, floating point, any strides and device; K of 1 to 255.
        size: H and W, larger or smaller than h and w.
        threads: at most so many on a CPU; None for `torch.get_num_threads()`.
        max_values: bound of interpolated logits held at once where PyTorch does the work; the kernel holds two rows.

    Returns:
        uint8 N x H x W or H x W; an array for an array, otherwise a tensor on the same device.

    Raises:
        DataError: logits of another shape or type.
        LithesegError: a size that is not positive.
    """
    values = _checked(logits, size)
    return _like(logits, _labels(values, size, threads, max_values))


def upsample_part(logits: Array, part: Part, *, threads: int | None = None) -> Array:
    """The labels of a rectangle, as `upsample_labels` of the whole image's logits has them there.

    Args:
        logits: K x h x w, floating point: the samples around the rectangle, one beyond it where the whole has one.
        part: where they lie.
        threads: at most so many on a CPU; None for `torch.get_num_threads()`.

    Returns:
        uint8, the rectangle's height x width; an array for an array, otherwise a tensor on the same device.

    Raises:
        DataError: logits of another shape or type, or without samples that the rectangle needs.
    """
    top, bottom, left, right = part.box
    values, axes = _checked(logits, (bottom - top, right - left)), []
    for dimension, (start, stop) in ((2, (top, bottom)), (3, (left, right))):
        samples, pixels, first = (pair[dimension - 2] for pair in (part.samples, part.size, part.first))
        if samples == pixels:  # an axis of the same size is copied
            values, first = values.narrow(dimension, start - first, stop - start), start
        elif values.shape[dimension] == stop - start:  # which only looks so: a sample that nothing asks for
            values = torch.cat([values, values.narrow(dimension, -1, 1)], dimension)
        axes.append(_part_of(_axis(samples, pixels), slice(start, stop), first, values.shape[dimension], samples))
    return _like(logits, _by_axes(values, axes[0], axes[1], threads))


def label_maps(
    logits: Array,
    size: tuple[int, int],
    *,
    confidence: Literal["float32", "uint8"] | None = None,
    borders: bool = False,
    threads: int | None = None,
) -> LabelMaps[Array]:
    """As `upsample_labels`, and on request how sure the labels are and where they change.

    Borders cost next to nothing. Confidence needs all classes at every pixel, and so costs what interpolation and
    softmax of everything cost, some twenty times as much as the labels; memory is bounded.

    Raises:
        DataError: logits of another shape or type.
        LithesegError: a size that is not positive, or another kind of confidence.
    """
    if confidence not in (None, "float32", "uint8"):
        raise LithesegError(f"confidence {confidence!r}; choose 'float32', 'uint8' or None")
    values = _checked(logits, size)
    labels = _labels(values, size, threads, _MAX_VALUES)
    sure = None if confidence is None else _like(logits, _confidence(values, size, confidence == "uint8"))
    edges = _like(logits, _borders(labels)) if borders else None
    return LabelMaps(_like(logits, labels), sure, edges)


def warm_up() -> bool:
    """Compile now what the first image on a CPU would wait for, or load it if an earlier process compiled it.

    Compiling takes seconds, once per machine: the result is kept beside the package or, if that is read-only, in the
    user's cache folder; where neither can be written, every process compiles.

    Returns:
        Whether there is a kernel; otherwise PyTorch does the work.
    """
    return _kernel() is not None


def _checked(logits: Array, size: tuple[int, int]) -> Tensor:
    """The logits as a float32 tensor N x K x h x w."""
    if len(size) != 2 or not all(isinstance(extent, int) and extent > 0 for extent in size):
        raise LithesegError(f"size {size!r}: give height and width in pixels")
    if isinstance(logits, np.ndarray):
        # PyTorch knows no negative strides, foreign byte orders or read-only arrays.
        usable = logits.flags.writeable and logits.dtype.isnative and all(stride >= 0 for stride in logits.strides)
        values = torch.from_numpy(logits if usable else np.array(logits, logits.dtype.newbyteorder("="), order="C"))
    else:
        values = logits.detach()
    if not values.is_floating_point() or values.ndim not in (3, 4):
        raise DataError(f"logits {values.dtype} of shape {tuple(values.shape)}; give floating point, N x K x h x w")
    values = (values if values.ndim == 4 else values[None]).float()
    if not (1 <= values.shape[1] <= 255 and values.shape[2] and values.shape[3]):
        raise DataError(f"logits of shape {tuple(logits.shape)}; give 1 to 255 classes and at least one sample")
    return values


def _like(logits: Array, result: Tensor) -> Array:
    """The result, N x H x W, in the manner of the logits."""
    result = result if logits.ndim == 4 else result[0]
    return result.numpy() if isinstance(logits, np.ndarray) else result


def _labels(logits: Tensor, size: tuple[int, int], threads: int | None, max_values: int) -> Tensor:
    if logits.shape[-2:] == torch.Size(size):
        return logits.max(1).indices.to(torch.uint8)  # on a CPU several times as fast as argmax
    kernel = _kernel() if logits.device.type == "cpu" else None
    if kernel is None:
        return _by_torch(logits, size, max_values)
    return _by_kernel(kernel, logits, _axis(logits.shape[2], size[0]), _axis(logits.shape[3], size[1]), threads)


def _by_axes(logits: Tensor, rows: _Axis, columns: _Axis, threads: int | None) -> Tensor:
    """`_labels` for axes that are parts of longer ones."""
    kernel = _kernel() if logits.device.type == "cpu" else None
    if kernel is not None:
        return _by_kernel(kernel, logits, rows, columns, threads)
    down, across = (torch.from_numpy(axis.lower).to(logits.device) for axis in (rows, columns))
    below, right = (
        (lower + 1).clamp(max=count - 1) for lower, count in zip((down, across), logits.shape[2:], strict=True)
    )
    low, high, near, far = (
        torch.from_numpy(w).to(logits.device) for w in (rows.low, rows.high, columns.low, columns.high)
    )
    labels = torch.empty((1, len(low), len(near)), dtype=torch.uint8, device=logits.device)
    for _, band in _bands(logits, (len(low), len(near)), _MAX_VALUES):
        ends = logits[0][:, down[band]] * low[band, None] + logits[0][:, below[band]] * high[band, None]
        labels[0, band] = (ends[..., across] * near + ends[..., right] * far).max(0).indices.to(torch.uint8)
    return labels


def _by_kernel(kernel: Callable[..., None], logits: Tensor, rows: _Axis, columns: _Axis, threads: int | None) -> Tensor:
    labels = torch.empty((len(logits), len(rows.low), len(columns.low)), dtype=torch.uint8)
    tables = (rows.starts, rows.low, rows.high, columns.starts, columns.low, columns.high)
    work = partial(kernel, logits.numpy(), labels.numpy(), *tables)
    _share(work, logits.shape[0] * logits.shape[2], labels.numel(), threads or torch.get_num_threads())
    return labels


def _part_of(axis: _Axis, pixels: slice, first: int, count: int, samples: int) -> _Axis:
    """The axis of some pixels, where `count` of the samples are at hand, from `first` on."""
    lower = axis.lower[pixels] - first
    needed = min(first + int((lower + (axis.high[pixels] > 0)).max()), samples - 1)
    if lower[0] < 0 or needed >= first + count:
        raise DataError(f"logits for the samples {first} to {first + count - 1}, but other ones are needed")
    starts = np.searchsorted(lower, np.arange(count + 1)).astype(np.int64)
    return _Axis(lower, axis.low[pixels], axis.high[pixels], starts)


@lru_cache(maxsize=64)
def _axis(samples: int, pixels: int) -> _Axis:
    """PyTorch's coordinates, (pixel + 1/2) x samples / pixels - 1/2 and not below 0, without its rounding."""
    position = np.maximum((2 * np.arange(pixels, dtype=np.int64) + 1) * samples - pixels, 0)  # in 1 / (2 pixels)
    lower = np.minimum(position // (2 * pixels), samples - 1)
    high = (position / (2 * pixels) - lower).astype(np.float32)
    starts = np.searchsorted(lower, np.arange(samples + 1)).astype(np.int64)
    return _Axis(lower, np.float32(1) - high, high, starts)


# The kernel and its threads


@cache
def _kernel() -> Callable[..., None] | None:
    """The compiled kernel, imported when first needed since that takes time; None where there cannot be one."""
    try:
        return cast(Callable[..., None], importlib.import_module("litheseg.models.upsampling_kernel").fill_labels)
    except ImportError as error:  # such as a NumPy that is newer than Numba knows
        warnings.warn(f"Numba cannot be used ({error}); PyTorch upsamples labels, more slowly")
        return None


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
            self._pool = self._pool or ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="upsampling")
            return self._pool


_threads = _Threads()


def _share(work: Callable[[int, int], None], total: int, pixels: int, threads: int) -> None:
    """Run `work` on the cell rows 0 to `total`, in as many threads as the pixels are worth; this one is among them."""
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


# PyTorch


class _Between(NamedTuple):
    """`_Axis` on a device."""

    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor


def _between(samples: int, pixels: int, device: torch.device) -> _Between:
    axis = _axis(samples, pixels)
    upper = np.minimum(axis.lower + (samples != pixels), samples - 1)  # an axis of the same size is copied
    lower, after, low, high = (torch.from_numpy(part).to(device) for part in (axis.lower, upper, axis.low, axis.high))
    return _Between(lower, after, low, high)


def _bands(logits: Tensor, size: tuple[int, int], max_values: int) -> Iterator[tuple[int, slice]]:
    """(image, rows) that hold at most so many logits, temporary ones included."""
    rows = max(1, max_values // (_TEMPORARIES * logits.shape[1] * size[1]))
    for image in range(len(logits)):
        yield from ((image, slice(top, min(top + rows, size[0]))) for top in range(0, size[0], rows))


def _by_torch(logits: Tensor, size: tuple[int, int], max_values: int) -> Tensor:
    rows = _between(logits.shape[2], size[0], logits.device)
    columns = _between(logits.shape[3], size[1], logits.device)
    winners = logits.max(1).indices.to(torch.uint8)
    mixed = _mixed(logits, winners, size)
    labels = winners[:, rows.lower][:, :, columns.lower]
    for image, band in _bands(logits, size, max_values):
        vertical = _Between(*(part[band] for part in rows))
        y, x = mixed[image, vertical.lower][:, columns.lower].nonzero(as_tuple=True)
        values = _at(logits[image], _Between(*(part[y] for part in vertical)), _Between(*(part[x] for part in columns)))
        labels[image, band][y, x] = values.max(1).indices.to(torch.uint8)
    return labels


def _mixed(logits: Tensor, winners: Tensor, size: tuple[int, int]) -> Tensor:
    """N x h x w: whether the cell to the lower right of a sample has more than one winner, or is not finite."""
    strange = ~logits.isfinite().all(1)
    below, right = (
        (torch.arange(samples, device=logits.device) + (samples != pixels)).clamp(max=samples - 1)
        for samples, pixels in zip(logits.shape[-2:], size, strict=True)
    )
    beside = (winners != winners[:, :, right]) | strange | strange[:, :, right]
    return beside | beside[:, below] | (winners != winners[:, below])


def _at(image: Tensor, rows: _Between, columns: _Between) -> Tensor:
    """The logits of an image, K x h x w, between samples: P x K for P rows and columns. As the kernel does it."""
    samples, width = image.permute(1, 2, 0).flatten(0, 1), image.shape[2]  # all classes of a sample lie together
    low, high = rows.low[:, None], rows.high[:, None]
    ends = [
        samples.index_select(0, rows.lower * width + x) * low + samples.index_select(0, rows.upper * width + x) * high
        for x in (columns.lower, columns.upper)
    ]
    return ends[0] * columns.low[:, None] + ends[1] * columns.high[:, None]


def _confidence(logits: Tensor, size: tuple[int, int], quantised: bool) -> Tensor:
    """N x H x W: float32, the largest probability; uint8, 255 times that, and 0 where it is not a number."""
    rows = _between(logits.shape[2], size[0], logits.device)
    kind = torch.uint8 if quantised else torch.float32
    result = torch.empty((len(logits), *size), dtype=kind, device=logits.device)
    for number, band in _bands(logits, size, _MAX_VALUES):
        image, (lower, upper, low, high) = logits[number], (part[band] for part in rows)
        samples = image[:, lower] * low[:, None] + image[:, upper] * high[:, None]
        # Heights agree, so only columns are interpolated.
        values = F.interpolate(samples[None], (samples.shape[1], size[1]), mode="bilinear", align_corners=False)[0]
        sure = values.sub_(values.amax(0)).exp_().sum(0).reciprocal()
        result[number, band] = (255 * sure).round().nan_to_num(0).to(kind) if quantised else sure
    return result


def _borders(labels: Tensor) -> Tensor:
    result = torch.zeros_like(labels, dtype=torch.bool)
    # NumPy takes a fraction of PyTorch's time for bytes.
    own: Any = labels.numpy() if labels.device.type == "cpu" else labels
    borders: Any = result.numpy() if labels.device.type == "cpu" else result
    borders[:, :, :-1] = own[:, :, :-1] != own[:, :, 1:]
    borders[:, :-1] |= own[:, :-1] != own[:, 1:]
    return result
