"""Samples decoded once, in parallel threads, and kept in RAM as uint8 tensors (or decoded again each time).

It does not know batches, epochs or devices. Besides the tensors it learns, from the same pass over the files, what
later needs every mask: their sizes and the label histogram. Images without labels come from anywhere and in numbers:
of them, those that cannot be read are left out (`DecodedImages`).

Usage:
    >>> samples = DecodedSamples(source, source.samples("train"), size=(360, 480), resize_masks=True)
    >>> image, mask = samples[0]  # uint8 3HW and HW
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from litheseg.data.source import Sample, Source
from litheseg.data.unlabelled import Unlabelled
from litheseg.errors import DataError, listed, printable
from litheseg.masks.resizing import resize_image, resize_mask

__all__ = ["DecodedImages", "DecodedSamples", "SampleSize"]

_PROGRESS_FROM = 200  # samples; fewer are decoded before a bar would be worth reading
_MOST_THREADS = 16
_MOST_NAMES = 3  # files that a message names
_T = TypeVar("_T")


class SampleSize(NamedTuple):
    """(H, W) of a decoded sample, in pixels."""

    image: tuple[int, int]
    mask: tuple[int, int]


class DecodedSamples:
    """A sequence of (uint8 3HW RGB, uint8 HW train ids) pairs.

    Args:
        source: decodes the samples.
        samples: what to hold, in this order.
        size: (H, W) that images are resized to (antialiased); None leaves them as they are.
        resize_masks: resize masks to `size` too (nearest); otherwise they stay at their own size.
        keep: hold everything in RAM from the first use on; otherwise each access decodes.
        quiet: no progress bar.

    Raises (on use):
        DataError: what the source raises, or a label outside its classes.
    """

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        *,
        size: tuple[int, int] | None,
        resize_masks: bool,
        keep: bool = True,
        quiet: bool = False,
    ) -> None:
        self.samples = tuple(samples)
        self._source, self._size, self._resize_masks = source, size, resize_masks
        self._keep, self._quiet = keep, quiet
        self._kept: list[tuple[Tensor, Tensor]] | None = None
        self._sizes: list[SampleSize] | None = None
        self._histogram: np.ndarray | None = None

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The pair at `index`; kept tensors are handed out themselves and must not be written to."""
        if not self._keep:
            return self._decode(self.samples[index])[:2]
        if self._kept is None:
            self._survey()
        assert self._kept is not None
        return self._kept[index]

    def load(self) -> None:
        """Decode now instead of at the first access; nothing to do where nothing is kept."""
        if self._keep and self._kept is None:
            self._survey()

    def sizes(self) -> list[SampleSize]:
        """The size of each sample; reads every file once, unless `size` says it all."""
        if self._sizes is None and self._size is not None and self._resize_masks:
            return [SampleSize(self._size, self._size)] * len(self)
        if self._sizes is None:
            self._survey()
        assert self._sizes is not None
        return self._sizes

    def histogram(self) -> np.ndarray:
        """int64 [K]: pixels per class over all masks at their own resolution, ignored pixels left out."""
        if self._histogram is None:
            self._survey()
        assert self._histogram is not None
        return self._histogram

    def _survey(self) -> None:
        """One pass over all samples, which fills everything that is known about them."""
        histogram = np.zeros(256, np.int64)
        sizes, kept = [], []
        for image, mask, counts in _parallel(self._decode, self.samples, quiet=self._quiet):
            histogram += counts
            sizes.append(SampleSize((image.shape[-2], image.shape[-1]), (mask.shape[-2], mask.shape[-1])))
            if self._keep:
                kept.append((image, mask))
        self._sizes, self._histogram = sizes, histogram[: len(self._source.classes)]
        self._kept = kept if self._keep else None

    def _decode(self, sample: Sample) -> tuple[Tensor, Tensor, np.ndarray]:
        """Image, mask, and the label counts [256] of the mask before it was resized."""
        image, mask = _owned(self._source.read_image(sample)), _owned(self._source.read_mask(sample))
        counts = np.bincount(mask.ravel(), minlength=256)
        self._check_labels(sample, counts)
        if self._size is not None and self._resize_masks:
            mask = resize_mask(mask, self._size)
        return _image_tensor(image, self._size), torch.from_numpy(mask), counts

    def _check_labels(self, sample: Sample, counts: np.ndarray) -> None:
        known = len(self._source.classes)
        if counts[known:255].any():
            label = known + int(np.flatnonzero(counts[known:255])[0])
            raise DataError(
                f"{sample.mask or sample.id}: label {label} is outside the {known} classes; map it to a class or to 255"
            )


