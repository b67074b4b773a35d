"""Small videos: the frame's number can be read off its colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_colours import BLUE, GREEN, RED

from litheseg.runtime.video.sources import TimedFrame, Troubles

COLORS = (RED, GREEN, BLUE)


def frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Red, green, blue, red, ... with a little noise, so that no frame compresses to nothing."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = COLORS[number % 3]
    noise = np.random.default_rng(number).integers(0, 40, (height, width, 3), dtype=np.uint8)
    return np.where(pixels > 0, pixels - noise, pixels + noise).astype(np.uint8)


def write_video(
    path: Path,
    count: int = 30,
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    rate: int = 25,
    faststart: bool = False,
) -> Path:
    """Write `count` frames, each of them alone decodable (no frame needs another)."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        options = {"g": "1", "crf": "10"} if codec == "libx264" else {"g": "1"}
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number, *size), format="rgb24")))
        container.mux(stream.encode())
    return path


def read_video(path: Path) -> list[np.ndarray]:
    """All frames."""
    import av

    with av.open(str(path)) as container:
        return [decoded.to_ndarray(format="rgb24") for decoded in container.decode(video=0)]


def numbers(frames: Sequence[np.ndarray]) -> list[int]:
    """Of each frame, which of the three colours is largest in its middle."""
    return [int(pixels[pixels.shape[0] // 2, pixels.shape[1] // 4].argmax()) for pixels in frames]


def write_images(folder: Path, count: int = 5, ending: str = ".png") -> Path:
    """frame_1.png, frame_2.png, ..., frame_10.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(frame(number)).save(folder / f"frame_{number + 1}{ending}")
    return folder


class FakeSource:
    """Frames in the rhythm of a camera, or at once."""

    def __init__(self, count: int, *, live: bool, pause: float = 0.0, problem: str | None = None) -> None:
        self.name, self.live, self.rate, self.total = "fake", live, Fraction(25), None
        self.troubles, self.problem = Troubles(), None
        self._count, self._pause, self._problem = count, pause, problem
        self.stopped = self.closed = False

    def __iter__(self) -> Iterator[TimedFrame]:
        import time

        for number in range(self._count):
            if self.stopped:
                return
            time.sleep(self._pause)
            yield TimedFrame(frame(number), number / 25)
        self.problem = self._problem

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True
