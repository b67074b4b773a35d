"""Deployed models at work; the names below are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litheseg.lazy import lazy_names

if TYPE_CHECKING:
    from litheseg.runtime.controller import Controller
    from litheseg.runtime.files import Summary, predict_files
    from litheseg.runtime.predictor import Predictor
    from litheseg.runtime.profiling import profile
    from litheseg.runtime.video import VideoSummary, annotate_video, annotate_videos

__all__ = [
    "Controller",
    "Predictor",
    "Summary",
    "VideoSummary",
    "annotate_video",
    "annotate_videos",
    "predict_files",
    "profile",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "controller": ("Controller",),
        "files": ("Summary", "predict_files"),
        "predictor": ("Predictor",),
        "profiling": ("profile",),
        "video": ("VideoSummary", "annotate_video", "annotate_videos"),
    },
)
