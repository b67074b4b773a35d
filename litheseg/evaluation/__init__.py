"""How good a model is: scores of label maps, and the ways of getting label maps from models.

Usage:
    >>> from litheseg.evaluation import SegmentationMetrics
"""

from __future__ import annotations

from litheseg.evaluation.metrics import Scores, SegmentationMetrics

__all__ = ["Scores", "SegmentationMetrics"]
