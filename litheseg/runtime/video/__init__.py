"""Videos at work: files, image sequences, cameras and streams in; labelled videos or folders of PNGs out."""

from __future__ import annotations

from litheseg.runtime.video.painting import VIDEO_KINDS, VideoKind
from litheseg.runtime.video.pipeline import VideoProgress, VideoSummary, annotate_video
from litheseg.runtime.video.reading import Patience, open_frames
from litheseg.runtime.video.writing import VIDEO_ENDINGS

__all__ = [
    "VIDEO_ENDINGS",
    "VIDEO_KINDS",
    "Patience",
    "VideoKind",
    "VideoProgress",
    "VideoSummary",
    "annotate_video",
    "open_frames",
]
