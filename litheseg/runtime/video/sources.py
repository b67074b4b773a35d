"""Video files, image sequences, cameras and streams as sources of frames.

What cannot be decoded is counted and named, and the rest goes on: a corrupt frame, a damaged image of a sequence, a
file that was cut off. A live stream that is lost is opened again and again, with pauses that double, up to a limit.

Usage:
    >>> source = open_frames("drive.mp4")  # or "frames/", "frames/*.png", "0" (a camera), "rtsp://camera/stream"
    >>> for frame in source: ...
"""

from __future__ import annotations

import glob
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from litheseg.errors import DataError, MissingExtraError
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.opening import MAX_PIXELS
from litheseg.masks.reading import read_image
from litheseg.runtime.rgb import frame_to_rgb

__all__ = [
    "FrameSource",
    "ImageSequence",
    "LiveStream",
    "TimedFrame",
    "Troubles",
    "VideoFile",
    "open_frames",
    "require_av",
    "retry_pauses",
]

_IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_RATE = Fraction(25)
_TOLERANCE = 2  # frames by which a length in seconds may be wrong
_TIMEOUT = (10.0, 10.0)  # seconds to open a stream, and to wait for its next packet
_CAMERAS = {"Linux": ("v4l2", "/dev/video{}"), "Darwin": ("avfoundation", "{}"), "Windows": ("dshow", "video={}")}
_NAMED = 50  # troubles that are kept by name


@dataclass(frozen=True)
class TimedFrame:
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


class FrameSource:
    """Where frames come from; gone through once.

    Attributes:
        name: for messages.
        live: whether frames arrive in real time, as from a camera.
        rate: frames per second, as far as is known.
        total: how many there will be; None if unknown.
        troubles: frames that could not be read, or not wholly.
        problem: why the source ended early; None if all frames came.
    """

    name: str
    live: bool = False
    rate: Fraction
    total: int | None = None
    troubles: Troubles
    problem: str | None = None

    def __iter__(self) -> Iterator[TimedFrame]:
        raise NotImplementedError

    def stop(self) -> None:
        """Wait no longer for frames; from any thread."""

    def close(self) -> None:
        """Let go of files and connections; in the thread that reads."""


def retry_pauses(attempts: int = 8, first: float = 0.5, longest: float = 30.0) -> tuple[float, ...]:
    """Seconds to wait before each attempt to open a lost stream again: each twice the one before, up to a limit."""
    return tuple(min(first * 2**attempt, longest) for attempt in range(attempts))


def open_frames(
    address: str | Path | int,
    *,
    fps: float | None = None,
    pauses: Sequence[float] = retry_pauses(),
    max_pixels: int = MAX_PIXELS,
) -> FrameSource:
    """Open whatever frames come from.

    Args:
        address: a video file; a folder of images, or a pattern such as ``frames/*.png`` or ``frames/%04d.png``; the
            number or device of a camera; or a URL. A URL that promises a length is a file, any other is live.
        fps: of an image sequence; None for 25.
        pauses: as from `retry_pauses`, before each attempt to open a lost stream again.
        max_pixels: of one frame, width times height: a video of larger ones is refused, and an image left out.

    Raises:
        DataError: there is nothing, or nothing that can be decoded, or frames that are too large.
        MissingExtraError: PyAV is not installed.
    """
    text = str(address)
    path = Path(text).expanduser()
    if path.is_dir() or (not path.exists() and re.search(r"[*?\[]|%\d*d", text) and "://" not in text):
        return ImageSequence(text, path, _RATE if fps is None else Fraction(fps).limit_denominator(1001), max_pixels)
    if "://" in text:
        return _open_url(text, pauses, max_pixels)
    if text.startswith("/dev/") or (re.fullmatch(r"\d+", text) and not path.exists()):
        driver, device = _CAMERAS.get(platform.system(), _CAMERAS["Linux"])
        if text.startswith("/dev/"):
            name, driver, device = text, _CAMERAS["Linux"][0], text
        else:
            name, device = f"camera {text}", device.format(text)
        connect = partial(require_av().open, device, format=driver)
        return LiveStream(name, connect, pauses, _connected(name, connect, max_pixels))
    if not path.exists():
        raise DataError(f"{text} does not exist; give a video, a folder of images, a camera's number or a URL")
    return VideoFile(text, _connected(text, partial(require_av().open, str(path)), max_pixels))