class DecodedImages:
    """A sequence of uint8 3HW RGB images without labels; those that cannot be read are left out with a warning.

    Every file is decoded at the first use, also where nothing is kept: a broken one is found before training begins.

    Args:
        unlabelled: what to hold, in this order.
        size: (H, W) that images are resized to (antialiased); None leaves them as they are.
        unreadable: the largest share of files that may be left out, in [0, 1].
        keep: hold everything in RAM; otherwise each access decodes.
        quiet: no progress bar and no warning.

    Raises (on use):
        DataError: too many files cannot be read.
    """

    def __init__(
        self,
        unlabelled: Unlabelled,
        *,
        size: tuple[int, int] | None,
        unreadable: float = 0.1,
        keep: bool = True,
        quiet: bool = False,
    ) -> None:
        self._unlabelled, self._size, self._unreadable = unlabelled, size, unreadable
        self._keep, self._quiet = keep, quiet
        self._readable: list[tuple[Sample, tuple[int, int]]] | None = None
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        """How many images can be read."""
        return len(self._survey())

    def __getitem__(self, index: int) -> Tensor:
        """The image at `index`; kept tensors are handed out themselves and must not be written to."""
        sample = self._survey()[index][0]
        return self._kept[index] if self._keep else self._decode(sample)

    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each image."""
        return [size for _, size in self._survey()]

    def _survey(self) -> list[tuple[Sample, tuple[int, int]]]:
        """The images that can be read and their sizes, found in one pass at the first call."""
        if self._readable is None:
            readable, kept, broken = [], [], []
            samples = self._unlabelled.samples
            for sample, image in zip(samples, _parallel(self._try, samples, quiet=self._quiet), strict=True):
                if isinstance(image, DataError):
                    broken.append((sample, image))
                    continue
                readable.append((sample, (image.shape[-2], image.shape[-1])))
                if self._keep:
                    kept.append(image)
            self._report(broken)
            self._readable, self._kept = readable, kept
        return self._readable

    def _try(self, sample: Sample) -> Tensor | DataError:
        try:
            return self._decode(sample)
        except DataError as error:
            return error

    def _decode(self, sample: Sample) -> Tensor:
        return _image_tensor(_owned(self._unlabelled.read_image(sample)), self._size)

    def _report(self, broken: Sequence[tuple[Sample, DataError]]) -> None:
        """Warn of files that cannot be read, or refuse to go on without them."""
        if not broken:
            return
        total = len(self._unlabelled)
        names = listed([sample.image or sample.id for sample, _ in broken], _MOST_NAMES)
        message = f"{len(broken)} of {total} unlabelled images cannot be read ({names}; the first: {broken[0][1]})"
        if len(broken) > self._unreadable * total:
            raise DataError(
                f"{message}; mend or remove them, or raise the share that may be left out, now {self._unreadable:g}"
            )
        if not self._quiet:
            warnings.warn(printable(f"{message}; training goes on without them"))


def _parallel(decode: Callable[[Sample], _T], samples: Sequence[Sample], *, quiet: bool) -> Iterator[_T]:
    """Decode in threads (Pillow and the resize free the interpreter), in order, with a bar for many samples."""
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        results: Iterable[_T] = pool.map(decode, samples)
        if len(samples) > _PROGRESS_FROM and not quiet:
            results = track(
                results,
                f"Decoding {len(samples)} images",
                total=len(samples),
                transient=True,
                console=Console(stderr=True),
            )
        yield from results
    finally:
        # A broken file is reported at once, not after the thousands that wait behind it.
        pool.shutdown(cancel_futures=True)


def _image_tensor(image: np.ndarray, size: tuple[int, int] | None) -> Tensor:
    """uint8 H W 3 to uint8 3HW, resized where a size is asked for."""
    resized = image if size is None else resize_image(image, size)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def _owned(array: np.ndarray) -> np.ndarray:
    """uint8, contiguous and writable, as torch wants it."""
    return np.require(array, np.uint8, ["C", "W"])
