"""Video files, image sequences, cameras and streams -> frames.

What cannot be decoded is counted and named, and the rest goes on: a corrupt frame, a picture of a sequence that is no
picture, a file that was cut off. A live stream that is lost is opened again and again, with pauses that double, up to a
limit. It does not know models, and drops nothing: see `feed`.

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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

from litheseg.errors import DataError, MissingExtraError
from litheseg.masks.reading import MAX_PIXELS, read_image
from litheseg.runtime.rgb import frame_to_rgb
from litheseg.runtime.video.frames import FrameSource, Troubles, VideoFrame

__all__ = ["ImageSequence", "LiveStream", "Patience", "VideoFile", "open_frames", "require_av"]

_IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_RATE = Fraction(25)
_ABOUT = 2  # frames by which a length in seconds may be wrong
_TIMEOUT = (10.0, 10.0)  # seconds to open a stream, and to wait for its next packet
_CAMERAS = {"Linux": ("v4l2", "/dev/video{}"), "Darwin": ("avfoundation", "{}"), "Windows": ("dshow", "video={}")}


@dataclass(frozen=True)
class Patience:
    """How long a lost stream is waited for.

    Attributes:
        attempts: to open it again, in a row; 0 gives up at once.
        first: pause before the first attempt, in seconds; each further one is twice as long.
        longest: pause, in seconds.
    """

    attempts: int = 8
    first: float = 0.5
    longest: float = 30.0

    def pauses(self) -> Iterator[float]:
        """Before each attempt."""
        return (min(self.first * 2**attempt, self.longest) for attempt in range(self.attempts))


def open_frames(
    address: str | Path | int,
    *,
    fps: float | None = None,
    patience: Patience | None = None,
    max_pixels: int = MAX_PIXELS,
) -> FrameSource:
    """Open whatever frames come from.

    Args:
        address: a video file; a folder of images, or a pattern such as ``frames/*.png`` or ``frames/%04d.png``; the
            number or device of a camera; or a URL. A URL that promises a length is a file, any other is live.
        fps: of an image sequence; None for 25.
        patience: with streams that are lost.
        max_pixels: of one frame, width times height: a video of larger ones is refused, and an image left out.

    Raises:
        DataError: there is nothing, or nothing that can be decoded, or frames that are too large.
        MissingExtraError: PyAV is not installed.
    """
    text = str(address)
    path = Path(text).expanduser()
    if path.is_dir() or (not path.exists() and re.search(r"[*?\[]|%\d*d", text) and "://" not in text):
        rate = _RATE if fps is None else Fraction(fps).limit_denominator(1001)
        return ImageSequence(text, _images(path), rate, max_pixels)
    if re.fullmatch(r"\d+", text) and not path.exists():
        kind, device = _CAMERAS.get(platform.system(), _CAMERAS["Linux"])
        return _camera(f"camera {text}", device.format(text), kind, patience, max_pixels)
    if text.startswith("/dev/"):
        return _camera(text, text, _CAMERAS["Linux"][0], patience, max_pixels)
    if "://" in text:
        return _remote(text, patience, max_pixels)
    if not path.exists():
        raise DataError(f"{text} does not exist; give a video, a folder of images, a camera's number or a URL")
    return VideoFile(text, _first(text, lambda: require_av().open(str(path)), max_pixels))


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


class ImageSequence:
    """Images as the frames of a video; one that cannot be read is left out, and counted."""

    live = False
    problem: str | None = None
    total: int | None

    def __init__(self, name: str, files: list[Path], rate: Fraction, max_pixels: int = MAX_PIXELS) -> None:
        self.name, self.rate, self.total, self.troubles = name, rate, len(files), Troubles()
        self._files, self._max_pixels = files, max_pixels

    def __iter__(self) -> Iterator[VideoFrame]:
        for index, file in enumerate(self._files):
            try:
                pixels = read_image(file, max_pixels=self._max_pixels)
            except DataError as error:
                self.troubles.add(str(error))
                continue
            yield VideoFrame(pixels, float(index / self.rate), file.stem)

    def stop(self) -> None:
        """Nothing is waited for."""

    def close(self) -> None:
        """Nothing is open."""


class VideoFile:
    """A video with an end."""

    live = False

    def __init__(self, name: str, container: Any) -> None:
        self.name, self.troubles = name, Troubles()
        self.problem: str | None = None
        self._decoder = _Decoder(name, container, self.troubles)
        self.rate, self.total, self._exact = self._decoder.rate, *self._decoder.promised()

    def __iter__(self) -> Iterator[VideoFrame]:
        reason = ""
        try:
            yield from self._decoder
        except _errors() as error:
            reason = f" ({_reason(error)})"
        read = self._decoder.packets
        if self.total is not None and read < self.total - (0 if self._exact else _ABOUT):
            self.problem = f"{self.name} is truncated or damaged{reason}: {read} of {self.total} frames are there"
        elif reason:
            self.problem = f"{self.name} cannot be read to its end{reason}"

    def stop(self) -> None:
        """Nothing is waited for."""

    def close(self) -> None:
        """Close the file."""
        self._decoder.container.close()


class LiveStream:
    """A camera or a stream: frames come in their own time, and the connection may be lost.

    Args:
        name: for messages.
        connect: opens it; called again when it is lost.
        patience: how long to wait for it then.
        container: the first connection.
    """

    live = True
    total: int | None = None

    def __init__(self, name: str, connect: Callable[[], Any], patience: Patience, container: Any) -> None:
        self.name, self.troubles = name, Troubles()
        self.problem: str | None = None
        self._connect, self._patience, self._container = connect, patience, container
        self.rate = _Decoder(name, container, self.troubles).rate
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[VideoFrame]:
        began, frames, pauses = 0.0, 0, self._patience.pauses()
        while not self._stop.is_set():
            reason = "it ended"
            try:
                for frame in _Decoder(self.name, self._container, self.troubles):
                    now = time.monotonic()
                    began, frames, pauses = began or now, frames + 1, self._patience.pauses()
                    yield VideoFrame(frame.pixels, now - began)
                    if self._stop.is_set():
                        return
            except _errors() as error:
                reason = _reason(error)
            self.troubles.add(f"{self.name} was lost after {frames} frames ({reason})")
            if not self._connected_again(pauses):
                tries = self._patience.attempts
                self.problem = (
                    f"{self.name} was lost after {frames} frames ({reason}), and not found in {tries} attempts"
                )
                return

    def stop(self) -> None:
        """Give up waiting."""
        self._stop.set()

    def close(self) -> None:
        """Close the connection."""
        self._container.close()

    def _connected_again(self, pauses: Iterator[float]) -> bool:
        """After a pause or several; true also if nobody wants it any more."""
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
        self.container, self.packets = container, 0
        self._stream, self._troubles = container.streams.video[0], troubles
        rate = self._stream.average_rate or self._stream.guessed_rate or _RATE
        self.rate = Fraction(rate) if 0 < rate <= 1000 else _RATE

    def promised(self) -> tuple[int | None, bool]:
        """Frames that the container says it has, None if it does not; whether it counted them."""
        if self._stream.frames:
            return int(self._stream.frames), True
        if len(self.container.streams) > 1 or not self.container.duration:  # another one may be longer
            return None, False
        return round(self.container.duration / 1e6 * self.rate), False

    def __iter__(self) -> Iterator[VideoFrame]:
        step = float(1 / self.rate)
        seconds, first = -step, None
        for packet in self.container.demux(self._stream):
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
                yield VideoFrame(frame_to_rgb(frame), seconds)


def _camera(name: str, device: str, kind: str, patience: Patience | None, max_pixels: int) -> LiveStream:
    def connect() -> Any:
        return require_av().open(device, format=kind)

    return LiveStream(name, connect, patience or Patience(), _first(name, connect, max_pixels))


def _remote(url: str, patience: Patience | None, max_pixels: int) -> LiveStream | VideoFile:
    name = re.sub(r"(://[^/:@]+):[^/@]+@", r"\1:***@", url)  # no password in a message

    def connect() -> Any:
        options = {"rtsp_transport": "tcp"} if url.startswith("rtsp") else {}
        return require_av().open(url, timeout=_TIMEOUT, options=options)

    container = _first(name, connect, max_pixels)
    if container.duration:
        return VideoFile(name, container)
    return LiveStream(name, connect, patience or Patience(), container)


def _first(name: str, connect: Callable[[], Any], max_pixels: int) -> Any:
    """Open it, or say what is wrong; a stream that was never there is not waited for."""
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


def _images(path: Path) -> list[Path]:
    """The images of a folder or pattern, numbers in the order of counting."""
    if path.is_dir():
        found = [file for file in path.iterdir() if not file.name.startswith(".")]
    else:
        found = [Path(name) for name in glob.glob(re.sub(r"%\d*d", "[0-9]*", str(path)))]
    files = sorted((file for file in found if file.suffix.lower() in _IMAGES and file.is_file()), key=_counting)
    if not files:
        raise DataError(f"no images in {path}; give a video, or a folder or pattern of images such as frames/*.png")
    return files


def _counting(file: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", file.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
