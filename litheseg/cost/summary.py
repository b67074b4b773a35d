"""Accuracy and cost of every width in the form that a bundle's header keeps them.

It neither scores nor trains; it counts, and puts both side by side.

Usage:
    >>> header_metrics(model, evaluate(model, batches, widths=(1.0, 0.5)), size=(360, 480))["0.5"]["miou"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from litheseg.cost.widths import width_costs
from litheseg.evaluation.metrics import Scores
from litheseg.models.bundle import Bundle, save_bundle

__all__ = ["header_metrics", "save_scored"]


def header_metrics(model: nn.Module, scores: Mapping[float, Scores], size: tuple[int, int]) -> dict[str, Any]:
    """Scores, parameters and MACs by width, as plain values; the confusion matrices stay out of it.

    Args:
        model: elastic, with all the widths in `scores`.
        scores: by width.
        size: height and width of the image that MACs are counted for.
    """
    costs = {cost.width: cost for cost in width_costs(model, scores, size)}
    result = {}
    for width, score in scores.items():
        entry = {name: value for name, value in score.to_dict().items() if name != "confusion"}
        result[f"{width:g}"] = {**entry, "params": costs[width].params, "macs": costs[width].macs}
    return result


def save_scored(path: str | Path, bundle: Bundle, scores: Mapping[float, Scores]) -> Bundle:
    """Write a bundle whose header holds these scores, beside those of the widths that were not scored.

    Raises:
        BundleError: the bundle does not have one of the widths.
        LithesegError: the file cannot be written.
    """
    model = bundle.model()
    metrics = {**bundle.header.metrics, **header_metrics(model, scores, bundle.header.size)}
    return save_bundle(path, model, replace(bundle.header, metrics=metrics))
