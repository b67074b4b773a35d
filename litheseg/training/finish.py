"""The end of a run: convert what has become grouped, calibrate further widths, score every width, write the bundle.

It knows nothing of how the weights came about.

Usage:
    >>> scores = finish(recipe, data, task, Path("runs/slimseg/model.safetensors"), device=device, writes=True)
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from litheseg import __version__
from litheseg.data.datamodule import SegmentationData
from litheseg.evaluation.bundle import header_metrics
from litheseg.evaluation.evaluate import evaluate
from litheseg.evaluation.metrics import Scores
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import available_widths, recalibrate
from litheseg.nn.grouping import convert
from litheseg.training.build import Task
from litheseg.training.config import ModelConfig, Recipe
from litheseg.training.recipe import recipe_to_dict

__all__ = ["finish"]


def finish(
    recipe: Recipe,
    data: SegmentationData,
    task: Task,
    path: Path,
    *,
    device: torch.device,
    writes: bool,
    labels_alone: Mapping[float, float] | None = None,
) -> dict[float, Scores]:
    """Convert, calibrate and score every width, in all processes; write the bundle, in one.

    Args:
        recipe: of the run.
        data: its images.
        task: with the weights to keep.
        path: of the bundle.
        device: where to compute; the model is left on the CPU.
        writes: whether this process writes.
        labels_alone: mIoU by width of the same network without unlabelled images, to be noted beside it.

    Returns:
        Scores by width, the same in all processes.
    """
    model = task.model.to(device)
    convert(model)
    recalibrate(model, data.calibration_batches(), recipe.widths.calibrate)
    scores = evaluate(model, data.val_dataloader(), widths=available_widths(model), device=device)
    model.cpu()
    if writes:
        save_bundle(path, model, _header(recipe, data, task, scores, labels_alone or {}))
    return scores


def _header(
    recipe: Recipe, data: SegmentationData, task: Task, scores: dict[float, Scores], labels_alone: Mapping[float, float]
) -> BundleHeader:
    size = recipe.data.size or data.crop
    metrics = header_metrics(task.model, scores, size)
    for width, miou in labels_alone.items():
        metrics[f"{width:g}"]["labels_alone"] = miou
    return BundleHeader(
        architecture=_architecture(recipe.model),
        classes=data.classes,
        widths=task.widths,
        calibrated_widths=tuple(width for width in scores if width not in task.widths),
        divisor=recipe.widths.divisor,
        size=size,
        resizes=recipe.data.size is not None,
        mean=data.mean,
        std=data.std,
        metrics=metrics,
        recipe=recipe_to_dict(recipe),
        provenance=_provenance(recipe, data),
    )


def _architecture(model: ModelConfig) -> dict[str, Any]:
    efficient = {"efficient": asdict(model.efficient)} if model.efficient.changes else {}
    return {"name": model.name, "args": model.args, **efficient}


def _provenance(recipe: Recipe, data: SegmentationData) -> dict[str, Any]:
    packages = ("torch", "torchvision", "timm", "lightning")
    return {
        "data": data.source.name,
        "data_licence": data.source.licence,
        "data_citation": data.source.citation,
        "seed": recipe.trainer.seed,
        "epoch": recipe.trainer.keep,
        "litheseg": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
