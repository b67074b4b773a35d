"""Why a gain is there or not: how good teachers' labels are, and how hard each objective pulls.

For a finished run of recipe mgd or lithe: the labels of each teacher, of the student and of other runs on the
unlabelled training images against the masks that the run did not see (precision and recall per class, mIoU, share of
the image), and the norm of each objective's gradient on the student's weights, with fresh weights and with the final
ones, over the same batches.

    python benchmarks/measure mgd_diagnosis RUN --beside OTHER-RUN --output benchmarks/results/mgd_diagnosis.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import save
from rich.progress import track
from torch import Tensor

from litheseg.data import open_source
from litheseg.data.loading.datamodule import SegmentationData
from litheseg.data.sources.base import Sample, Source
from litheseg.evaluation.metrics import confusion_matrix, iou_per_class, mean_iou
from litheseg.models.bundle import load_bundle
from litheseg.runtime import Predictor
from litheseg.training import Recipe, load_recipe
from litheseg.training.build import build_data, build_task
from litheseg.training.task import SegmentationTask
from litheseg.training.teachers import FrozenConfig
from measure.common import arguments, show

BATCHES = 4


def main() -> None:
    """Diagnose, print tables, write records."""
    options = parse()
    bundle = load_bundle(options.run / "model.safetensors")
    recipe = load_recipe(str(options.run / "recipe.yaml"), overrides(bundle.header.recipe, options))
    data = build_data(recipe)
    task = build_task(recipe, data)
    assert isinstance(task, SegmentationTask)
    report = {
        "run": options.run.name,
        "labels": {name: quality(*who, recipe, data) for name, who in labellers(recipe, options).items()},
        "gradients": {"first": gradient_norms(task, data)},
    }
    task.model.load_state_dict(bundle.model().state_dict(), strict=False)  # training heads are not kept
    report["gradients"]["last"] = gradient_norms(task, data)
    scores = {name: dict(zip(data.classes.names, own["iou"], strict=True)) for name, own in report["labels"].items()}
    show([{"labels by": name, "mIoU": report["labels"][name]["miou"], **own} for name, own in scores.items()], "IoU")
    show([report["gradients"]], "norm of the gradient, by objective")
    save(options, report, "torch", "lightning")


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--data", type=Path, help="where its data is now")
    for name in ("deep", "wide"):
        parser.add_argument(f"--{name}", help=f"where the {name} teacher's bundle is now")
    parser.add_argument("--beside", nargs="*", default=(), metavar="RUN", help="whose labels are scored too")
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    return parser.parse_args()


def overrides(recipe: Any, options: argparse.Namespace) -> list[str]:
    """What the run's recipe leaves open: the teachers that were trained for it, and where the data is."""
    known = {name: getattr(options, name) or recipe["teachers"][name]["bundle"] for name in ("deep", "wide")}
    bundles = [f"--teachers.{name}.bundle={path}" for name, path in known.items()]
    return [*bundles, *([f"--data.root={options.data}"] if options.data else [])]


def labellers(recipe: Recipe, options: argparse.Namespace) -> dict[str, tuple[Path, float]]:
    """Name -> model file and width of whoever labels; widths below 1 as NAME@WIDTH."""
    frozen = {name: item for name, item in recipe.teachers.items() if isinstance(item, FrozenConfig)}
    runs = {"student": options.run, **{Path(run).name: Path(run) for run in options.beside}}
    teachers = {name: Path(str(teacher.bundle)) for name, teacher in frozen.items()}
    files = {**teachers, **{name: run / "model.safetensors" for name, run in runs.items()}}
    return {
        name if width == 1 else f"{name}@{width:g}": (path, width)
        for name, path in files.items()
        for width in load_bundle(path).header.widths
    }


def unseen(recipe: Recipe, data: SegmentationData) -> tuple[Source, list[Sample]]:
    """The training images whose masks the run did not use."""
    source = open_source(recipe.data.source, recipe.data.root, **recipe.data.options)
    assert data.unlabelled is not None
    ids = {sample.id for sample in data.unlabelled.samples}
    return source, [sample for sample in source.samples("train") if sample.id in ids]


def quality(path: Path, width: float, recipe: Recipe, data: SegmentationData) -> dict[str, Any]:
    """Precision, recall and IoU per class of a model's labels, each image at its own size."""
    predictor = Predictor(path, width=width)
    source, samples = unseen(recipe, data)
    confusion = np.zeros((len(data.classes),) * 2, np.int64)
    for sample in track(samples, f"{path.parent.name}", transient=True):
        labels = torch.from_numpy(predictor(source.read_image(sample)).astype(np.int64))
        mask = torch.from_numpy(source.read_mask(sample).astype(np.int64))
        confusion += confusion_matrix(labels[None], mask[None], len(data.classes)).numpy()
    right = confusion.diagonal()
    return {
        "images": len(samples),
        "miou": mean_iou(confusion),
        "iou": iou_per_class(confusion).tolist(),
        "precision": (right / np.maximum(confusion.sum(0), 1)).tolist(),
        "recall": (right / np.maximum(confusion.sum(1), 1)).tolist(),
        "share": (confusion.sum(1) / confusion.sum()).tolist(),
    }


def gradient_norms(task: SegmentationTask, data: SegmentationData) -> dict[str, float]:
    """Objective -> mean norm of its gradient alone, at the widest width."""
    norms = {}
    for name, objective in task.objectives.items():
        alone = SegmentationTask(task.model, {name: objective}, teachers=_teacher(task, objective.teacher)).train()
        norms[name] = float(np.mean([_norm(alone, batch) for batch in _batches(data)]))
    return norms


def _teacher(task: SegmentationTask, name: str | None) -> dict[str, Any]:
    return {name: task.teachers[name]} if name else {}


def _batches(data: SegmentationData) -> Iterator[dict[str, Tensor]]:
    yield from (data.train_batch(0, index) for index in range(BATCHES))


def _norm(task: SegmentationTask, batch: dict[str, Tensor]) -> float:
    statistics = {name: value.clone() for name, value in task.model.named_buffers()}
    loss, _ = task.loss(task.begin(batch))
    task.model.zero_grad()
    loss.backward()
    squares = [value.grad.square().sum() for value in task.model.parameters() if value.grad is not None]
    for name, value in task.model.named_buffers():
        value.copy_(statistics[name])  # looking must not move batch norm
    return float(torch.stack(squares).sum().sqrt())
