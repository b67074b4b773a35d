"""Which images int8 is calibrated on: of the training split, or of a folder, never those that the result is checked on.

Ranges fitted to the images that judge the result would make int8 look better than it is. The choice depends on the data
alone: images evenly spread over it, so over all its places and times where files are named in that order. It does not
know networks.

Usage:
    >>> samples, check = calibration_samples(bundle, "data/camvid", count=128)
    >>> samples.origin, check.origin
    ('camvid, split train', 'camvid, split val')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np

from litheseg.data.source import Sample, Source, existing_folder, find_images
from litheseg.deploy.samples import Samples, open_samples
from litheseg.errors import DataError
from litheseg.masks.resizing import resize_image
from litheseg.models.bundle import Bundle

__all__ = ["CALIBRATION_IMAGES", "CalibrationImages", "calibration_samples"]

CALIBRATION_IMAGES = 128
"""Ranges of activations hardly move beyond this many."""


class CalibrationImages(Sequence[np.ndarray]):
    """Images at the size of a network's input, each decoded when it is asked for.

    Args:
        samples: which.
        size: height and width that they are resized to, in pixels; None leaves each at its own.
    """

    def __init__(self, samples: Samples, size: tuple[int, int] | None) -> None:
        self.samples, self.size = samples, size

    def __len__(self) -> int:
        """How many there are."""
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """uint8 h w 3; or some of the images.

        Raises:
            DataError: the image cannot be read.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        one = replace(self.samples, samples=[self.samples.samples[index]])
        image = next(iter(one)).image
        return image if self.size is None else resize_image(image, self.size)


def calibration_samples(
    bundle: Bundle,
    data: str | Path | Source | None = None,
    *,
    source: str = "auto",
    folder: str | Path | None = None,
    split: str = "val",
    count: int = CALIBRATION_IMAGES,
) -> tuple[Samples, Samples]:
    """Images to calibrate on, and others to check on.

    Args:
        bundle: whose network it is.
        data: as of `litheseg.deploy.samples.open_samples`. Of a folder of mere images, a fifth is for the check; a lone
            image does both.
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
        return _in_folder(folder).thinned(count), check
    if check.source is None:
        rest, held_out = _held_out(check)
        return rest.thinned(count), held_out
    if split == "train" or "train" not in check.source.splits():
        raise DataError(
            f"there is no split of '{check.source.name}' to calibrate on, beside '{split}' which is for the check; "
            "name a folder of other images with --calibration"
        )
    return _without_masks(open_samples(bundle, check.source, split="train").thinned(count)), check


def _in_folder(folder: str | Path) -> Samples:
    root = existing_folder(folder)
    found = [Sample(name, path, None, "unlabelled") for name, path in sorted(find_images(root, recursive=True).items())]
    if not found:
        raise DataError(f"{root} holds no images to calibrate on; give a folder of images such as the model will see")
    return Samples(found, None, str(root))


def _without_masks(samples: Samples) -> Samples:
    """The same images; their masks are neither needed nor read."""
    return replace(samples, samples=[replace(sample, mask=None) for sample in samples.samples])


def _held_out(every: Samples) -> tuple[Samples, Samples]:
    """Four of five images, and the fifth."""
    if len(every) == 1:
        return every, every
    parts = [every.samples[place] for place in range(len(every)) if place % 5], every.samples[::5]
    return replace(every, samples=parts[0]), replace(every, samples=parts[1])
