"""Bytes from strangers -> pixels: what is too large, animated, damaged or no image at all is refused by name.

Size is judged by the header, before anything is decompressed: an image of a few kilobytes can claim, and hold, billions
of pixels. Colours become RGB as everywhere in litheseg (`to_rgb`: CMYK, 16-bit grey, alpha, EXIF orientation).

Usage:
    >>> image = decode_image(data, max_pixels=25_000_000)  # uint8 H W 3, RGB, upright
"""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
from PIL import UnidentifiedImageError

from litheseg.errors import DataError
from litheseg.masks.reading import TooManyPixelsError, open_image
from litheseg.runtime.rgb import to_rgb
from litheseg.serving.problems import Problem

__all__ = ["FORMATS", "decode_image"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is decoded."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error, DataError)


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode one image.

    Args:
        data: a whole file.
        max_pixels: the largest width times height.

    Returns:
        uint8 H W 3, RGB, upright.

    Raises:
        Problem: "not-an-image", "too-many-pixels", "animated-image" or "damaged-image".
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that the limit here decides on, and of damaged metadata that no pixel needs.
            warnings.simplefilter("ignore")
            with open_image(BytesIO(data), max_pixels, FORMATS) as image:
                # MPO is what Pillow calls a JPEG with a preview behind it, as some telephones write it.
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    raise Problem(
                        "animated-image", f"a {image.format} of several frames; send the one frame that is meant"
                    )
                return to_rgb(image)
    except UnidentifiedImageError as error:
        raise Problem("not-an-image", "the file is not an image that is known here; send JPEG, PNG or WebP") from error
    except TooManyPixelsError as error:
        raise Problem("too-many-pixels", f"{error} here: make the image smaller") from error
    except _BROKEN as error:
        raise Problem("damaged-image", f"the image is damaged or truncated ({error}); send it again") from error
