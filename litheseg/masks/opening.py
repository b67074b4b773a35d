"""Image files are opened here, and judged by their headers before anything is decompressed.

A file of a few kilobytes can hold billions of pixels. `MAX_PIXELS` is the default limit of every reader.

Usage:
    >>> with open_image("images/a.jpg", max_pixels=1_000_000) as image:
    ...     pixels = np.asarray(image)
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from litheseg.errors import DataError
from litheseg.masks.arrays import ArrayFile, array_file

__all__ = ["MAX_PIXELS", "TooManyPixelsError", "judged_array", "open_image", "opened"]

MAX_PIXELS = 160_000_000
"""Width times height: medium-format cameras have up to 151 million, and decoding takes some 16 bytes for each."""

_BYTES = 16  # of each of them, in arrays of many channels
# What Pillow's decoders raise on damaged files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, RuntimeError, LookupError, TypeError)


class TooManyPixelsError(DataError):
    """An image whose header claims more pixels than are taken."""


@contextmanager
def open_image(
    file: str | Path | IO[bytes], max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """An image whose header has been read and whose size has been judged; it may be decoded within the context.

    Args:
        file: a path, or a file.
        max_pixels: the largest width times height; Pillow's own limit is raised to it meanwhile.
        formats: Pillow's names of those that may be decoded; None for all.

    Raises:
        TooManyPixelsError: the header claims more pixels; or a tile or frame in the file twice as many.
        Exception: what else Pillow makes of damaged files.
    """
    try:
        with _PILLOW_LIMIT.at_least(math.inf):  # which would warn of what is judged here
            image = Image.open(file, formats=formats)
        with image, _PILLOW_LIMIT.at_least(max_pixels):
            if image.width * image.height > max_pixels:
                raise TooManyPixelsError(_too_many(f"{image.width} x {image.height}", max_pixels))
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixelsError(_too_many(f"more than {2 * max_pixels}", max_pixels)) from error


@contextmanager
def opened(path: str | Path | IO[bytes], max_pixels: int) -> Iterator[Image.Image]:
    """`open_image`, whose errors name the file."""
    try:
        with open_image(path, max_pixels) as image:
            yield image
    except TooManyPixelsError as error:
        raise TooManyPixelsError(_remedied(path, str(error))) from error
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; restore it or remove its partner") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read; replace or remove it") from error
    except _BROKEN as error:
        raise DataError(f"{path} is damaged or truncated ({error}); replace or remove it") from error


def judged_array(path: str | Path | IO[bytes], max_pixels: int) -> ArrayFile | None:
    """`array_file`, whose size has been judged."""
    found = array_file(path)
    if (
        found is not None
        and max(1, found.dtype.itemsize * found.shape[2] / _BYTES) * math.prod(found.size) > max_pixels
    ):
        claimed = f"{found.size[1]} x {found.size[0]} ({found.shape[2]} of {found.dtype} each)"
        raise TooManyPixelsError(_remedied(path, _too_many(claimed, max_pixels)))
    return found


def _remedied(path: object, problem: str) -> str:
    return (
        f"{path}: {problem}; make it smaller, cut it into tiles, or allow more (--max-pixels, for training "
        "--data.max_pixels)"
    )


def _too_many(found: str, max_pixels: int) -> str:
    return f"{found} pixels, and at most {max_pixels} are decoded"


class _PillowLimit:
    """Raises Pillow's own limit on pixels, one number for the whole process, while images are decoded here."""

    def __init__(self) -> None:
        self._lock, self._asked = threading.Lock(), list[float]()
        self._own: int | None = None

    @contextmanager
    def at_least(self, pixels: float) -> Iterator[None]:
        """Raised to `pixels`, unless it is higher or there is none."""
        with self._lock:
            if not self._asked:
                self._own = Image.MAX_IMAGE_PIXELS
            self._asked.append(pixels)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._asked.remove(pixels)
                self._set()

    def _set(self) -> None:
        limit = math.inf if self._own is None else max(self._own, *self._asked, 0)
        Image.MAX_IMAGE_PIXELS = None if limit == math.inf else int(limit)


_PILLOW_LIMIT = _PillowLimit()
