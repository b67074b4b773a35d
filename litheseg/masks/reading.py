"""Image and mask files -> arrays, whatever a camera or a labelling tool made of them.

Images become uint8 RGB: EXIF orientation applied, grey and CMYK converted, alpha laid over black, 16-bit grey divided
by 256 (never stretched image by image: equal values stay equal). Masks are never converted: a palette PNG keeps its
indices, a 4-bit grey PNG its values, a 16-bit one all of its bits.

Size is judged by the header, before anything is decompressed: a file of a few kilobytes can hold billions of pixels.
`MAX_PIXELS` is the default limit of every reader here.

Orientation: EXIF, JEITA CP-3451, tag 0x0112.

Usage:
    >>> image = read_image("images/a.jpg")                       # uint8 H W 3
    >>> mask = encode(read_raw_mask("masks/a.png"), scheme, "masks/a.png")     # uint8 H W: train ids, 255 ignored
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

import numpy as np
from PIL import Image, UnidentifiedImageError

from litheseg.errors import DataError
from litheseg.masks.classes import UNKNOWN_INDEX, LabelScheme
from litheseg.masks.tiff import channels_of

__all__ = [
    "MAX_PIXELS",
    "TooManyPixelsError",
    "count_pixels",
    "encode",
    "has_transparency",
    "mask_numbers",
    "open_image",
    "read_image",
    "read_mask",
    "read_raw_mask",
    "turned_like",
    "upright_size",
]

MAX_PIXELS = 160_000_000
"""Width times height: medium-format cameras have up to 151 million, and decoding takes some 16 bytes for each."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # orientations that swap height and width
_ANIMATED = ("GIF", "PNG", "WEBP")  # further pages of a TIFF or MPO file are previews
_GREY_STEP = {"L;2": 85, "L;4": 17}  # Pillow stretches 2- and 4-bit grey to 0..255 by these factors
# What Pillow's decoders raise on damaged files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, RuntimeError, LookupError, TypeError)


class TooManyPixelsError(DataError):
    """An image whose header claims more pixels than are taken."""


