"""Samples decoded once, in parallel threads, and kept in RAM as tensors of their own type (or decoded again each time).

The same pass over the files also collects image sizes and the label histogram. Unlabelled images that cannot be read
are left out (`DecodedImages`).

Usage:
    >>> samples = DecodedSamples(source, source.samples("train"), size=(360, 480), resize_masks=True)
    >>> image, mask = samples[0]  # CHW and HW
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from litheseg.data.sources.base import Sample, Source
from litheseg.data.sources.unlabelled import Unlabelled
from litheseg.errors import DataError, listed, printable
from litheseg.machine import cores
from litheseg.masks.resizing import resize_image, resize_mask
from litheseg.progress import track

__all__ = ["DecodedImages", "DecodedSamples", "SampleSize"]

_MOST_THREADS = 16
_MOST_NAMES = 3  # files that a message names
_T = TypeVar("_T")


class SampleSize(NamedTuple):
    """(H, W) of a decoded sample, in pixels."""

    image: tuple[int, int]
    mask: tuple[int, int]


class DecodedSamples:
    """A sequence of (CHW, uint8 HW train ids) pairs.

    Args:
        source: decodes the samples.
        samples: what to hold, in this order.
        size: (H, W) that images are resized to (antialiased); None leaves them as they are.
        resize_masks: resize masks to `size` too (nearest); otherwise they stay at their own size.
        keep: hold everything in RAM from the first use on; otherwise each access decodes.
        quiet: nothing is shown.

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
        self._keep, self._quiet, self._surveyed = keep, quiet, False
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._sizes: list[SampleSize] = []
        self._histogram = self._holding = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The pair at `index`; kept tensors are not copied and must not be written to."""
        if not self._keep:
            return self._decode(self.samples[index])[:2]
        self._survey()
        return self._kept[index]

    def load(self) -> None:
        """Decode now instead of at the first access; does nothing if nothing is kept."""
        if self._keep:
            self._survey()

    def sizes(self) -> list[SampleSize]:
        """The size of each sample; reads every file once, unless `size` is set."""
        if not self._surveyed and self._size is not None and self._resize_masks:
            return [SampleSize(self._size, self._size)] * len(self)
        self._survey()
        return self._sizes

    def histogram(self) -> np.ndarray:
        """int64 [K]: pixels per class over all masks at their own resolution, ignored pixels left out."""
        self._survey()
        return self._histogram

    def holding(self) -> np.ndarray:
        """int64 [K]: how many masks hold a pixel of each class."""
        self._survey()
        return self._holding

    def _survey(self) -> None:
        """One pass over all samples, at the first call, which collects sizes and label counts."""
        if self._surveyed:
            return
        histogram, holding = np.zeros((2, 256), np.int64)
        sizes, kept = list[SampleSize](), list[tuple[Tensor, Tensor]]()
        for image, mask, counts in _parallel(self._decode, self.samples, quiet=self._quiet):
            histogram += counts
            holding += counts > 0
            sizes.append(SampleSize(_size(image), _size(mask)))
            if self._keep:
                kept.append((image, mask))
        # Only a whole pass counts: after a broken file the next use starts again.
        known = len(self._source.classes)
        self._histogram, self._holding, self._sizes, self._kept = histogram[:known], holding[:known], sizes, kept
        self._surveyed = True

    def _decode(self, sample: Sample) -> tuple[Tensor, Tensor, np.ndarray]:
        """Image, mask, and the label counts [256] of the mask before it was resized."""
        image, mask = self._source.read_image(sample), _owned(self._source.read_mask(sample))
        counts, known = np.bincount(mask.ravel(), minlength=256), len(self._source.classes)
        if counts[known:255].any():
            label = known + int(np.flatnonzero(counts[known:255])[0])
            raise DataError(
                f"{sample.mask or sample.id}: label {label} is outside the {known} classes; map it to a class or to 255"
            )
        if self._size is not None and self._resize_masks:
            mask = resize_mask(mask, self._size)
        return _image_tensor(image, self._size), torch.from_numpy(mask), counts


class DecodedImages:
    """A sequence of CHW images without labels; those that cannot be read are left out with a warning.

    Every file is decoded at the first use, also where nothing is kept: a broken one is found before training begins.

    Args:
        unlabelled: what to hold, in this order.
        size: (H, W) that images are resized to (antialiased); None leaves them as they are.
        unreadable: the largest share of files that may be left out, in [0, 1].
        keep: hold everything in RAM; otherwise each access decodes.
        quiet: nothing is shown, and there is no warning.

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
        """The image at `index`; kept tensors are not copied and must not be written to."""
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
                readable.append((sample, _size(image)))
                if self._keep:
                    kept.append(image)
            if broken:
                self._leave_out(broken)
            self._readable, self._kept = readable, kept
        return self._readable

    def _try(self, sample: Sample) -> Tensor | DataError:
        try:
            return self._decode(sample)
        except DataError as error:
            return error

    def _decode(self, sample: Sample) -> Tensor:
        return _image_tensor(self._unlabelled.read_image(sample), self._size)

    def _leave_out(self, broken: Sequence[tuple[Sample, DataError]]) -> None:
        """Warn of files that cannot be read, or refuse to go on without them."""
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
    """Decode in threads (Pillow and the resize free the interpreter), in order."""
    pool = ThreadPoolExecutor(min(_MOST_THREADS, cores()))
    try:
        results = pool.map(decode, samples)
        yield from results if quiet else track(results, "decoding images", len(samples))
    finally:
        # A broken file is reported at once, not after the thousands that wait behind it.
        pool.shutdown(cancel_futures=True)


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]


def _image_tensor(image: np.ndarray, size: tuple[int, int] | None) -> Tensor:
    """H W C to CHW, resized where a size is asked for."""
    image = _owned(image)
    resized = image if size is None else resize_image(image, size)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def _owned(array: np.ndarray) -> np.ndarray:
    """Contiguous and writable, as torch wants it."""
    return np.require(array, requirements=["C", "W"])
