"""Deployed models at work; the names below are imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litheseg.runtime.controller import Controller
    from litheseg.runtime.files import Summary, predict
    from litheseg.runtime.predictor import Predictor
    from litheseg.runtime.profiling import profile
    from litheseg.runtime.video import VideoSummary, annotate_video

__all__ = ["Controller", "Predictor", "Summary", "VideoSummary", "annotate_video", "predict", "profile"]

_HOMES = {
    "Controller": "controller",
    "Predictor": "predictor",
    "Summary": "files",
    "VideoSummary": "video",
    "annotate_video": "video",
    "predict": "files",
    "profile": "profiling",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'litheseg.runtime' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"litheseg.runtime.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
