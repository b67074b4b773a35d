"""Deployed models at work."""

from __future__ import annotations

from litheseg.runtime.files import Summary, predict
from litheseg.runtime.predictor import Predictor

__all__ = ["Predictor", "Summary", "predict"]