def require_av() -> ModuleType:
    """PyAV, silent.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import av
        import av.logging
    except ImportError as error:
        raise MissingExtraError("av", "video", "reading and writing videos") from error
    av.logging.set_level(None)  # what goes wrong is said once, by name
    return av


class ImageSequence(FrameSource):
    """The images of a folder or pattern as the frames of a video; one that cannot be read is left out, and counted.

    Raises:
        DataError: no images.
    """

    def __init__(self, name: str, path: Path, rate: Fraction, max_pixels: int = MAX_PIXELS) -> None:
        if path.is_dir():
            found = [file for file in path.iterdir() if not file.name.startswith(".")]
        else:
            found = [Path(match) for match in glob.glob(re.sub(r"%\d*d", "[0-9]*", str(path)))]
        images = (file for file in found if file.suffix.lower() in _IMAGES and file.is_file())
        self._files = sorted(images, key=_counting_order)
        if not self._files:
            raise DataError(f"no images in {path}; give a video, or a folder or pattern of images such as frames/*.png")
        self.name, self.rate, self.total, self.troubles = name, rate, len(self._files), Troubles()
        self._max_pixels = max_pixels

    def __iter__(self) -> Iterator[TimedFrame]:
        for index, file in enumerate(self._files):
            try:
                pixels = read_image(file, ImageFormat(), max_pixels=self._max_pixels)
            except DataError as error:
                self.troubles.add(str(error))
                continue
            yield TimedFrame(pixels, float(index / self.rate), file.stem)


def _counting_order(file: Path) -> list[tuple[int, int, str]]:
    """frame_2 before frame_10."""
    parts = re.findall(r"\d+|\D+", file.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


class VideoFile(FrameSource):
    """A video with an end, of an open container of PyAV."""

    def __init__(self, name: str, container: Any) -> None:
        self.name, self.troubles = name, Troubles()
        self._decoder = decoder = _Decoder(name, container, self.troubles)
        self.rate, stream = decoder.rate, decoder.stream
        self._exact = bool(stream.frames)
        if self._exact:
            self.total = int(stream.frames)
        elif len(container.streams) == 1 and container.duration:  # else another stream may be the longer one
            self.total = round(container.duration / 1e6 * self.rate)

    def __iter__(self) -> Iterator[TimedFrame]:
        reason = ""
        try:
            yield from self._decoder
        except _errors() as error:
            reason = f" ({_reason(error)})"
        read = self._decoder.packets
        if self.total is not None and read < self.total - (0 if self._exact else _TOLERANCE):
            self.problem = f"{self.name} is truncated or damaged{reason}: {read} of {self.total} frames are there"
        elif reason:
            self.problem = f"{self.name} cannot be read to its end{reason}"

    def close(self) -> None:
        """Close the file."""
        self._decoder.container.close()


class LiveStream(FrameSource):
    """A camera or a stream: frames come in their own time, and the connection may be lost.

    Args:
        name: for messages.
        connect: opens it; called again when it is lost.
        pauses: before each attempt to open it again, in seconds.
        container: the first connection.
    """

    live = True

    def __init__(self, name: str, connect: Callable[[], Any], pauses: Sequence[float], container: Any) -> None:
        self.name, self.troubles = name, Troubles()
        self._connect, self._pauses, self._container = connect, pauses, container
        self.rate = _Decoder(name, container, self.troubles).rate
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[TimedFrame]:
        began, frames, pauses = 0.0, 0, iter(self._pauses)
        while not self._stop.is_set():
            reason = "it ended"
            try:
                for frame in _Decoder(self.name, self._container, self.troubles):
                    now = time.monotonic()
                    began, frames, pauses = began or now, frames + 1, iter(self._pauses)
                    yield TimedFrame(frame.pixels, now - began)
                    if self._stop.is_set():
                        return
            except _errors() as error:
                reason = _reason(error)
            lost = f"{self.name} was lost after {frames} frames ({reason})"
            self.troubles.add(lost)
            if not self._connected_again(pauses):
                self.problem = f"{lost}, and not found in {len(self._pauses)} attempts"
                return

    def stop(self) -> None:
        """Give up waiting."""
        self._stop.set()

    def close(self) -> None:
        """Close the connection."""
        self._container.close()

    def _connected_again(self, pauses: Iterator[float]) -> bool:
        """Whether to go on reading: connected again after pauses, or stopped."""
        self._container.close()
        for pause in pauses:
            if self._stop.wait(pause):
                return True
            with suppress(*_errors()):
                self._container = self._connect()
                return True
        return False


class _Decoder:
    """The frames of an open container that can be decoded; errors of the container itself are the caller's."""

    def __init__(self, name: str, container: Any, troubles: Troubles) -> None:
        if not container.streams.video:
            raise DataError(f"{name} has no pictures, only sound or data; give a video")
        self.container, self.stream, self.packets = container, container.streams.video[0], 0
        self._troubles = troubles
        rate = self.stream.average_rate or self.stream.guessed_rate or _RATE
        self.rate = Fraction(rate) if 0 < rate <= 1000 else _RATE

    def __iter__(self) -> Iterator[TimedFrame]:
        step = float(1 / self.rate)
        seconds, first = -step, None
        for packet in self.container.demux(self.stream):
            self.packets += packet.size > 0
            try:
                frames = packet.decode()
            except _errors() as error:
                if packet.size:  # the last one is empty: it asks for what the decoder still holds
                    self._troubles.add(f"frame at {seconds + step:.2f} s is corrupt ({_reason(error)})")
                continue
            for frame in frames:
                if first is None and frame.time is not None:
                    first = float(frame.time)
                known = frame.time is not None and first is not None
                seconds = max(float(frame.time) - (first or 0.0), 0.0) if known else seconds + step
                if frame.is_corrupt:
                    self._troubles.add(f"frame at {seconds:.2f} s is damaged; what could be decoded of it was used")
                yield TimedFrame(frame_to_rgb(frame), seconds)


