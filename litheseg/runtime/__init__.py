"""Deployed models at work."""

from __future__ import annotations

from litheseg.runtime.controller import Controller
from litheseg.runtime.files import Summary, predict
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.video import VideoSummary, label_video

__all__ = ["Controller", "Predictor", "Summary", "VideoSummary", "label_video", "predict"]
