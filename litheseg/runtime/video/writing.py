"""Pictures -> a video file or a folder of PNGs, whole or not at all.

Videos are H.264 where this PyAV can encode it, MPEG-4 otherwise; pictures keep their times, so that a video from which
frames were dropped plays at its frame rate. In a folder, masks are palette PNGs of class indices; in a video they are
colours, smeared by its compression.

Usage:
    >>> with open_writer("out.mp4", Fraction(25), classes, "overlay") as writer:
    ...     writer.write(frame, picture, mask)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from litheseg.errors import DataError, LithesegError
from litheseg.files import atomic_folder, atomic_path
from litheseg.masks.classes import Classes
from litheseg.masks.pictures import encode_mask
from litheseg.runtime.video.sources import TimedFrame, require_av

__all__ = ["FolderWriter", "VideoWriter", "open_writer"]

_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4")
_ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "libopenh264": {}, "mpeg4": {"qmin": "2", "qmax": "5"}}
_CLOCK = Fraction(1, 60_000)  # seconds; MPEG-4 takes nothing finer


@contextmanager
def open_writer(
    target: str | Path, rate: Fraction, classes: Classes, kind: str, *, force: bool = False
) -> Iterator[FolderWriter | VideoWriter]:
    """Write to a path: it holds everything written so far when the context ends, and nothing new if that raises.

    A file that is there is replaced with `force` only. `rate`: pictures per second, about; `kind`: what they show.

    Raises:
        DataError: an ending that is neither a video's nor a folder's, a file that exists, or a folder that holds files.
        LithesegError: it cannot be written.
    """
    path = Path(target).expanduser()
    is_video = path.suffix.lower() in _ENDINGS
    if path.suffix and not is_video and not path.is_dir():
        endings = ", ".join(_ENDINGS)
        raise DataError(f"output {path}: no video is written as '{path.suffix}'; give {endings}, or a folder")
    if path.is_dir() and (is_video or any(path.iterdir())):
        # Never replaced: who knows what else is in there.
        raise DataError(f"output {path} is a folder that holds files; give a new or empty one, or a video file")
    if path.is_file() and not (is_video and force):
        raise DataError(f"output {path} exists; choose another path, or replace the video (--force, force=True)")
    if not is_video:
        with atomic_folder(path) as folder:
            yield FolderWriter(folder, classes, kind)
        return
    with atomic_path(path) as temporary:
        video = VideoWriter(require_av(), temporary, path, rate)
        try:
            yield video
            video.finish()
        finally:
            video.close()


class FolderWriter:
    """PNGs, named like the images or counted."""

    encoder = "png"

    def __init__(self, folder: Path, classes: Classes, kind: str) -> None:
        self._folder, self._classes, self._kind, self._count = folder, classes, kind, 0

    def write(self, frame: TimedFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        """The next picture, uint8 H W 3, and the labels that it shows, uint8 H W."""
        path = self._folder / f"{frame.name or format(self._count, '06d')}.png"
        if path.exists():  # a.jpg beside a.png
            path = path.with_name(f"{path.stem}_{self._count:06d}.png")
        self._count += 1
        if self._kind == "mask":
            path.write_bytes(encode_mask(mask, self._classes))
        else:
            Image.fromarray(picture).save(path, compress_level=3)


class VideoWriter:
    """A container with one stream, which begins with the first picture."""

    def __init__(self, av: ModuleType, temporary: Path, target: Path, rate: Fraction) -> None:
        self._av, self._target, self._rate, self._last = av, target, rate, -1
        self.encoder = next(name for name in _ENCODERS if _can_encode(av, name))
        with self._explained():
            self._container = av.open(str(temporary), "w", options={"movflags": "faststart"})
        self._stream: Any = None

    def write(self, frame: TimedFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        """The next picture, uint8 H W 3; one of another size than the first is resized."""
        with self._explained():
            if self._stream is None:
                # Sides are even: colour has half the resolution.
                height, width = (side + side % 2 for side in picture.shape[:2])
                options = _ENCODERS[self.encoder]
                self._stream = self._container.add_stream(self.encoder, rate=self._rate, options=options)
                self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
                self._stream.codec_context.time_base = _CLOCK
            fitted = _fitted(picture, self._stream.height, self._stream.width)
            encoded = self._av.VideoFrame.from_ndarray(fitted, format="rgb24")
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
        """Let go of the file, which is thrown away or was closed whole."""
        with suppress(OSError, ValueError, RuntimeError):
            self._container.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """PyAV's errors as one; those of the system are explained by `atomic_path`."""
        try:
            yield
        except self._av.FFmpegError as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise LithesegError(f"cannot write {self._target} ({reason}); free space or choose another path") from error


def _fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture at the video's size: with its last row or column twice if one is missing, otherwise resized."""
    missing = (height - picture.shape[0], width - picture.shape[1])
    if missing == (0, 0):
        return picture
    if min(missing) >= 0 and max(missing) == 1:
        return np.pad(picture, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def _can_encode(av: ModuleType, name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:
        return False
    return True
