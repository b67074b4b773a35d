"""Frames of videos as image files, to be learned from without labels.

Frames next to each other say nearly the same, so that one a second is taken, or every k-th. They are decoded once, and
kept in the cache as JPEGs of high quality, which the video's own compression has already gone below.

Usage:
    >>> clip = parse_clip("drive.mp4:10")
    >>> clip
    ClipFrames(video=PosixPath('drive.mp4'), every=10)
    >>> folder = write_frames(clip)
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from litheseg.errors import DataError
from litheseg.files import atomic_folder, cache_folder
from litheseg.progress import say, track
from litheseg.runtime.video.sources import open_frames

__all__ = ["ClipFrames", "parse_clip", "write_frames"]

_VIDEO = re.compile(r"(.+\.(?:mp4|m4v|mov|avi|mkv|webm|mpe?g|ts))(?::(\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class ClipFrames:
    """Which frames of a video.

    Attributes:
        video: the file.
        every: every k-th one; None for one a second.
    """

    video: Path
    every: int | None = None


def parse_clip(text: str | Path) -> ClipFrames | None:
    """What "drive.mp4" and "drive.mp4:10" mean; None for what is no video, such as a folder.

    Raises:
        DataError: a video that does not exist, or every 0th frame.
    """
    found = _VIDEO.fullmatch(str(text))
    if found is None or Path(text).is_dir():
        return None
    video, every = Path(found[1]).expanduser(), None if found[2] is None else int(found[2])
    if not video.is_file():
        raise DataError(f"video {video} does not exist; name the file that holds the unlabelled frames")
    if every == 0:
        raise DataError(f"{text}: every 0th frame; write e.g. {found[1]}:10 for every tenth")
    return ClipFrames(video, every)


def write_frames(clip: ClipFrames) -> Path:
    """The folder of the frames, in the cache; written at the first call.

    Raises:
        DataError: a video that cannot be decoded.
        MissingExtraError: PyAV, the extra `video`, is not installed.
        LithesegError: the cache cannot be written.
    """
    state = clip.video.stat()
    about = f"{clip.video.resolve()} {state.st_size} {state.st_mtime_ns} {clip.every}"
    folder = cache_folder("frames") / f"{clip.video.stem}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    source = open_frames(clip.video)
    every = clip.every or max(1, round(source.rate))
    try:
        with atomic_folder(folder) as draft:
            for number, frame in enumerate(track(source, f"frames of {clip.video.name}", source.total)):
                if number % every == 0:
                    picture = Image.fromarray(frame.pixels)
                    picture.save(draft / f"{clip.video.stem}_{number:06}.jpg", quality=95, subsampling=0)
    finally:
        source.close()
    if source.problem or source.troubles.count:
        problem = source.problem or f"{source.troubles.count} frames cannot be decoded"
        say(f"{clip.video}: {problem}; the others are used")
    return folder
