"""Something to try a model on where nobody has a photo at hand: a procedural street, or what weighs as much as a photo.

It knows no server.

Usage:
    >>> png = draw(seed=0, size=(360, 480))
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from litheseg.bundle.header import BundleHeader
from litheseg.masks.classes import CAMVID_CLASSES, Classes

__all__ = ["draw", "example_size", "fits", "photo"]

_LONG_SIDE = 960  # pixels


def fits(classes: Classes) -> bool:
    """Whether the classes are those that the streets are made of."""
    return classes.names == CAMVID_CLASSES.names


def example_size(header: BundleHeader) -> tuple[int, int]:
    """Height and width: of the training images' shape, larger where the model makes images small for itself."""
    height, width = header.size
    times = max(1, _LONG_SIDE // max(height, width)) if header.resizes else 1
    return height * times, width * times


def draw(seed: int, size: tuple[int, int]) -> bytes:
    """A street scene as PNG.

    Args:
        seed: which one.
        size: height and width in pixels.
    """
    from litheseg.streets import render_street  # which takes a while to import, and few ask for a street

    image, _ = render_street(np.random.default_rng(seed), size)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def photo(size: tuple[int, int]) -> bytes:
    """A JPEG that is as much work as a photo: large coloured areas, and some noise.

    Args:
        size: height and width in pixels.
    """
    random, (height, width) = np.random.default_rng(0), size
    areas = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = random.integers(-8, 9, (height, width, 1))
    buffer = BytesIO()
    Image.fromarray((np.asarray(areas) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
