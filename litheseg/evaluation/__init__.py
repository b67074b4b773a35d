"""Evaluation: predict label maps with a model and score them.

Usage:
    >>> from litheseg.evaluation import evaluate
    >>> evaluate(model, batches, widths=(0.5, 1.0))[0.5].miou
"""

from __future__ import annotations

from litheseg.evaluation.evaluate import evaluate, predict_logits
from litheseg.evaluation.metrics import Scores, SegmentationMetrics

__all__ = ["Scores", "SegmentationMetrics", "evaluate", "predict_logits"]
