"""Evaluation: predict label maps with a model and score them, also on corrupted images, and judge their confidence.

Usage:
    >>> from litheseg.evaluation import evaluate
    >>> evaluate(model, batches, widths=(0.5, 1.0))[0.5].miou
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from litheseg.evaluation.evaluate import evaluate, predict_logits
from litheseg.evaluation.metrics import Scores, SegmentationMetrics
from litheseg.lazy import lazy_names

if TYPE_CHECKING:
    from litheseg.evaluation.calibration import Confidence
    from litheseg.evaluation.corruptions import corrupt
    from litheseg.evaluation.robustness import RobustnessCard, measure_robustness

__all__ = [
    "Confidence",
    "RobustnessCard",
    "Scores",
    "SegmentationMetrics",
    "corrupt",
    "evaluate",
    "measure_robustness",
    "predict_logits",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "calibration": ("Confidence",),
        "corruptions": ("corrupt",),
        "robustness": ("RobustnessCard", "measure_robustness"),
    },
)
