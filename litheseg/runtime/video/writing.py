"""Pictures -> a video file or a folder of PNGs, whole or not at all.

Videos are H.264 where this PyAV can encode it, MPEG-4 otherwise; pictures keep their times, so that a video from which
frames were dropped plays at its pace. In a folder, masks are palette PNGs of class indices; in a video colours, smeared
by its compression. It does not know where pictures come from.

Usage:
    >>> with open_writer("out.mp4", Fraction(25), classes, "overlay") as writer:
    ...     writer.write(frame, picture, mask)
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from litheseg.errors import DataError, LithesegError
from litheseg.files import atomic_folder, atomic_path
from litheseg.masks.classes import Classes
from litheseg.masks.pictures import encode_mask
from litheseg.runtime.video.frames import VideoFrame
from litheseg.runtime.video.reading import require_av

__all__ = ["VIDEO_ENDINGS", "Behind", "Writer", "open_writer"]

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4")
_ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "libopenh264": {}, "mpeg4": {"qmin": "2", "qmax": "5"}}
_BEHIND = 4  # pictures
_CLOCK = Fraction(1, 60_000)  # seconds; MPEG-4 takes nothing finer


class Writer(Protocol):
    """Takes pictures.

    Attributes:
        encoder: what makes the file.
    """

    encoder: str

    def write(self, frame: VideoFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        """The next one: uint8 H W 3, and the labels that it shows, uint8 H W."""


@contextmanager
def open_writer(
    target: str | Path, rate: Fraction, classes: Classes, kind: str, *, force: bool = False
) -> Iterator[Writer]:
    """Write to a path: it holds everything written so far when the context ends, and nothing new if that raises.

    Args:
        target: a file with an ending of `VIDEO_ENDINGS`, or a folder.
        rate: pictures per second, about.
        classes: for the palettes of masks.
        kind: what the pictures show.
        force: replace a file that is there.

    Raises:
        DataError: an ending that is neither a video's nor a folder's, a file that exists, or a folder that holds files.
        LithesegError: it cannot be written.
    """
    path = Path(target).expanduser()
    is_video = path.suffix.lower() in VIDEO_ENDINGS
    _check_target(path, is_video, force)
    if not is_video:
        with atomic_folder(path) as folder:
            yield _Folder(folder, classes, kind)
        return
    with atomic_path(path) as temporary:
        video = _Video(require_av(), temporary, path, rate)
        try:
            yield video
            video.finish()
        finally:
            video.close()


def _check_target(path: Path, is_video: bool, force: bool) -> None:
    if path.suffix and not is_video and not path.is_dir():
        endings = ", ".join(VIDEO_ENDINGS)
        raise DataError(f"output {path}: no video is written as '{path.suffix}'; give {endings}, or a folder")
    if path.is_dir() and (is_video or any(path.iterdir())):
        # Never replaced: who knows what else is in there.
        raise DataError(f"output {path} is a folder that holds files; give a new or empty one, or a video file")
    if path.is_file() and not (is_video and force):
        raise DataError(f"output {path} exists; choose another path, or replace the video (--force, force=True)")


class Behind:
    """A writer that works in a thread, so that the next frame need not wait for the encoder.

    Within its context pictures are taken in; at its end all of them are written, or, after an error, none of those that
    still wait. What goes wrong in the thread is raised at the next picture, or at the end.
    """

    def __init__(self, writer: Writer) -> None:
        self.encoder, self._writer = writer.encoder, writer
        self._waiting: queue.Queue[tuple[VideoFrame, np.ndarray, np.ndarray] | None] = queue.Queue(_BEHIND)
        self._error = cast(BaseException | None, None)
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)

    def __enter__(self) -> Behind:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        known, self._error = self._error, self._error or error
        self._waiting.put(None)
        self._thread.join()
        if error is None and (known or self._error) is not None:
            raise cast(BaseException, known or self._error)

    def write(self, frame: VideoFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        """As in `Writer`; waits while too many pictures do."""
        if self._error is not None:
            raise self._error
        self._waiting.put((frame, picture, mask))

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            if self._error is not None:
                continue  # taken and forgotten, so that nobody waits
            try:
                self._writer.write(*entry)
            except BaseException as error:  # raised where pictures are made
                self._error = error


class _Folder:
    """PNGs, named like the images or counted."""

    encoder = "png"

    def __init__(self, folder: Path, classes: Classes, kind: str) -> None:
        self._folder, self._classes, self._kind, self._count = folder, classes, kind, 0

    def write(self, frame: VideoFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        """As in `Writer`."""
        path = self._folder / f"{frame.name or format(self._count, '06d')}.png"
        if path.exists():  # a.jpg beside a.png
            path = path.with_name(f"{path.stem}_{self._count:06d}.png")
        self._count += 1
        if self._kind == "mask":
            path.write_bytes(encode_mask(mask, self._classes))
        else:
            Image.fromarray(picture).save(path, compress_level=3)


class _Video:
    """A container with one stream, which begins with the first picture."""

    def __init__(self, av: ModuleType, temporary: Path, target: Path, rate: Fraction) -> None:
        self._av, self._target, self._rate, self._last = av, target, rate, -1
        self.encoder = next(name for name in _ENCODERS if _can_encode(av, name))
        with self._explained():
            self._container = av.open(str(temporary), "w", options={"movflags": "faststart"})
        self._stream: Any = None

    def write(self, frame: VideoFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        """As in `Writer`; a picture of another size than the first is resized."""
        with self._explained():
            if self._stream is None:
                self._begin(picture)
            encoded = self._av.VideoFrame.from_ndarray(self._fitted(picture), format="rgb24")
            # Times must rise; two frames of one time would end the file.
            self._last = max(round(frame.seconds / _CLOCK), self._last + 1)
            encoded.pts, encoded.time_base = self._last, _CLOCK
            self._container.mux(self._stream.encode(encoded))

    def finish(self) -> None:
        """Write what the encoder still holds, and the index."""
        with self._explained():
            if self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()

    def close(self) -> None:
        """Let go of the file."""
        try:
            self._container.close()
        except (OSError, ValueError, RuntimeError):
            pass  # it is thrown away, or was closed whole

    def _begin(self, picture: np.ndarray) -> None:
        height, width = (side + side % 2 for side in picture.shape[:2])  # colour has half the resolution
        self._stream = self._container.add_stream(self.encoder, rate=self._rate, options=_ENCODERS[self.encoder])
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = _CLOCK

    def _fitted(self, picture: np.ndarray) -> np.ndarray:
        height, width = self._stream.height, self._stream.width
        missing = (height - picture.shape[0], width - picture.shape[1])
        if missing == (0, 0):
            return picture
        if min(missing) >= 0 and max(missing) == 1:
            return np.pad(picture, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """PyAV's errors as one; those of the system are explained by `atomic_path`."""
        try:
            yield
        except self._av.FFmpegError as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LithesegError(f"cannot write {self._target} ({reason}); free space or choose another path") from error


def _can_encode(av: ModuleType, name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:
        return False
    return True
