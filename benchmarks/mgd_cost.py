"""What an MGD training step costs, compared with the passes of its three networks in the same run.

The step is the recipe's: the student on labelled and mixed images, both teachers on labelled, weak and mixed ones, all
terms, backward, optimizer. It is compared with the sum of what no implementation can save, each timed alone: the
student's forward and backward pass on the same rows with a trivial loss and an optimizer step, and each teacher's
forward pass on the same rows. All are timed in turn, so that load from other programs falls on all alike; medians are
compared. Students, pairs and weights are those of `benchmarks/mgd.yaml`, with random weights, on procedural streets.

    python benchmarks/mgd_cost.py --output benchmarks/results/mgd_cost.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from reports import write_report
from step_cost import measure, origin, show_ratios
from torch import Tensor

from litheseg.data.datamodule import SegmentationData
from litheseg.models import SegmentationModel, build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.models.inference import has_bfloat16
from litheseg.training import Recipe, load_recipe
from litheseg.training.build import build_data, build_task
from litheseg.training.optimization import build_optimizer
from litheseg.training.streams import Step
from litheseg.training.task import SegmentationTask
from litheseg.training.teachers import Frozen

TARGET = 1.15
TEACHERS = ("deep", "wide")


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    rows = [row_of(student, options) for student in options.students]
    report = {"target": TARGET, "rows": rows} | origin(options)
    show_ratios(rows, "cost of an MGD training step", TARGET)
    write_report(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["ddrnet"], help="of benchmarks/mgd.yaml")
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=4, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32", help="bf16 is autocast")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args()


def row_of(student: str, options: argparse.Namespace) -> dict[str, Any]:
    """The medians of one student's step and of its parts, and the ratio that the target is about."""
    torch.manual_seed(options.seed)
    table = yaml.safe_load((Path(__file__).parent / "mgd.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(table, student, options)
        data = build_data(recipe)
        pair = table["teachers"][table["students"][student]["teachers"]]
        bundles = {name: random_bundle(pair[name], data, Path(folder) / name) for name in TEACHERS}
        recipe = recipe_of(table, student, options, *(f"--mgd.{name}.bundle={path}" for name, path in bundles.items()))
        times = measure(passes_of(recipe, data, options), options)
    medians = {f"{name}_ms": 1e3 * median(values) for name, values in times.items()}
    apart = sum(value for name, value in medians.items() if name != "step_ms")
    return {"student": student, **medians, "sum_ms": apart, "ratio": medians["step_ms"] / apart}


def recipe_of(table: dict[str, Any], student: str, options: argparse.Namespace, *more: str) -> Recipe:
    """The recipe mgd for a student of the table, on streets."""
    entry = table["students"][student]
    count, size = 2 * options.batch_size, list(options.size)
    return load_recipe(
        "mgd",
        [
            f"--model.name={entry['model']}",
            f"--model.args={json.dumps(entry['args'])}",
            f"--mgd.deep.image={entry['weights']['image']}",
            f"--mgd.wide.region={entry['weights']['region']}",
            "--data.source=streets",
            f"--data.options={json.dumps({'train': count, 'val': 1, 'size': size})}",
            f"--data.size={size}",
            f"--data.batch_size={options.batch_size}",
            "--data.labelled=1/2",
            "--data.absent_classes=true",
            "--optimizer.name=adamw",
            "--optimizer.lr=1e-4",
            f"--trainer.seed={options.seed}",
            *more,
        ],
    )


def random_bundle(entry: dict[str, Any], data: SegmentationData, path: Path) -> Path:
    """A network that knows nothing, as a file."""
    model = build_model(entry["model"], num_classes=len(data.classes), **entry["args"])
    bundle = save_bundle(path, model, BundleHeader({"name": entry["model"], "args": entry["args"]}, data.classes))
    assert bundle.path is not None
    return bundle.path


def passes_of(recipe: Recipe, data: SegmentationData, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Name -> the whole step, and each network's pass alone; the student's has a network and optimizer of its own."""
    batch = {name: value.to(options.device) for name, value in data.train_batch(0, 0).items()}
    task, alone = (_task(recipe, data, options) for _ in range(2))
    step = Step.of(batch)
    assert step.weak is not None and step.mixed is not None
    rows = torch.cat([step.labelled, step.weak, step.mixed])
    student = alone.model

    def trivial() -> Tensor:
        return torch.stack([value.float().mean() for value in student.outputs(step.image).values()]).sum()

    passes = {
        "step": _training(task.model, lambda: task.training_step(batch, 0), recipe, options),
        "student": _training(student, trivial, recipe, options),
    }
    for name in TEACHERS:
        teacher = task.teachers[name]
        assert isinstance(teacher, Frozen)
        passes[name] = _looking(teacher.model.to(options.device).eval(), rows, options)
    return passes


def _task(recipe: Recipe, data: SegmentationData, options: argparse.Namespace) -> SegmentationTask:
    task = build_task(recipe, data)
    assert isinstance(task, SegmentationTask)
    task.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]  # there is no Trainer
    return task.to(options.device).train()


def _training(
    model: SegmentationModel, loss_of: Callable[[], Tensor], recipe: Recipe, options: argparse.Namespace
) -> Callable[[], None]:
    optimizer = build_optimizer(model, recipe.optimizer)

    def run() -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def _looking(model: SegmentationModel, rows: Tensor, options: argparse.Namespace) -> Callable[[], None]:
    """A forward pass without gradient; in half precision where frozen teachers run so."""
    half = options.precision == "bf16" or has_bfloat16(torch.device(options.device))

    def run() -> None:
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=half):
            model.outputs(rows)

    return run


if __name__ == "__main__":
    main()
