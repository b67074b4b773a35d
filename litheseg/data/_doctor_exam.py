"""What the doctor looks at, one sample at a time.

It measures and classifies; what a measurement means for the data set is for `doctor` to say.

The fingerprint is the difference hash: an image is shrunk to 9 x 8 grey pixels and each of the 64 bits says whether a
pixel is brighter than its right neighbour (Krawetz, "Kind of Like That", hackerfactor.com, 2013).

Usage:
    >>> exam = examine(source, source.samples("train")[0])
    >>> exam.trouble
    ()
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from litheseg.data.source import FileSource, Sample, Source
from litheseg.errors import DataError
from litheseg.masks.classes import IGNORE_INDEX, UNKNOWN_INDEX, LabelScheme
from litheseg.masks.reading import TooManyPixelsError

__all__ = ["THUMB", "Exam", "Trouble", "examine", "scheme_of"]

THUMB = 32
"""Edge in pixels of the thumbnail that verifies a likeness."""

_SHOWN_VALUES = 12


@dataclass(frozen=True)
class Trouble:
    """One thing wrong with one file; `code` as in `doctor.Finding`."""

    code: str
    file: str
    detail: str = ""


@dataclass(frozen=True)
class Exam:
    """What one sample looks like.

    Attributes:
        sample: whose exam it is.
        trouble: what is wrong with its files.
        size: (H, W) of the image; None where it cannot be read.
        histogram: int64 K, pixels of each class; None where the mask is missing or cannot be used.
        ignored: ignored pixels in the mask.
        values: pixels by file value, of every mask that can be read.
        digest: of the decoded pixels; "" where they cannot be read.
        bits: bool 64, the difference hash.
        thumb: float32 THUMB THUMB, grey, 0..255.
    """

    sample: Sample
    trouble: tuple[Trouble, ...] = ()
    size: tuple[int, int] | None = None
    histogram: NDArray[np.int64] | None = None
    ignored: int = 0
    values: dict[int, int] = field(default_factory=dict)
    digest: str = ""
    bits: NDArray[np.bool_] | None = None
    thumb: NDArray[np.float32] | None = None

    @property
    def file(self) -> str:
        """The image's file, or the sample's name where there is no file."""
        return _name(self.sample, mask=False)


def scheme_of(source: Source) -> LabelScheme:
    """The source's scheme; train ids as they are for a source that has no files."""
    return source.scheme if isinstance(source, FileSource) else LabelScheme.build(source.classes)


def examine(source: Source, sample: Sample) -> Exam:
    """Read an image and its mask, and note what is wrong with them; never raises `DataError`."""
    trouble: list[Trouble] = []
    size, digest, bits, thumb = None, "", None, None
    try:
        image = source.read_image(sample)
    except TooManyPixelsError as error:
        trouble.append(Trouble("too-large", _name(sample, mask=False), str(error)))
    except DataError as error:
        trouble.append(Trouble("unreadable-image", _name(sample, mask=False), str(error)))
    else:
        size = (image.shape[0], image.shape[1])
        digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(size).encode()).hexdigest()
        bits, thumb = _fingerprint(image)
    histogram, ignored, values = _examine_mask(source, sample, size, trouble)
    return Exam(sample, tuple(trouble), size, histogram, ignored, values, digest, bits, thumb)


def _name(sample: Sample, *, mask: bool) -> str:
    path = sample.mask if mask else sample.image
    return str(path) if path is not None else f"{sample.split}/{sample.id}"


def _examine_mask(
    source: Source, sample: Sample, size: tuple[int, int] | None, trouble: list[Trouble]
) -> tuple[NDArray[np.int64] | None, int, dict[int, int]]:
    """Histogram, ignored pixels and file values; adds to `trouble`."""
    file, scheme = _name(sample, mask=True), scheme_of(source)
    if sample.mask is None and sample.image is not None:
        return None, 0, {}  # unlabelled
    try:
        raw = source.raw_mask(sample)
    except TooManyPixelsError as error:
        trouble.append(Trouble("too-large", file, str(error)))
        return None, 0, {}
    except DataError as error:
        trouble.append(Trouble("unreadable-mask", file, str(error)))
        return None, 0, {}
    if size is not None and raw.shape[:2] != size and not _fits_when_turned(source, sample):
        shown = f"mask {raw.shape[0]}x{raw.shape[1]}, image {size[0]}x{size[1]} (HxW)"
        trouble.append(Trouble("size-mismatch", file, shown))
    if (raw.ndim == 3) != (scheme.encoding == "rgb"):
        trouble.append(Trouble("rgb-mask" if raw.ndim == 3 else "index-mask", file))
        return None, 0, {}
    values, counts = _count(raw)
    known = scheme.table()[np.clip(values, 0, len(scheme.table()) - 1)]
    known[(values < 0) | (values >= len(scheme.table()))] = UNKNOWN_INDEX
    tally = dict(zip(values.tolist(), counts.tolist(), strict=True))
    unknown = values[known == UNKNOWN_INDEX]
    if unknown.size:
        shown = ", ".join(f"{scheme.show(value)} ({tally[value]} px)" for value in unknown[:_SHOWN_VALUES].tolist())
        trouble.append(Trouble("unknown-label", file, shown))
    histogram = np.bincount(known, weights=counts, minlength=256).astype(np.int64)
    return histogram[: len(scheme.classes)], int(histogram[IGNORE_INDEX]), tally


def _fits_when_turned(source: Source, sample: Sample) -> bool:
    """Whether the two sizes agree once EXIF orientations are applied."""
    try:
        return source.read_mask(sample).shape == source.read_image(sample).shape[:2]
    except DataError:
        return False


def _count(raw: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if raw.ndim == 3:
        packed = raw[..., :3].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        values, counts = np.unique(packed, return_counts=True)
        return values, counts.astype(np.int64)
    if raw.dtype == np.uint8:
        every = np.bincount(raw.ravel(), minlength=256)
        return np.flatnonzero(every), every[every > 0]
    values, counts = np.unique(raw, return_counts=True)
    return values.astype(np.int64), counts.astype(np.int64)


def _fingerprint(image: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    grey = Image.fromarray(image).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.float32)
    thumb = np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX), dtype=np.float32)
    return (small[:, :-1] > small[:, 1:]).ravel(), thumb
