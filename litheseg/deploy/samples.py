"""Real images that an export is checked on, and others that int8 is calibrated on, with labels where there are any.

They come from what the bundle was trained on, from another data set of the same classes, or from a folder that holds
nothing but images, and are decoded each time they are gone through. Calibration never sees the images of the check:
ranges fitted to the images that judge the result would make int8 look better than it is.

Usage:
    >>> samples = open_samples(bundle, "data/camvid")
    >>> samples.origin, len(samples)
    ('camvid, split val', 101)
    >>> calibration, check = calibration_samples(bundle, "data/camvid", count=128)
    >>> calibration.origin, check.origin
    ('camvid, split train', 'camvid, split val')
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from litheseg.data.sources.base import Sample, Source, existing_folder, find_images, spread
from litheseg.errors import DataError
from litheseg.evaluation.bundle import open_bundle_data
from litheseg.masks import reading
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.resizing import resize_image
from litheseg.models.bundle import Bundle

__all__ = ["CALIBRATION_IMAGES", "CalibrationImages", "Picture", "Samples", "calibration_samples", "open_samples"]

CALIBRATION_IMAGES = 128
"""Ranges of activations hardly move beyond this many."""


@dataclass(frozen=True)
class Picture:
    """One image in memory.

    Attributes:
        name: of the image, as its data set or folder calls it.
        image: H W C.
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
        images: what the network takes.
    """

    samples: Sequence[Sample]
    source: Source | None
    origin: str
    images: ImageFormat = ImageFormat()  # noqa: RUF009 - frozen

    def __len__(self) -> int:
        """How many there are."""
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether there is a mask for any."""
        return self.source is not None and any(sample.labelled for sample in self.samples)

    def __iter__(self) -> Iterator[Picture]:
        """Each, decoded anew.

        Raises:
            DataError: a file that cannot be read.
        """
        for sample in self.samples:
            if self.source is None:
                assert sample.image is not None
                yield Picture(sample.id, reading.read_image(sample.image, self.images))
            else:
                mask = self.source.read_mask(sample) if sample.labelled else None
                yield Picture(sample.id, self.source.read_image(sample), mask)

    def thinned(self, count: int) -> Samples:
        """At most `count` of them, evenly spread."""
        return self if count >= len(self) else replace(self, samples=spread(self.samples, count))


@dataclass(frozen=True)
class CalibrationImages:
    """Images at the size of a network's input, decoded each time they are gone through.

    Attributes:
        samples: which.
        size: height and width that they are resized to, in pixels; None leaves each at its own.
    """

    samples: Samples
    size: tuple[int, int] | None

    def __len__(self) -> int:
        """How many there are."""
        return len(self.samples)

    def __iter__(self) -> Iterator[np.ndarray]:
        """H w C each; errors as of `Samples`."""
        for picture in self.samples:
            yield picture.image if self.size is None else resize_image(picture.image, self.size)


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
            return _loose_samples(loose, f"{folder.resolve().name}/", bundle.header.images)
    found = open_bundle_data(bundle, data, source=source, split=split)
    opened, images = found.source, found.images
    samples = opened.samples(split)
    if not samples:
        raise DataError(f"split '{split}' of {opened.name} holds no images; name another split or folder")
    return Samples(samples, opened, f"{opened.name}, split {split}", images)


def calibration_samples(
    bundle: Bundle,
    data: str | Path | Source | None = None,
    *,
    source: str = "auto",
    folder: str | Path | None = None,
    split: str = "val",
    count: int = CALIBRATION_IMAGES,
) -> tuple[Samples, Samples]:
    """Images to calibrate int8 on, evenly spread over the training split, and others to check the result on.

    Args:
        bundle: whose network it is.
        data: as of `open_samples`. Of a folder of mere images, a fifth is for the check; a lone image does both.
        source: likewise.
        folder: of images to calibrate on instead of the training split.
        split: to check on.
        count: calibrate on so many images at most.

    Raises:
        DataError: no data, no training split and no folder, a folder without images, or `count` below 1.
    """
    if count < 1:
        raise DataError(f"{count} images to calibrate on; give 1 or more, such as {CALIBRATION_IMAGES}")
    check = open_samples(bundle, data, source=source, split=split)
    if folder is not None:
        root = existing_folder(folder)
        calibration = _loose_samples(find_images(root, recursive=True), str(root), bundle.header.images)
        if not calibration.samples:
            raise DataError(
                f"{root} holds no images to calibrate on; give a folder of images such as the model will see"
            )
    elif check.source is None:
        every, images = check, check.samples
        if len(every) > 1:
            check = replace(every, samples=images[::5])
            images = [image for place, image in enumerate(images) if place % 5]
        calibration = replace(every, samples=images)
    elif split == "train" or "train" not in check.source.splits():
        raise DataError(
            f"there is no split of '{check.source.name}' to calibrate on, beside '{split}' which is for the check; "
            "name a folder of other images with --calibration"
        )
    else:
        training = open_samples(bundle, check.source, split="train")
        calibration = replace(training, samples=[replace(sample, mask=None) for sample in training.samples])
    return calibration.thinned(count), check


def _loose_samples(files: dict[str, Path], origin: str, images: ImageFormat) -> Samples:
    samples = [Sample(name, path, None, "unlabelled") for name, path in sorted(files.items())]
    return Samples(samples, None, origin, images)