def read_image(path: str | Path | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image: uint8 H W 3, RGB, upright.

    Args:
        path: the file, or an open one whose text is its name.
        max_pixels: the largest width times height.

    Raises:
        TooManyPixelsError: the header claims more pixels.
        DataError: a file that is missing, no image, animated, truncated, or of floating-point pixels.
    """
    with _opened(path, max_pixels) as image:
        if image.format in _ANIMATED and getattr(image, "is_animated", False):
            raise DataError(f"{path} is animated; save the frame that is meant, or label it with `litheseg video`")
        orientation = _orientation(image)
        return _upright(np.array(_to_rgb(image, path)), orientation)


def count_pixels(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> int:
    """Width times height of an image; only its header is read.

    Raises:
        TooManyPixelsError: there are more than `max_pixels`.
        DataError: a file that is missing or no image.
    """
    with _opened(path, max_pixels) as image:
        return image.width * image.height


def has_transparency(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether an image has a fourth channel that is not opaque everywhere; only files with one are decoded.

    Raises:
        DataError: as `read_image`.
    """
    with _opened(path, max_pixels) as image:
        if image.mode not in ("RGBA", "LA", "PA"):
            return False
        return bool(np.asarray(image.getchannel("A")).min(initial=255) < 255)


def upright_size(path: str | Path | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(H, W) of an image as `read_image` gives it; only its header is read.

    Raises:
        DataError: as `count_pixels`.
    """
    with _opened(path, max_pixels) as image:
        return _swapped((image.height, image.width), _orientation(image))


def turned_like(
    image: str | Path | IO[bytes], labels: np.ndarray, where: str | Path, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Labels that were drawn on an image, upright: turned as its EXIF tag says where they fit only so.

    Args:
        image: the image.
        labels: uint8 H W.
        where: their file, for messages.
        max_pixels: of the image.

    Raises:
        DataError: sizes that differ.
    """
    size = (labels.shape[0], labels.shape[1])
    return _upright(labels, _agree(where, image, size, 1, max_pixels))


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


def read_raw_mask(path: str | Path | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a mask as it lies in the file: integers H W, or uint8 H W 3 where the file holds colours; not rotated.

    Raises:
        TooManyPixelsError: the header claims more than `max_pixels`.
        DataError: a file that is missing, no image, truncated, a JPEG (its labels are smeared), or of floats.
    """
    with _opened(path, max_pixels) as image:
        return _pixels(image, path)


def read_mask(
    path: str | Path, scheme: LabelScheme, image: str | Path | None = None, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode a mask to train ids: uint8 H W, `IGNORE_INDEX` ignored, upright.

    A mask follows its own EXIF tag; one without a tag follows its image's where only then the two sizes agree.

    Args:
        path: the mask.
        scheme: what its values mean.
        image: the image it belongs to; when given, the sizes are compared (only the image's header is read).
        max_pixels: the largest width times height, of either.

    Raises:
        DataError: as `read_raw_mask` and `encode`, and for sizes that differ.
    """
    with _opened(path, max_pixels) as mask:
        orientation = _orientation(mask)
        values = _pixels(mask, path)
    if image is not None:
        orientation = _agree(path, image, (values.shape[0], values.shape[1]), orientation, max_pixels)
    return _upright(encode(values, scheme, path), orientation)


def encode(values: np.ndarray, scheme: LabelScheme, path: str | Path) -> np.ndarray:
    """Map file values to train ids.

    Args:
        values: as `read_raw_mask` gives them.
        scheme: what the values mean.
        path: the file, for messages.

    Returns:
        uint8 H W; `IGNORE_INDEX` where ignored.

    Raises:
        DataError: values that the scheme does not know, or colours where indices are expected (and the reverse).
    """
    numbers = mask_numbers(values, scheme.encoding)
    if numbers is None and scheme.encoding == "rgb":
        raise DataError(f"{path}: an index mask where colours are expected; set 'encoding: index' in classes.yaml")
    if numbers is None:
        raise DataError(
            f"{path}: an RGB mask where class indices are expected; set 'encoding: rgb' and each class's 'color' in "
            "classes.yaml"
        )
    if scheme.encoding == "index" and numbers.dtype != np.uint8:
        outside = (numbers < 0) | (numbers > 0xFFFF)
        if outside.any():
            raise _outside(numbers[outside], scheme, path)
    labels = scheme.table()[numbers]
    unknown = labels == UNKNOWN_INDEX
    if unknown.any():
        raise _outside(numbers[unknown], scheme, path)
    return labels


def mask_numbers(values: np.ndarray, encoding: str) -> np.ndarray | None:
    """One number for each pixel of a mask: its index, or its colour as 0xRRGGBB; None for a mask of the other encoding.

    Args:
        values: as `read_raw_mask` gives them. Grey ones in three equal channels are indices as well.
        encoding: "index" or "rgb".
    """
    if encoding == "rgb":
        return values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32) if values.ndim == 3 else None
    if values.ndim == 2:
        return values
    return values[..., 0] if (values == values[..., :1]).all() else None


def _outside(values: np.ndarray, scheme: LabelScheme, path: str | Path) -> DataError:
    found, counts = np.unique(values, return_counts=True)
    shown = [f"{scheme.show(int(found[i]))} ({counts[i]} px)" for i in np.argsort(-counts, kind="stable")[:8]]
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return DataError(
        f"{path}: labels outside the {len(scheme.classes)} classes: {', '.join(shown)}{more}; run `litheseg doctor`, "
        "or name them under 'classes', 'ignore' or 'remap' in classes.yaml"
    )


def _agree(
    path: str | Path, image: str | Path | IO[bytes], size: tuple[int, int], orientation: int, max_pixels: int
) -> int:
    """The orientation in which a mask of `size` (H, W) fits its image."""
    with _opened(image, max_pixels) as opened:
        turned, stored = _orientation(opened), (opened.height, opened.width)
    upright = _swapped(stored, turned)
    if _swapped(size, orientation) == upright:
        return orientation
    if orientation == 1 and size == stored:
        return turned
    height, width = _swapped(size, orientation)
    raise DataError(
        f"{path}: the mask is {height}x{width} (HxW), but its image {image} is {upright[0]}x{upright[1]}; "
        "export the mask at the image's size, or run `litheseg doctor`"
    )


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


@contextmanager
def _opened(path: str | Path | IO[bytes], max_pixels: int) -> Iterator[Image.Image]:
    """`open_image`, whose errors name the file."""
    try:
        with open_image(path, max_pixels) as image:
            yield image
    except TooManyPixelsError as error:
        raise TooManyPixelsError(
            f"{path}: {error}; make it smaller, cut it into tiles, or allow more (--max-pixels, for training "
            "--data.max_pixels)"
        ) from error
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; restore it or remove its partner") from error
    except UnidentifiedImageError as error:
        raise DataError(
            _unreadable(path) or f"{path} is not an image that can be read; replace or remove it"
        ) from error
    except _BROKEN as error:
        if "raw mode" in str(error) and (reason := _unreadable(path)):
            raise DataError(reason) from error
        raise DataError(f"{path} is damaged or truncated ({error}); replace or remove it") from error


def _unreadable(path: str | Path | IO[bytes]) -> str:
    """Of a TIFF of more channels or bits than can be read: what it has, and the remedy; "" of other files."""
    found = channels_of(path) if isinstance(path, (str, Path)) else ""
    return found and (
        f"{path} has {found}; images of 1 or 3 channels of 8 bits, or 1 of 16 bits, can be read: save the three "
        "channels that matter as RGB of 8 bits, in training and wherever the network runs"
    )


def _too_many(found: str, max_pixels: int) -> str:
    return f"{found} pixels, and at most {max_pixels} are decoded"


def _to_rgb(image: Image.Image, path: str | Path | IO[bytes]) -> Image.Image:
    if image.mode == "F":
        raise DataError(
            f"{path}: floating-point pixels; save it with 8 or 16 bits, all images by the same factor, in training and "
            "wherever the network runs"
        )
    if image.mode.startswith("I"):
        # Pillow clips these modes at 255 when it converts; the high byte is the picture.
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise DataError(f"{path}: 32-bit pixels outside 0..65535; save it with 8 or 16 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


def _pixels(image: Image.Image, path: str | Path | IO[bytes]) -> np.ndarray:
    if image.format in ("JPEG", "MPO"):
        raise DataError(f"{path}: a mask saved as JPEG has smeared labels; export it as PNG")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA") and not image.mode.startswith("I"):
        raise DataError(f"{path}: a mask of mode {image.mode}; export it as an index or RGB PNG")
    # Asked before the pixels are loaded: loading empties the list of tiles.
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    step = _GREY_STEP.get(str(tiles[0][3]), 1) if tiles else 1
    values = np.array(image)
    if image.mode in ("LA", "PA"):
        values = values[..., 0]
    if values.ndim == 3:
        return values[..., :3]
    return values.astype(np.uint8) if values.dtype == bool else values // step if step > 1 else values


def _orientation(image: Image.Image) -> int:
    # Without this test Pillow decodes a whole PNG to look for a tag behind the pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    orientation = image.getexif().get(0x0112, 1)
    return int(orientation) if orientation in _TRANSPOSE else 1


def _swapped(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _LYING else size


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).transpose(_TRANSPOSE[orientation])) if orientation != 1 else pixels
