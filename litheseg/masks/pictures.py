"""Labels as pictures: palette PNGs whose pixel values are class indices, and photos under the colours of their labels.

Usage:
    >>> data = encode_mask(mask, classes)                       # bytes of a PNG
    >>> data = encode_overlay(photo, mask, classes, OverlayStyle(alpha=0.7, clear=("sky",)))
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from litheseg.errors import DataError, did_you_mean
from litheseg.files import atomic_path
from litheseg.masks.classes import Classes
from litheseg.masks.colours import is_background

__all__ = [
    "OverlayStyle",
    "encode_mask",
    "encode_overlay",
    "encode_png",
    "legend_strip",
    "overlay",
    "rgb_view",
    "write_mask",
]

# Of zlib's levels 1 to 9: a third of the time of the usual 6, a third more bytes.
_LEVEL = 3
_COARSE = 4  # each way one pixel of so many is enough for percentiles
_BLENDED = 1 << 17  # pixels at once: in floating point an image takes a dozen times its bytes
_LETTERS = (11, 32)  # pixels: the height of a legend's letters, at least and at most
_COLUMNS_OF_LETTERS = 60  # that high are as wide as the picture
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class OverlayStyle:
    """How labels are painted over a picture.

    Attributes:
        alpha: weight of the class colours, in [0, 1]; 0 shows the picture, 1 the colours.
        clear: names of classes that stay as they are in the picture; None for those that are a background by name.
        legend: whether names and colours of the classes stand below the picture.

    Raises:
        DataError: a weight out of range.
    """

    alpha: float = 0.5
    clear: tuple[str, ...] | None = None
    legend: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise DataError(f"alpha {self.alpha} is outside [0, 1]; 0 shows the image, 1 the colours")

    def painted(self, classes: Classes) -> list[int]:
        """The classes that are painted.

        Raises:
            DataError: a class that is to stay clear and is none.
        """
        for name in filter(None, self.clear or ()):
            if name not in classes.names:
                raise DataError(f"no class '{name}' to stay clear.{did_you_mean(name, classes.names)}")
        clear = set(filter(is_background, classes.names) if self.clear is None else self.clear)
        return [index for index, name in enumerate(classes.names) if name not in clear]


def rgb_view(image: np.ndarray) -> np.ndarray:
    """An image of any channels and type, H W C, as a screen can show it: uint8 H W 3.

    RGB of 8 bits is itself. Of others the first three channels are red, green and blue, of two or one the first is
    grey; each is stretched so that its 2nd percentile is black and its 98th white.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return image
    shown = image[..., : 3 if image.shape[2] >= 3 else 1].astype(np.float32)
    low, high = np.percentile(shown[::_COARSE, ::_COARSE], (2, 98), axis=(0, 1)).astype(np.float32)
    levels = np.clip((shown - low) / np.maximum(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    return np.repeat(levels, 3 // levels.shape[2], axis=2)


def overlay(image: np.ndarray, mask: np.ndarray, classes: Classes, style: OverlayStyle | None = None) -> np.ndarray:
    """The image, as `rgb_view` shows it, under the colours of its labels (uint8 H W), without the legend.

    Labels without a class, and clear classes, leave it as it is.

    Raises:
        DataError: as `OverlayStyle.painted`.
    """
    style = style or OverlayStyle()
    image = rgb_view(image)
    palette, weights = classes.palette(), np.zeros((256, 1), np.float32)
    weights[style.painted(classes)] = style.alpha
    mixed, rows = image.copy(), max(1, _BLENDED // max(1, image.shape[1]))
    for start in range(0, len(image), rows):
        part, labels = image[start : start + rows], mask[start : start + rows]
        colored = part + weights[labels] * (palette[labels].astype(np.float32) - part)
        mixed[start : start + rows] = np.rint(colored).astype(np.uint8)
    return mixed


def legend_strip(classes: Classes, shown: Sequence[int], width: int, rows: int | None = None) -> np.ndarray:
    """Names and colours of classes, to stand below a picture: uint8 H x width x 3.

    Args:
        classes: all of them.
        shown: indices of those that are named, in this order.
        width: of the picture, in pixels.
        rows: at most so many lines, the last of which says how many are left out; None for as many as it takes.
    """
    letter = min(max(width // _COLUMNS_OF_LETTERS, _LETTERS[0]), _LETTERS[1])
    font, line = ImageFont.load_default(letter), letter * 3 // 2
    names = [classes.names[index] for index in shown]
    cell = min(width, int(max(map(font.getlength, names), default=0)) + 3 * letter)
    columns = max(1, width // max(1, cell))
    room = len(names) if rows is None else columns * rows
    named = len(names) if len(names) <= room else max(0, room - 1)
    entries = [(name, classes.colors[index]) for name, index in zip(names[:named], shown, strict=False)]
    if named < len(names):
        entries.append((f"and {len(names) - named} more", _PAPER))
    strip = Image.new("RGB", (width, line * -(-len(entries) // columns) + letter // 2 * bool(entries)), _PAPER)
    draw = ImageDraw.Draw(strip)
    for place, (name, color) in enumerate(entries):
        left, top = place % columns * cell + letter // 2, place // columns * line + letter // 2
        draw.rectangle((left, top, left + letter - 1, top + letter - 1), color, None if color == _PAPER else _INK)
        draw.text((left + letter * 3 // 2, top + letter), name, _INK, font, anchor="ls")
    return np.asarray(strip)


def encode_mask(mask: np.ndarray, classes: Classes) -> bytes:
    """An 8-bit palette PNG of labels, uint8 H W; the palette holds their colours."""
    image = Image.fromarray(mask).convert("L")
    image.putpalette(classes.palette().ravel().tolist())
    return encode_png(image)


def encode_overlay(image: np.ndarray, mask: np.ndarray, classes: Classes, style: OverlayStyle | None = None) -> bytes:
    """An RGB PNG of `overlay`, with the legend of the classes in it below, unless the style leaves that out."""
    style = style or OverlayStyle()
    painted = overlay(image, mask, classes, style)
    if style.legend:
        present = np.bincount(mask.ravel(), minlength=256)
        shown = [index for index in style.painted(classes) if present[index]]
        painted = np.concatenate([painted, legend_strip(classes, shown, image.shape[1])])
    return encode_png(painted)


def write_mask(path: str | Path, mask: np.ndarray, classes: Classes) -> None:
    """Write `encode_mask`, whole or not at all.

    Raises:
        LithesegError: the file cannot be written.
    """
    data = encode_mask(mask, classes)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def encode_png(picture: np.ndarray | Image.Image) -> bytes:
    """A PNG of uint8 H W 3 or of a Pillow image."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_LEVEL)
    return buffer.getvalue()
