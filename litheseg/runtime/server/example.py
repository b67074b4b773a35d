"""Something to try a model of street scenes on, where nobody has a photo at hand: a procedural street.

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
from litheseg.streets import render_street

__all__ = ["draw", "example_size", "fits"]

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
    image, _ = render_street(np.random.default_rng(seed), size)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
