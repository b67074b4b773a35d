"""What a training step costs, compared with plainer steps of the same networks in the same run.

- four-widths: the whole step of recipe slimseg (every width with labels, boundary terms and deep supervision, each but
  the widest with its teacher) over the sum of one step each of four plain networks of these widths, without teacher.
- gradual: the step of recipe gradual-grouping in the middle of the fall of alpha, over one of the same network with
  ordinary dense convolutions.
- mgd: the step of recipe mgd over the sum of what no implementation can save, each timed alone: the student's forward
  and backward pass on the same rows with a trivial loss, and each teacher's forward pass.

All are timed in turn, so that load from other programs falls on all alike; medians are compared. Each includes the
optimizer. Weights are random.

    python benchmarks/measure steps mgd --output benchmarks/results/mgd_cost.jsonl
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from records import save
from torch import Tensor

from litheseg.data.loading.datamodule import SegmentationData
from litheseg.models import SegmentationModel, build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.models.inference import has_bfloat16
from litheseg.nn import extract
from litheseg.nn.grouping import GradualConv2d, fade, gradual_layers
from litheseg.nn.surgery import conv_like, replace_layer
from litheseg.training import Recipe, load_recipe
from litheseg.training.build import build_data, build_elastic_model, build_task, objectives_of
from litheseg.training.gradual import GradualGrouping
from litheseg.training.horizon import Horizon
from litheseg.training.optimization import build_optimizer
from litheseg.training.recipe import Objective
from litheseg.training.streams import Step
from litheseg.training.task import SegmentationTask
from litheseg.training.teachers import Frozen, NextWider
from measure.common import arguments, in_turns, show

CLASSES = 11
WEIGHTS = {"log": torch.linspace(1.0, 5.0, CLASSES)}
GRADUAL = {
    "erfnet-dg4*": ["--grouping.where=1x1"],
    "ddrnet": ["--model.efficient.groups=4", "--model.efficient.where=encoder,3x3"],
}
Run = Callable[[], None]


def main() -> None:
    """Parse, measure, print a table, write records."""
    options = parse()
    torch.set_num_threads(options.threads)
    target, rows = STEPS[options.step]
    report = {"target": target, "rows": rows(options)}
    show(report["rows"], f"cost of a training step; target: ratio at most {target}")
    clock = "process time" if options.device == "cpu" else "wall-clock time"
    save(options, report, "torch", "lightning", device=options.device, clock=clock)


def parse() -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = arguments(__doc__, size=(180, 240), batch_size=8, precision="fp32", rounds=7, threads=1, seed=0)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--device", default=device)
    parser.add_argument("--model", default="ddrnet", help="of four-widths")
    parser.add_argument("--students", nargs="+", default=["ddrnet"], help="of mgd: of benchmarks/rows/mgd.yaml")
    return parser.parse_args()


def timed(steps: dict[str, Run], options: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds: processor time of this process on a CPU, which leaves other programs' share out."""

    def now() -> float:
        if options.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    return {name: median(times) for name, times in in_turns(steps, options.rounds, now).items()}


# --- four widths -----------------------------------------------------------------------------------------------------


