"""Labels at full size straight from low-resolution logits: `litheseg.masks.upsampling` for tensors on any device.

NumPy sees a tensor on a CPU without a copy, and `masks.upsampling` does the work; on other devices PyTorch operations
give the same labels: only cells whose corners disagree are interpolated. All types are interpolated in float32: PyTorch
would round bfloat16 and float16 again. `label_maps` also gives the labels' confidence and borders.

Usage:
    >>> labels = upsample_labels(logits, (360, 480))  # N x 11 x 45 x 60 -> uint8 N x 360 x 480
    >>> maps = label_maps(logits, (360, 480), confidence="uint8", borders=True)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.errors import LithesegError
from litheseg.masks import upsampling as masks
from litheseg.masks.axes import axis_of

__all__ = ["LabelMaps", "label_maps", "upsample_labels"]

_MAX_VALUES = 1 << 24  # of interpolated logits that PyTorch holds at once
_TEMPORARIES = 8  # arrays of that size that are alive together
_IN_NUMPY = ("cpu",)  # devices whose memory NumPy sees


@dataclass(frozen=True)
class LabelMaps:
    """Labels at full size, and on request their confidence and borders; without N if the logits had none.

    Attributes:
        labels: uint8 N x H x W, class indices.
        confidence: N x H x W, probability of the label: float32 in [1/K, 1], or uint8, 255 times that, rounded; None
            unless asked for.
        borders: bool N x H x W, whether the right or the lower neighbour has another label; None unless asked for.
    """

    labels: Tensor
    confidence: Tensor | None = None
    borders: Tensor | None = None

    @property
    def first(self) -> LabelMaps:
        """Those of the first image, without N."""
        confidence, borders = (None if maps is None else maps[0] for maps in (self.confidence, self.borders))
        return LabelMaps(self.labels[0], confidence, borders)


def upsample_labels(
    logits: Tensor, size: tuple[int, int], *, threads: int | None = None, max_values: int = _MAX_VALUES
) -> Tensor:
    """Label every pixel with the largest of the interpolated logits.

    Args:
        logits: N x K x h x w or K x h x w, floating point, any strides and device; K of 1 to 255.
        size: H and W, larger or smaller than h and w.
        threads: at most so many on a CPU; None for `torch.get_num_threads()`.
        max_values: bound of interpolated logits held at once on other devices.

    Returns:
        uint8 N x H x W or H x W on the same device.

    Raises:
        DataError: logits of another shape or type.
        LithesegError: a size that is not positive.
    """
    labels = _labels(_checked(logits, size), size, threads, max_values)
    return labels if logits.ndim == 4 else labels[0]


def label_maps(
    logits: Tensor,
    size: tuple[int, int],
    *,
    confidence: Literal["float32", "uint8"] | None = None,
    borders: bool = False,
    threads: int | None = None,
) -> LabelMaps:
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
    maps = LabelMaps(
        labels,
        None if confidence is None else _confidence(values, size, confidence == "uint8"),
        _borders(labels) if borders else None,
    )
    return maps if logits.ndim == 4 else maps.first


def _checked(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The logits as a float32 tensor N x K x h x w."""
    masks.check_size(size)
    masks.check_logits(logits.shape, logits.dtype, logits.is_floating_point())
    return (logits if logits.ndim == 4 else logits[None]).detach().float()


def _labels(logits: Tensor, size: tuple[int, int], threads: int | None, max_values: int) -> Tensor:
    if logits.device.type in _IN_NUMPY:
        labels = masks.upsample_labels(logits.numpy(), size, threads=threads or torch.get_num_threads())
        return torch.from_numpy(labels)
    if logits.shape[-2:] == torch.Size(size):
        return logits.max(1).indices.to(torch.uint8)
    return _by_torch(logits, size, max_values)


class _Between(NamedTuple):
    """An `Axis` on a device; `upper` is the sample after `lower`."""

    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor


def _between(samples: int, pixels: int, device: torch.device) -> _Between:
    axis = axis_of(samples, pixels)
    upper = np.minimum(axis.lower + axis.step, samples - 1)
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
