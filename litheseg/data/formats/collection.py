"""What every format is read into: images, how the labels of each are had, and what was not taken.

A format is a module of two functions, which `Format` holds: `detect` says what in a folder speaks for the format, and
`read` makes a `Collection` of it. `CollectionSource` is its data set.

Usage:
    >>> tally = Tally()
    >>> tally.add("shapes without an area left out", "a.json")
    >>> tally.notes()
    ('1 shapes without an area left out, e.g. in a.json',)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from litheseg.data.formats.files import StoredFile, opened
from litheseg.data.formats.regions import UNLABELLED, Overlap
from litheseg.data.sources.base import Sample, Source
from litheseg.errors import DataError, did_you_mean, listed
from litheseg.masks import reading
from litheseg.masks.classes import IGNORE_INDEX, Classes
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.opening import MAX_PIXELS

__all__ = [
    "Annotated",
    "Collection",
    "CollectionSource",
    "Format",
    "ImportOptions",
    "Tally",
    "missing_refusal",
]


@dataclass(frozen=True)
class ImportOptions:
    """How a format is to be read.

    Attributes:
        overlap: which of two shapes counts; None for the format's own rule.
        images: the folder of the image files; None to look for them.
        labels: of several label files those whose names match, such as "instances_*.json"; "" for all.
        max_pixels: of an image, width times height by its header.
        most_frequent: how many classes are kept; None for all.
        classes: names of those that are kept; none for all.
    """

    overlap: Overlap | None = None
    images: Path | None = None
    labels: str = ""
    max_pixels: int = MAX_PIXELS
    most_frequent: int | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Annotated:
    """An image and its labels.

    Attributes:
        id: unique in its split.
        split: "train", "val" or "test".
        image: the file.
        labels: takes the (H, W) of the upright image and gives uint8 H W: classes, `IGNORE_INDEX`, or `UNLABELLED`
            where nobody said anything; at the size that the labels were drawn at.
        where: the labels' file, for messages.
    """

    id: str
    split: str
    image: StoredFile
    labels: Callable[[tuple[int, int]], np.ndarray]
    where: Path


@dataclass(frozen=True)
class Collection:
    """All that a folder holds.

    Attributes:
        classes: names and colours.
        items: the images that have labels.
        complete: every pixel was to be labelled, so that those without a label are unknown; else they are background.
        missing: images and masks that are named, or belong to others, and are not there.
        notes: what was left out, and other things worth knowing, in a sentence each.
    """

    classes: Classes
    items: tuple[Annotated, ...]
    complete: bool
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A way to store labels.

    Attributes:
        title: what it is called.
        detect: what in a folder (or about a file) speaks for it; "" if it is something else.
        read: reads it.
        looked_for: what `detect` looks for, for messages.
        plain: what it reads lies in folders that may also be taken for plain ones of images and masks.
    """

    title: str
    detect: Callable[[Path], str]
    read: Callable[[Path, ImportOptions], Collection]
    looked_for: str
    plain: bool = False


@dataclass
class Tally:
    """Counts what is left out, and where it was met first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, where: object, count: int = 1) -> None:
        """Count something, in the plural, and remember where."""
        self.counts[what] += count
        self.first.setdefault(what, str(where))

    def notes(self) -> tuple[str, ...]:
        """A sentence each."""
        return tuple(f"{count} {what}, e.g. in {self.first[what]}" for what, count in self.counts.items())


class CollectionSource(Source):
    """The data set of a collection.

    Args:
        collection: the images and labels.
        unlabelled: the class of pixels without a label; `IGNORE_INDEX` if they are to be ignored.
        first: the place in `classes` of what the labels call class 0.
        max_pixels: of an image, width times height by its header.
    """

    licence = citation = ""

    def __init__(
        self,
        collection: Collection,
        *,
        unlabelled: int = IGNORE_INDEX,
        first: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = ""
        self.classes, self.max_pixels = collection.classes, max_pixels
        self._table = np.full(256, IGNORE_INDEX, np.uint8)
        self._table[: len(self.classes) - first] = np.arange(first, len(self.classes))
        self._table[UNLABELLED] = unlabelled
        self._items = {(item.split, item.id): item for item in _with_own_ids(collection.items)}

    @cached_property
    def images(self) -> ImageFormat:
        """See `Source.images`: what the first image is that can be read."""
        for item in self._items.values():
            with suppress(DataError):
                return ImageFormat.of(reading.read_image(opened(item.image), max_pixels=self.max_pixels))
        return ImageFormat()

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        present = {split for split, _ in self._items}
        return tuple(split for split in ("train", "val", "test") if split in present)

    def samples(self, split: str) -> tuple[Sample, ...]:
        """See `Source.samples`."""
        if split not in self.splits():
            raise DataError(f"there is no split '{split}'.{did_you_mean(split, self.splits())}")
        items = sorted((item for item in self._items.values() if item.split == split), key=lambda item: item.id)
        return tuple(
            Sample(item.id, item.image if isinstance(item.image, Path) else None, item.where, split) for item in items
        )

    def read_image(self, sample: Sample) -> np.ndarray:
        """See `Source.read_image`."""
        image = opened(self._items[sample.split, sample.id].image)
        pixels = reading.read_image(image, max_pixels=self.max_pixels)
        return self.images.check(pixels, sample.image or sample.id, "the first image")

    def read_mask(self, sample: Sample) -> np.ndarray:
        """See `Source.read_mask`."""
        labels: np.ndarray = self._table[self.raw_mask(sample)]
        return labels

    def raw_mask(self, sample: Sample) -> np.ndarray:
        """The labels as they are drawn, `UNLABELLED` where there are none."""
        item = self._items[sample.split, sample.id]
        image = opened(item.image)
        size = reading.upright_size(image, max_pixels=self.max_pixels)
        try:
            labels = item.labels(size)
        except DataError as error:
            raise DataError(f"{item.where}: image '{item.id}': {error}") from error
        return reading.turned_like(image, labels, item.where, max_pixels=self.max_pixels)


def missing_refusal(missing: Sequence[str]) -> str:
    """What to say where files are absent."""
    return (
        f"{len(missing)} files that the labels name are not there: {listed(missing)}; restore them, name the folder of "
        "the images with --images, or go on without them with --skip-missing"
    )


def _with_own_ids(items: Iterable[Annotated]) -> list[Annotated]:
    """Ids that differ within each split: an image whose id is taken has its ending, and if need be a number, added."""
    taken: set[tuple[str, str]] = set()
    result = []
    for item in items:
        ending = item.image.suffix.lstrip(".") if isinstance(item.image, Path) else ""
        tries = [item.id, f"{item.id}_{ending}", *(f"{item.id}_{number}" for number in range(2, len(taken) + 3))]
        name = next(key for key in tries if (item.split, key) not in taken)
        taken.add((item.split, name))
        result.append(item if name == item.id else Annotated(name, item.split, item.image, item.labels, item.where))
    return result