def four_widths(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row: the four-width step, the same without its teacher, and the sum of single-width steps."""
    torch.manual_seed(options.seed)
    recipe = load_recipe("slimseg", [f"--model.name={options.model}"])
    model = build_elastic_model(recipe.model, recipe.widths, CLASSES)
    objectives = objectives_of(recipe, model)
    hard = {name: objective for name, objective in objectives.items() if objective.teacher is None}
    widths, batch = recipe.widths, batch_of(options)

    def step(model: SegmentationModel, objectives: dict[str, Objective], widths: tuple[float, ...]) -> Run:
        return training_step(recipe, model, objectives, widths, batch, options)

    steps = {
        "four_widths": step(copy.deepcopy(model), objectives, widths),
        "without_teacher": step(copy.deepcopy(model), hard, widths),
    }
    model.training_only = ()  # else `extract` would drop the training heads
    for width in widths:
        plain = extract(model, width)
        assert isinstance(plain, SegmentationModel)
        steps[f"alone_{width:g}"] = step(plain, hard, (1.0,))
    medians = timed(steps, options)
    apart = sum(value for name, value in medians.items() if name.startswith("alone"))
    row = {"model": options.model, **{f"{name}_ms": medians[name] for name in ("four_widths", "without_teacher")}}
    return [row | {"single_widths_ms": apart, "ratio": medians["four_widths"] / apart}]


def training_step(
    recipe: Recipe,
    model: SegmentationModel,
    objectives: dict[str, Objective],
    widths: tuple[float, ...],
    batch: dict[str, Tensor],
    options: argparse.Namespace,
) -> Run:
    """The step of a task of its own, with next-wider teaching where an objective asks for a teacher."""
    model = model.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teachers = {"wider": NextWider()} if any(objective.teacher for objective in objectives.values()) else {}
    task = SegmentationTask(model, objectives, teachers=teachers, widths=widths, class_weights=WEIGHTS)
    ready(task, options)
    return optimized(model, lambda: task.training_step(batch, 0), recipe, options)


def ready(task: SegmentationTask, options: argparse.Namespace) -> SegmentationTask:
    task.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]  # there is no Trainer
    return task.to(options.device).train()


def optimized(model: SegmentationModel, loss_of: Callable[[], Tensor], recipe: Recipe, options: Any) -> Run:
    """Forward, backward, optimizer."""
    optimizer = build_optimizer(model, recipe.optimizer)

    def run() -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def batch_of(options: argparse.Namespace) -> dict[str, Tensor]:
    """Noise, and labels in blocks (so that there are borders) with some ignored pixels."""
    height, width = options.size
    blocks = torch.randint(0, CLASSES, (options.batch_size, 1, -(-height // 20), -(-width // 20))).float()
    mask = F.interpolate(blocks, scale_factor=20.0, mode="nearest")[:, 0, :height, :width].long()
    mask[:, : height // 10] = 255
    image = torch.randn(options.batch_size, 3, height, width)
    return {"image": image.to(options.device), "mask": mask.to(options.device).contiguous()}


# --- gradual ---------------------------------------------------------------------------------------------------------


def gradual(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per network: dense, in the middle of the fall, and at alpha 0."""
    rows = []
    for model, overrides in GRADUAL.items():
        torch.manual_seed(options.seed)
        recipe = load_recipe("gradual-grouping", [f"--model.name={model}", *overrides])
        medians = {f"{name}_ms": value for name, value in timed(gradual_steps(recipe, options), options).items()}
        rows.append({"model": model, **medians, "ratio": medians["gradual_ms"] / medians["dense_ms"]})
    return rows


def gradual_steps(recipe: Recipe, options: argparse.Namespace) -> dict[str, Run]:
    """Name -> one whole training step, with what the callback does."""
    falling = build_elastic_model(recipe.model, recipe.widths, CLASSES, grouping=recipe.grouping)
    grouped, dense = copy.deepcopy(falling), copy.deepcopy(falling)
    fade(grouped, stage=0, alpha=0.0)
    for name, (layer, _) in gradual_layers(dense).items():
        assert isinstance(layer, GradualConv2d)
        replace_layer(dense, name, conv_like(layer))
    callback, calls = GradualGrouping(recipe.grouping, Horizon(1000)), iter(range(10**9))

    def plain(model: SegmentationModel) -> Run:
        objectives = objectives_of(recipe, model)
        return training_step(recipe, model, objectives, (1.0,), batch_of(options), options)

    run = plain(falling)

    def gradual_step() -> None:
        fade(falling, stage=0, alpha=0.5 - 1e-3 * next(calls))
        run()
        callback.on_train_batch_end(None, falling, None, None, 0)  # type: ignore[arg-type]

    return {"dense": plain(dense), "gradual": gradual_step, "at_zero": plain(grouped)}


# --- mgd -------------------------------------------------------------------------------------------------------------


def mgd(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per student: the whole step, and each network's pass alone; on procedural streets."""
    table = yaml.safe_load((Path(__file__).parents[1] / "rows/mgd.yaml").read_text())
    rows = []
    for student in options.students:
        torch.manual_seed(options.seed)
        with tempfile.TemporaryDirectory() as folder:
            data = build_data(mgd_recipe(table, student, options))
            pair = table["teachers"][table["students"][student]["teachers"]]
            paths = {name: random_bundle(pair[name], data, Path(folder) / name) for name in ("deep", "wide")}
            bundles = [f"--teachers.{name}.bundle={path}" for name, path in paths.items()]
            medians = timed(mgd_passes(mgd_recipe(table, student, options, *bundles), data, options), options)
        apart = sum(value for name, value in medians.items() if name != "step")
        row = {"student": student, **{f"{name}_ms": value for name, value in medians.items()}}
        rows.append(row | {"sum_ms": apart, "ratio": medians["step"] / apart})
    return rows


def mgd_recipe(table: dict[str, Any], student: str, options: argparse.Namespace, *more: str) -> Recipe:
    """The recipe mgd for a student of the table, on streets."""
    entry = table["students"][student]
    count, size = 2 * options.batch_size, list(options.size)
    return load_recipe(
        "mgd",
        [
            f"--model.name={entry['model']}",
            f"--model.args={json.dumps(entry['args'])}",
            f"--objectives.image.weight={entry['weights']['image']}",
            f"--objectives.region.weight={entry['weights']['region']}",
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
    """A network that was not trained, as a file."""
    model = build_model(entry["model"], num_classes=len(data.classes), **entry["args"])
    bundle = save_bundle(path, model, BundleHeader({"name": entry["model"], "args": entry["args"]}, data.classes))
    assert bundle.path is not None
    return bundle.path


def mgd_passes(recipe: Recipe, data: SegmentationData, options: argparse.Namespace) -> dict[str, Run]:
    """Name -> the whole step, and each network's pass alone; the student's has a network and optimizer of its own."""
    batch = {name: value.to(options.device) for name, value in data.train_batch(0, 0).items()}
    tasks = [build_task(recipe, data) for _ in range(2)]
    assert all(isinstance(task, SegmentationTask) for task in tasks)
    task, alone = (ready(task, options) for task in tasks)  # type: ignore[arg-type]
    images, student = Step.of(batch), alone.model
    assert images.weak is not None and images.mixed is not None
    rows = torch.cat([images.labelled, images.weak, images.mixed])
    half = options.precision == "bf16" or has_bfloat16(torch.device(options.device))  # as frozen teachers run

    def trivial() -> Tensor:
        return torch.stack([value.float().mean() for value in student.outputs(images.image).values()]).sum()

    def forward(model: SegmentationModel) -> Run:
        def run() -> None:
            with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=half):
                model.outputs(rows)

        return run

    passes = {
        "step": optimized(task.model, lambda: task.training_step(batch, 0), recipe, options),
        "student": optimized(student, trivial, recipe, options),
    }
    for name in ("deep", "wide"):
        teacher = task.teachers[name]
        assert isinstance(teacher, Frozen)
        passes[name] = forward(teacher.model.to(options.device).eval())
    return passes


STEPS = {"four-widths": (1.15, four_widths), "gradual": (1.05, gradual), "mgd": (1.15, mgd)}
"""name -> the ratio that is to be reached, and what measures the rows."""
