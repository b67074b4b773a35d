"""A frame and its labels as the picture to show: overlay, mask, or the frame beside its overlay.

It does not know files.

Usage:
    >>> picture = FramePainter(classes, "overlay")(image, mask)
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image

from litheseg.errors import DataError, did_you_mean
from litheseg.masks.classes import Classes

__all__ = ["VIDEO_KINDS", "FramePainter", "VideoKind"]

VideoKind = Literal["overlay", "mask", "side-by-side"]
VIDEO_KINDS: tuple[str, ...] = get_args(VideoKind)


class FramePainter:
    """Paints labels in the colours of their classes.

    Args:
        classes: names and colours.
        kind: what to show.
        alpha: weight of the colours over the frame, in [0, 1].

    Raises:
        DataError: an unknown kind, or an alpha outside [0, 1].
    """

    def __init__(self, classes: Classes, kind: VideoKind = "overlay", alpha: float = 0.5) -> None:
        if kind not in VIDEO_KINDS:
            raise DataError(f"unknown kind '{kind}'.{did_you_mean(kind, VIDEO_KINDS)}")
        if not 0 <= alpha <= 1:
            raise DataError(f"alpha {alpha} is outside [0, 1]; 0 shows the image, 1 the colours")
        self.kind, self._alpha = kind, alpha
        self._palette = classes.palette()

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """uint8 H W 3 and uint8 H W -> uint8 H W 3, or H 2W 3 side by side."""
        colours = self._palette[mask]
        if self.kind == "mask":
            return colours
        # Pillow blends several times as fast as NumPy.
        mixed = np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(colours), self._alpha))
        return np.concatenate([image, mixed], axis=1) if self.kind == "side-by-side" else mixed
