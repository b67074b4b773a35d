"""Videos: files, image sequences, cameras and streams in; annotated videos or folders of PNGs out."""

from __future__ import annotations

from litheseg.runtime.video.annotate import (
    VIDEO_KINDS,
    VideoKind,
    VideoProgress,
    VideoSummary,
    annotate_video,
    annotate_videos,
)
from litheseg.runtime.video.sources import open_frames, retry_pauses

__all__ = [
    "VIDEO_KINDS",
    "VideoKind",
    "VideoProgress",
    "VideoSummary",
    "annotate_video",
    "annotate_videos",
    "open_frames",
    "retry_pauses",
]
