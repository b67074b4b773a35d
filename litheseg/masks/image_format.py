"""What the pixels of a data set, and of the images that a network takes, are: how many channels, which numbers.

One object says it wherever it matters: a source has it, a model file and its exports carry it, and training, export and
prediction ask it.

Usage:
    >>> images = ImageFormat(5, "uint16", mean=(0.1,) * 5, std=(0.05,) * 5)
    >>> images.check(pixels, "field.tif")  # a DataError for anything but uint16 H W 5
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from litheseg.errors import DataError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "MAX_CHANNELS", "ImageFormat", "ImageFormatError"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_CHANNELS = 256

_SCALES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


class ImageFormatError(DataError):
    """An image of other channels or another type than those that it belongs to."""


@dataclass(frozen=True)
class ImageFormat:
    """The form of images: arrays H x W x channels.

    Attributes:
        channels: from 1 to `MAX_CHANNELS`.
        dtype: "uint8", "uint16" or "float32".
        mean: of each channel, of values over `scale`; by default ImageNet's for RGB of 8 bits and 0 for others.
        std: likewise, > 0; by default ImageNet's or 1.

    Raises:
        DataError: a value out of range.
    """

    channels: int = 3
    dtype: str = "uint8"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in _SCALES:
            raise DataError(f"images of {self.dtype}; {', '.join(_SCALES)} can be used")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise DataError(f"images of {self.channels} channels; 1 to {MAX_CHANNELS} can be used")
        usual = (IMAGENET_MEAN, IMAGENET_STD) if self.is_rgb8 else ((0.0,) * self.channels, (1.0,) * self.channels)
        for name, default in zip(("mean", "std"), usual, strict=True):
            values = tuple(float(value) for value in getattr(self, name)) or default
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise DataError(f"{name} is {values}; give a finite number for each of {self.channels} channels")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise DataError(f"std is {self.std}; it must be positive")

    @property
    def scale(self) -> float:
        """What values are divided by before `mean` and `std` apply: the largest whole number, or 1 for float32."""
        return _SCALES[self.dtype]

    @property
    def is_rgb8(self) -> bool:
        """Whether images are what cameras and screens have: three channels of 8 bits."""
        return self.kind == (3, "uint8")

    @property
    def kind(self) -> tuple[int, str]:
        """Channels and type: what two formats must have in common for their images to be exchanged."""
        return self.channels, self.dtype

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.dtype}"

    @classmethod
    def of(cls, image: np.ndarray) -> ImageFormat:
        """The format of an image H x W x C, with the usual mean and standard deviation.

        Raises:
            DataError: no image can be like this.
        """
        return cls(image.shape[2], str(image.dtype))

    def noise(self, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
        """An image H x W x C of random values: of all whole numbers, or normal ones of this mean and deviation."""
        shape = (*size, self.channels)
        if self.dtype == "float32":
            return (random.standard_normal(shape) * self.std + self.mean).astype(np.float32)
        return random.integers(0, int(self.scale) + 1, shape, self.dtype)

    def check(self, image: np.ndarray, where: object, like: object = "the network's images") -> np.ndarray:
        """The image, H x W x C, if it is of this format.

        Args:
            image: with three axes.
            where: its file, or what else it is, for messages.
            like: what has this format, for messages.

        Raises:
            ImageFormatError: it has other channels or another type.
        """
        if (image.shape[2], str(image.dtype)) != self.kind:
            found = f"{image.shape[2]} channel{'s' * (image.shape[2] > 1)} of {image.dtype}"
            raise ImageFormatError(
                f"{where} has {found}, and {like} {self}; convert it or leave it out: all images of a data set are of "
                "one kind, and so are those that its network is given"
            )
        return image

    def require_rgb8(self, purpose: str) -> None:
        """Refuse a network of other images where only RGB of 8 bits comes in.

        Raises:
            DataError: it is one; names `purpose`, for instance "a camera".
        """
        if not self.is_rgb8:
            raise DataError(
                f"{purpose} gives RGB of 8 bits, but this network takes {self}; give it files (.tif, .npy) with "
                "`litheseg predict`, or arrays with `Predictor`"
            )