def _open_url(url: str, pauses: Sequence[float], max_pixels: int) -> LiveStream | VideoFile:
    name = re.sub(r"(://[^/:@]+):[^/@]+@", r"\1:***@", url)  # no password in a message
    options = {"rtsp_transport": "tcp"} if url.startswith("rtsp") else {}
    connect = partial(require_av().open, url, timeout=_TIMEOUT, options=options)
    container = _connected(name, connect, max_pixels)
    return VideoFile(name, container) if container.duration else LiveStream(name, connect, pauses, container)


def _connected(name: str, connect: Callable[[], Any], max_pixels: int) -> Any:
    """The open container; a stream that was never there is not waited for."""
    try:
        container = connect()
    except require_av().error.InvalidDataError as error:
        raise DataError(f"{name} is no video, or was cut off before its index; copy it again") from error
    except _errors() as error:
        raise DataError(f"cannot open {name} ({_reason(error)}); check the address, and who else uses it") from error
    for stream in container.streams.video[:1]:
        if stream.width * stream.height > max_pixels:
            container.close()
            raise DataError(
                f"{name} has frames of {stream.width} x {stream.height} pixels, and at most {max_pixels} are decoded; "
                "make it smaller, or allow more (--max-pixels)"
            )
    return container


def _errors() -> tuple[type[Exception], ...]:
    """What PyAV raises; of its own errors only some are the system's."""
    return (require_av().FFmpegError, OSError, ValueError, RuntimeError)


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return text[:1].lower() + text[1:]
