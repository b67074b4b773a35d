"""Turns whatever holds an image into an array H x W x C, upright, for a screen or as a network takes it.

Files are read by `litheseg.masks.reading.read_image`.

Usage:
    >>> pixels = to_rgb(Image.open("street.jpg"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps

from litheseg.errors import DataError
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.reading import read_image

if TYPE_CHECKING:
    import av
    import torch

__all__ = ["ImageLike", "frame_to_rgb", "to_pixels", "to_rgb"]


ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray | torch.Tensor | av.VideoFrame"
"""The kinds of images that are taken; see `Predictor.__call__`."""


def to_pixels(image: ImageLike, images: ImageFormat) -> np.ndarray:
    """Any supported kind of image as a network takes it, H W C; kinds as in `Predictor.__call__`.

    Raises:
        DataError: the image cannot be read, or is not of the format.
    """
    if images.is_rgb8:
        return to_rgb(image)
    if isinstance(image, (str, Path)):
        return read_image(image, images)
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("I") if image.mode.startswith("I;") else image)
        pixels = pixels.astype(np.uint16) if image.mode.startswith("I") else pixels
    elif isinstance(image, np.ndarray):
        pixels = image
    elif hasattr(image, "detach"):
        pixels = image.detach().cpu().numpy()
        pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    else:
        images.require_rgb8(f"a {type(image).__name__}")
        raise AssertionError("unreachable: RGB of 8 bits was handled before")
    pixels = pixels if pixels.ndim != 2 else pixels[..., None]
    if pixels.ndim != 3 or not pixels.size:
        raise DataError(f"an image of shape {pixels.shape}; give H x W x {images.channels} (a tensor: C x H x W)")
    images.check(pixels, f"this {type(image).__name__}")
    if images.dtype == "float32" and not np.isfinite(pixels).all():
        raise DataError(f"this {type(image).__name__} holds values that are not finite (NaN or infinite); fill them")
    return pixels


def to_rgb(image: ImageLike) -> np.ndarray:
    """Any supported kind of image as uint8 H W 3, RGB, upright; kinds as in `Predictor.__call__`.

    Raises:
        DataError: the image cannot be read or is of another kind.
    """
    if isinstance(image, (str, Path)):
        return read_image(image, ImageFormat())
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _from_array(image, "array")
    if hasattr(image, "detach"):
        return _from_array(_from_tensor(image.detach().cpu().numpy()), "tensor")
    if hasattr(image, "to_ndarray") and hasattr(image, "rotation"):
        return frame_to_rgb(image)
    raise DataError(
        f"cannot label a {type(image).__name__}; give a path, a PIL image, a NumPy array, a tensor or a video frame"
    )


def frame_to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A video frame, turned as its file says that it is to be shown."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _from_pil(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):
        raise DataError(
            f"a PIL image of 16-bit or floating-point pixels ({image.mode}); give RGB of 8 bits, as in training"
        )
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else Pillow would copy, here and in convert
            image = ImageOps.exif_transpose(image)
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return _from_array(np.asarray(image if image.mode == mode else image.convert(mode)), "image")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the PIL image cannot be decoded ({error}); replace it") from error


def _from_tensor(image: np.ndarray) -> np.ndarray:
    """C H W or 1 C H W to H W C."""
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise DataError(
            f"a tensor of shape {image.shape}; give one image as C x H x W with 1, 3 or 4 channels, or several to "
            "`batch`"
        )
    if image.dtype.kind == "f":
        if image.size and not (image.min() >= 0 and image.max() <= 1):
            raise DataError("a tensor with values outside [0, 1]; give it unnormalised, in [0, 1] or as uint8")
        image = (image.astype(np.float32) * 255).round().astype(np.uint8)
    return image.transpose(1, 2, 0)


def _from_array(image: np.ndarray[Any, Any], kind: str) -> np.ndarray:
    if image.dtype != np.uint8:
        raise DataError(f"an {kind} of {image.dtype}; convert it to uint8, 0..255")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise DataError(f"an {kind} of shape {image.shape}; give H x W, or H x W x C with 1, 3 or 4 channels")
    if image.shape[2] == 4:  # over black, as files are read
        color, alpha = image[:, :, :3].astype(np.uint16), image[:, :, 3:].astype(np.uint16)
        return ((color * alpha + 127) // 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
