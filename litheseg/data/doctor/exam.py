"""What one sample of a data set looks like: its image and mask are read once, and what is wrong with them is noted.

Usage:
    >>> exam = examine(source, source.samples("train")[0])
    >>> exam.size, exam.labelled_pixels, exam.troubles
    ((360, 480), 167210, [])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from litheseg.data.doctor.learnable import filled_cells
from litheseg.data.sources.base import FileSource, Sample, Source
from litheseg.data.sources.portraits import Portrait
from litheseg.errors import DataError
from litheseg.masks.classes import IGNORE_INDEX, UNKNOWN_INDEX, LabelScheme
from litheseg.masks.image_format import ImageFormatError
from litheseg.masks.opening import TooManyPixelsError
from litheseg.masks.reading import has_transparency, mask_numbers

__all__ = ["Exam", "examine", "pixels_by_class", "pixels_by_value", "scheme_of"]

_UNKNOWN_SHOWN = 12


@dataclass
class Exam:
    """What one sample looks like.

    Attributes:
        sample: whose exam it is.
        troubles: (code, file, detail) of what is wrong with its files.
        size: (H, W) of the image; None where it cannot be read.
        histogram: int64 K, pixels of each class; None where the mask is missing or cannot be used.
        ignored: ignored pixels in the mask.
        filled: of `filled_cells`, where there is a histogram and no value is unknown.
        values: pixels by file value, of every mask that can be read.
        portrait: what the image looks like; None where it cannot be read.
        span: its smallest and largest value; None likewise.
        transparent: whether it has a fourth channel that is not opaque.
    """

    sample: Sample
    troubles: list[tuple[str, str, str]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    histogram: np.ndarray | None = None
    ignored: int = 0
    filled: np.ndarray | None = None
    values: dict[int, int] = field(default_factory=dict)
    portrait: Portrait | None = None
    span: tuple[float, float] | None = None
    transparent: bool = False

    @property
    def file(self) -> str:
        """The image's file, or the sample's name where there is no file."""
        return _name(self.sample, self.sample.image)

    @property
    def labelled_pixels(self) -> int:
        """Pixels that are not ignored."""
        return 0 if self.histogram is None else int(self.histogram.sum())


def examine(source: Source, sample: Sample) -> Exam:
    """Read an image and its mask, and note what is wrong with them; never raises `DataError`."""
    exam = Exam(sample)
    image = _read(exam, source.read_image, "image", exam.file)
    if image is not None:
        exam.size = (image.shape[0], image.shape[1])
        exam.portrait = Portrait.of(image, exam.file, sample.id)
        exam.span = float(image.min(initial=0)), float(image.max(initial=0))
        exam.transparent = isinstance(source, FileSource) and sample.image is not None and _transparent(sample.image)
    if sample.mask is not None or sample.image is None:
        _examine_mask(exam, source)
    return exam


def _transparent(image: Path) -> bool:
    try:
        return has_transparency(image)
    except DataError:  # of what was read before: too large for the limit here
        return False


def _examine_mask(exam: Exam, source: Source) -> None:
    file, scheme = _name(exam.sample, exam.sample.mask), scheme_of(source)
    raw = _read(exam, source.raw_mask, "mask", file)
    if raw is None:
        return
    if exam.size is not None and raw.shape[:2] != exam.size and not _fits_when_turned(source, exam.sample):
        shown = f"mask {raw.shape[0]}x{raw.shape[1]}, image {exam.size[0]}x{exam.size[1]} (HxW)"
        exam.troubles.append(("size-mismatch", file, shown))
    numbers = mask_numbers(raw, scheme.encoding)
    if numbers is None:
        exam.troubles.append(("rgb-mask" if raw.ndim == 3 else "index-mask", file, ""))
        return
    values, counts = np.unique(numbers, return_counts=True)
    values, table = values.astype(np.int64), scheme.table()
    known = table[np.clip(values, 0, len(table) - 1)]
    known[(values < 0) | (values >= len(table))] = UNKNOWN_INDEX
    exam.values = dict(zip(values.tolist(), counts.tolist(), strict=True))
    unknown = values[known == UNKNOWN_INDEX][:_UNKNOWN_SHOWN].tolist()
    if unknown:
        shown = ", ".join(f"{scheme.show(value)} ({exam.values[value]} px)" for value in unknown)
        exam.troubles.append(("unknown-label", file, shown))
    histogram = np.bincount(known, weights=counts, minlength=256).astype(np.int64)
    exam.histogram, exam.ignored = histogram[: len(scheme.classes)], int(histogram[IGNORE_INDEX])
    if not unknown and len(scheme.classes):
        exam.filled = filled_cells(table[numbers], len(scheme.classes))


def _read(exam: Exam, read: Callable[[Sample], np.ndarray], kind: str, file: str) -> np.ndarray | None:
    try:
        return read(exam.sample)
    except DataError as error:
        code = f"unreadable-{kind}"
        for known, name in ((TooManyPixelsError, "too-large"), (ImageFormatError, "mixed-images")):
            code = name if isinstance(error, known) else code
        exam.troubles.append((code, file, str(error)))
        return None


def _fits_when_turned(source: Source, sample: Sample) -> bool:
    """Whether the two sizes agree once EXIF orientations are applied."""
    try:
        return source.read_mask(sample).shape == source.read_image(sample).shape[:2]
    except DataError:
        return False


def _name(sample: Sample, path: Path | None) -> str:
    return str(path) if path is not None else f"{sample.split}/{sample.id}"


def scheme_of(source: Source) -> LabelScheme:
    """The source's scheme; train ids as they are for a source that has no files."""
    return source.scheme if isinstance(source, FileSource) else LabelScheme.build(source.classes)


def pixels_by_class(exams: Iterable[Exam], classes: int) -> np.ndarray:
    """int64 K: pixels by class over all usable masks."""
    return sum((exam.histogram for exam in exams if exam.histogram is not None), np.zeros(classes, np.int64))


def pixels_by_value(exams: Iterable[Exam]) -> Counter[int]:
    """Pixels by file value."""
    result: Counter[int] = Counter()
    for exam in exams:
        result.update(exam.values)
    return result
