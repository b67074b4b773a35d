"""Frames and their labels -> the pictures that a video shows.

Usage:
    >>> to_picture = FramePainter(predictor.classes, OverlayStyle(0.5), "side-by-side")
    >>> picture = to_picture(frame, mask)  # uint8 H W 3 and uint8 H W -> uint8 H 2W 3, and a legend below
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image

from litheseg.masks.classes import Classes
from litheseg.masks.pictures import OverlayStyle, legend_strip

__all__ = ["VIDEO_KINDS", "FramePainter", "VideoKind"]

VideoKind = Literal["overlay", "mask", "side-by-side"]
VIDEO_KINDS: tuple[str, ...] = get_args(VideoKind)

_LEGEND_LINES = 4


class FramePainter:
    """Paints the frames of one video.

    Args:
        classes: names and colours.
        style: weight of the colours, the classes that stay clear, and whether there is a legend.
        kind: what to show.

    Attributes:
        kind: what is shown.

    Raises:
        DataError: a style that names an unknown class.
    """

    def __init__(self, classes: Classes, style: OverlayStyle, kind: VideoKind) -> None:
        self._classes, self._style, self.kind = classes, style, kind
        self._palette, self._clear, self._strip = classes.palette(), np.ones(256, bool), np.empty((0, 0, 3), np.uint8)
        self._clear[style.painted(classes)] = False

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The picture to show, uint8 H W 3, or H 2W 3 side by side, and below it the legend.

        Args:
            image: the frame, uint8 H W 3.
            mask: its labels, uint8 H W.
        """
        colours = self._palette[mask]
        if self.kind == "mask":
            return colours
        # Pillow blends several times as fast as NumPy.
        mixed = np.array(Image.blend(Image.fromarray(image), Image.fromarray(colours), self._style.alpha))
        np.copyto(mixed, image, where=self._clear[mask][..., None])
        shown = np.concatenate([image, mixed], axis=1) if self.kind == "side-by-side" else mixed
        return np.concatenate([shown, self._legend(shown.shape[1])]) if self._style.legend else shown

    def _legend(self, width: int) -> np.ndarray:
        """All classes that are painted, as far as a few lines hold them; the same for all frames."""
        if self._strip.shape[1] != width:
            self._strip = legend_strip(self._classes, self._style.painted(self._classes), width, _LEGEND_LINES)
        return self._strip
