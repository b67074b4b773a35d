"""Image and mask files -> arrays, whatever a camera or a labelling tool made of them.

Photographs become uint8 RGB: EXIF orientation applied, grey of 8 bits and CMYK converted, alpha laid over black. All
else keeps its channels and its values: grey of 16 bits or of floats has one channel, a TIFF or .npy file (`arrays`) as
many as it has; nothing is stretched image by image. Masks are never converted: a palette PNG keeps its indices, a 4-bit
grey PNG its values, a 16-bit one all of its bits.

Orientation: EXIF, JEITA CP-3451, tag 0x0112.

Usage:
    >>> image = read_image("images/a.jpg")                       # uint8 H W 3
    >>> field = read_image("images/b.tif", ImageFormat(5, "uint16"))           # uint16 H W 5, or an error
    >>> mask = encode(read_raw_mask("masks/a.png"), scheme, "masks/a.png")     # uint8 H W: train ids, 255 ignored
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from litheseg.errors import DataError
from litheseg.masks.arrays import ArrayFile, array_file
from litheseg.masks.classes import UNKNOWN_INDEX, LabelScheme
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.opening import MAX_PIXELS, judged_array, opened

__all__ = [
    "count_pixels",
    "encode",
    "has_transparency",
    "mask_numbers",
    "read_image",
    "read_mask",
    "read_raw_mask",
    "turned_like",
    "upright_size",
]

# By EXIF orientation, after height and width have been swapped for those that lie: steps along rows and columns.
_STEPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
_LYING = (5, 6, 7, 8)  # orientations that swap height and width
_ANIMATED = ("GIF", "PNG", "WEBP")  # further pages of a TIFF or MPO file are previews
_GREY_STEP = {"L;2": 85, "L;4": 17}  # Pillow stretches 2- and 4-bit grey to 0..255 by these factors


def read_image(
    path: str | Path | IO[bytes], images: ImageFormat | None = None, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode an image: H W C of uint8, uint16 or float32, upright; RGB where there are three channels.

    Args:
        path: the file, or an open one whose text is its name.
        images: what is expected; None for whatever the file holds.
        max_pixels: the largest width times height; of arrays of more than 16 bytes a pixel, fewer.

    Raises:
        TooManyPixelsError: the header claims more pixels.
        DataError: a file that is missing, no image, animated, truncated, of values that are not finite, or of another
            format.
    """
    pixels = _read_image(path, max_pixels)
    if pixels.shape[2] == 1 and pixels.dtype == np.uint8 and (images is None or images.channels != 1):
        pixels = np.repeat(pixels, 3, axis=2)  # as pretrained encoders want grey pictures
    return pixels if images is None else images.check(pixels, path)


def count_pixels(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> int:
    """Width times height of an image; only its header is read.

    Raises:
        TooManyPixelsError: there are more than `max_pixels`.
        DataError: a file that is missing or no image.
    """
    return math.prod(_stored(path, max_pixels)[0])


def has_transparency(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether an image has a fourth channel that is not opaque everywhere; only files with one are decoded.

    Raises:
        DataError: as `read_image`.
    """
    if array_file(path) is not None:
        return False
    with opened(path, max_pixels) as image:
        if image.mode not in ("RGBA", "LA", "PA"):
            return False
        return bool(np.asarray(image.getchannel("A")).min(initial=255) < 255)


def upright_size(path: str | Path | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(H, W) of an image as `read_image` gives it; only its header is read.

    Raises:
        DataError: as `count_pixels`.
    """
    return _swapped(*_stored(path, max_pixels))


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


def read_raw_mask(path: str | Path | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a mask as it lies in the file: integers H W, or uint8 H W 3 where the file holds colours; not rotated.

    Raises:
        TooManyPixelsError: the header claims more than `max_pixels`.
        DataError: a file that is missing, no image, truncated, a JPEG (its labels are smeared), or of floats.
    """
    found = judged_array(path, max_pixels)
    if found is not None:
        return _mask_values(found)
    with opened(path, max_pixels) as image:
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
    found, orientation = judged_array(path, max_pixels), 1
    if found is not None:
        values = _mask_values(found)
    else:
        with opened(path, max_pixels) as mask:
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
    stored, turned = _stored(image, max_pixels)
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


def _stored(path: str | Path | IO[bytes], max_pixels: int) -> tuple[tuple[int, int], int]:
    """(H, W) of an image as it lies in the file, and its orientation; only the header is read."""
    found = judged_array(path, max_pixels)
    if found is not None:
        return found.size, 1
    with opened(path, max_pixels) as image:
        return (image.height, image.width), _orientation(image)


def _read_image(path: str | Path | IO[bytes], max_pixels: int) -> np.ndarray:
    """H W C, grey as one channel where the file says no more."""
    found = judged_array(path, max_pixels)
    if found is not None:
        return found.read()
    with opened(path, max_pixels) as image:
        if image.format in _ANIMATED and getattr(image, "is_animated", False):
            raise DataError(f"{path} is animated; save the frame that is meant, or label it with `litheseg video`")
        orientation = _orientation(image)
        pixels = _upright(_decoded(image, path), orientation)
        return pixels if pixels.ndim == 3 else pixels[..., None]


def _decoded(image: Image.Image, path: str | Path | IO[bytes]) -> np.ndarray:
    """uint8 H W or H W 3; uint16 or float32 H W."""
    if image.mode == "F":
        values = np.asarray(image, np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{path} holds values that are not finite (NaN or infinite); fill them")
        return values
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise DataError(f"{path}: 32-bit pixels outside 0..65535; save it with 8 or 16 bits, or as float32")
        return grey.astype(np.uint16)
    if image.mode == "L" and not image.has_transparency_data:
        return np.array(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.array(image.convert("RGB"))


def _mask_values(found: ArrayFile) -> np.ndarray:
    """Integers H W, or uint8 H W 3."""
    values, channels = found.values(), found.shape[2]
    if values.dtype.kind not in "biu" or (channels != 1 and (channels, values.dtype) != (3, np.uint8)):
        raise DataError(
            f"{found.path}: a mask of {channels} channel{'s' * (channels > 1)} of {values.dtype}; save whole numbers "
            "height x width: the index of the class of each pixel"
        )
    return values if channels == 3 else values[..., 0].astype(np.uint8 if values.dtype == bool else values.dtype)


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
    return int(orientation) if orientation in _STEPS else 1


def _swapped(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _LYING else size


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    turned = pixels.swapaxes(0, 1) if orientation in _LYING else pixels
    return np.ascontiguousarray(turned[:: _STEPS[orientation][0], :: _STEPS[orientation][1]])
