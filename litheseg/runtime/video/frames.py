"""What passes between the parts of the video pipeline: frames, where they come from, and what went wrong on the way.

It decodes nothing.

Usage:
    >>> troubles = Troubles()
    >>> troubles.add("frame at 1.48 s: invalid data")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import numpy as np

__all__ = ["FrameSource", "Troubles", "VideoFrame"]

_NAMED = 50


@dataclass(frozen=True)
class VideoFrame:
    """One picture.

    Attributes:
        pixels: uint8 H x W x 3, RGB, upright.
        seconds: when it is shown, from the first frame on.
        name: of the file it is from, without its ending; None in a video.
    """

    pixels: np.ndarray
    seconds: float
    name: str | None = None


@dataclass
class Troubles:
    """What could not be read, counted; the first fifty by name."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """One more."""
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(what)


class FrameSource(Protocol):
    """Where frames come from; gone through once.

    Attributes:
        name: for messages.
        live: whether frames come when they come, wanted or not.
        rate: frames per second, as far as is known.
        total: how many there will be; None if nobody knows.
        troubles: frames that could not be read, or not wholly.
        problem: after the last frame, why it was the last one although more were promised; None if all came.
    """

    name: str
    live: bool
    rate: Fraction
    total: int | None
    troubles: Troubles
    problem: str | None

    def __iter__(self) -> Iterator[VideoFrame]:
        """The frames."""

    def stop(self) -> None:
        """Wait no longer for frames; from any thread."""

    def close(self) -> None:
        """Let go of files and connections; in the thread that reads."""
