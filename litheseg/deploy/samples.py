"""Real images that an export is checked on, with labels where there are any.

They come from what the bundle was trained on, from another data set of the same classes, or from a folder that holds
nothing but images. They are read when they are needed, as often as needed. It does not know what is checked.

Usage:
    >>> samples = open_samples(bundle, "data/camvid")
    >>> samples.origin, len(samples)
    ('camvid, split val', 101)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from litheseg.data.source import Sample, Source, existing_folder, find_images
from litheseg.data.unlabelled import has_labels
from litheseg.errors import DataError
from litheseg.evaluation.bundle import open_bundle_data
from litheseg.masks import reading
from litheseg.models.bundle import Bundle

__all__ = ["Picture", "Samples", "open_samples"]


@dataclass(frozen=True)
class Picture:
    """One image in memory.

    Attributes:
        name: of the image, as its data set or folder calls it.
        image: uint8 H W 3, RGB.
        mask: uint8 H W, train ids, 255 where ignored; None without labels.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Samples:
    """Images to go through.

    Attributes:
        samples: which.
        source: decodes them; None for files of no data set.
        origin: where they come from, in words.
    """

    samples: Sequence[Sample]
    source: Source | None
    origin: str

    def __len__(self) -> int:
        """How many there are."""
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether there is a mask for any."""
        return self.source is not None and any(has_labels(sample) for sample in self.samples)

    def __iter__(self) -> Iterator[Picture]:
        """Each, decoded anew.

        Raises:
            DataError: a file that cannot be read.
        """
        for sample in self.samples:
            if self.source is None:
                assert sample.image is not None
                yield Picture(sample.id, reading.read_image(sample.image))
            else:
                mask = self.source.read_mask(sample) if has_labels(sample) else None
                yield Picture(sample.id, self.source.read_image(sample), mask)

    def thinned(self, count: int) -> Samples:
        """At most `count` of them, evenly spread."""
        if count >= len(self):
            return self
        positions = np.linspace(0, len(self) - 1, count).round().astype(int)
        return replace(self, samples=[self.samples[position] for position in positions])


def open_samples(
    bundle: Bundle, data: str | Path | Source | None = None, *, source: str = "auto", split: str = "val"
) -> Samples:
    """The images to check an export of a bundle on.

    Args:
        bundle: a loaded one.
        data: the folder of a data set, an open one, or a folder of images; None for what the bundle was trained on.
        source: a key of `litheseg.data.SOURCES`, or "auto" to detect the layout of `data`.
        split: of the data set.

    Raises:
        DataError: data that is missing, has other classes, or holds no images.
    """
    if isinstance(data, (str, Path)) and source == "auto":
        folder = existing_folder(data)
        loose = find_images(folder)
        if loose:
            found = [Sample(name, path, None, "unlabelled") for name, path in sorted(loose.items())]
            return Samples(found, None, f"{folder.resolve().name}/")
    opened = open_bundle_data(bundle, data, source=source, split=split).source
    samples = opened.samples(split)
    if not samples:
        raise DataError(f"split '{split}' of {opened.name} holds no images; name another split or folder")
    return Samples(samples, opened, f"{opened.name}, split {split}")
