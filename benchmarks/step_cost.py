"""What a four-width training step costs, compared with four separate networks' steps in the same run.

The four-width step is the recipe's: every width with labels, boundary terms and deep supervision, each but the widest
with its teacher, one optimizer step. It is compared with the sum of one step each of four *plain* networks of these
widths (small weights, no elastic layers) with the same terms but the teacher's, and an optimizer step each. All five
are timed in turn, so that load from other programs falls on all alike; medians are compared. A sixth, the four widths
without teacher, shows what the teacher costs.

    python benchmarks/step_cost.py --output benchmarks/results/step_cost.json
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from reports import provenance, write_report
from rich.console import Console
from rich.table import Table
from torch import Tensor

from litheseg.models import SegmentationModel
from litheseg.nn import extract
from litheseg.training import Recipe, load_recipe
from litheseg.training.build import build_elastic_model
from litheseg.training.objectives import TEACHER, build_objectives
from litheseg.training.optimization import build_optimizer
from litheseg.training.task import Objective, SegmentationTask
from litheseg.training.teachers import NextWider, Teacher

TARGET = 1.15
CLASSES = 11


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    model = [f"--model.name={options.model}", f"--model.args={options.model_args}"]
    recipe = load_recipe("slimseg", [*model, f"--loss.boundary_head={options.boundary_head}"])
    times = measure(steps_of(recipe, options), options)
    report = summary(recipe, times) | origin(options)
    show(report)
    write_report(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ddrnet")
    parser.add_argument("--model-args", default="{}", help="YAML, such as {base: 8}")
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--boundary-head", type=float, default=0.0, help="weight of the auxiliary border head")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="bf16 is autocast")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args()


def steps_of(recipe: Recipe, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Name -> one whole training step: forward, loss, backward, optimizer."""
    model = build_elastic_model(recipe.model, recipe.widths, CLASSES, boundary_head=recipe.loss.boundary_head > 0)
    objectives = build_objectives(recipe, torch.linspace(1.0, 5.0, CLASSES), aux=True)
    hard = {name: objective for name, objective in objectives.items() if objective.teacher is None}
    widths, batch = recipe.widths.values, batch_of(options)
    steps = {
        "four": step(recipe, copy.deepcopy(model), objectives, NextWider(), widths, batch, options),
        "four without teacher": step(recipe, copy.deepcopy(model), hard, None, widths, batch, options),
    }
    model.training_only = ()  # else `extract` would drop the training heads
    for width in widths:
        plain = extract(model, width)
        assert isinstance(plain, SegmentationModel)
        steps[f"{width:g} alone"] = step(recipe, plain, hard, None, (1.0,), batch, options)
    return steps


def step(
    recipe: Recipe,
    model: SegmentationModel,
    objectives: dict[str, Objective],
    teacher: Teacher | None,
    widths: tuple[float, ...],
    batch: dict[str, Tensor],
    options: argparse.Namespace,
) -> Callable[[], None]:
    """A closure over a task of its own."""
    model = model.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = SegmentationTask(
        model, copy.deepcopy(objectives), teachers={TEACHER: teacher} if teacher else {}, widths=widths
    )
    task.to(options.device).train()
    task.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]  # there is no Trainer
    optimizer = build_optimizer(model, recipe.optimizer)

    def run() -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = task.training_step(batch, 0)
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


def measure(steps: dict[str, Callable[[], None]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every step in every round, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + options.rounds):
        for name, run in steps.items():
            started = now(options.device)
            run()
            times[name].append(now(options.device) - started)
    return {name: values[1:] for name, values in times.items()}


def now(device: str) -> float:
    """Processor time of this process on a CPU, so that other programs' share is left out; else wall-clock time."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def summary(recipe: Recipe, times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and their ratio, in the form that `benchmarks/tables.py` shows."""
    medians = {name: 1e3 * median(values) for name, values in times.items()}
    apart = sum(value for name, value in medians.items() if name.endswith("alone"))
    row = {
        "model": recipe.model.name,
        "four_widths_ms": medians["four"],
        "without_teacher_ms": medians["four without teacher"],
        "single_widths_ms": apart,
        "ratio": medians["four"] / apart,
    }
    return {"target": TARGET, "rows": [row], "milliseconds": medians, "widths": list(recipe.widths.values)}


def show(report: dict[str, Any]) -> None:
    table = Table("step", "ms", title="cost of a training step")
    for name, value in report["milliseconds"].items():
        table.add_row(name, f"{value:.0f}")
    Console().print(table)
    print(f"ratio {report['rows'][0]['ratio']:.3f} (target {TARGET})")


def show_ratios(rows: list[dict[str, Any]], title: str, target: float) -> None:
    """A table of rows with equal keys, for the scripts that compare whole steps with their parts."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in row.values()))
    Console().print(table)
    print(f"target: ratio at most {target}")


def origin(options: argparse.Namespace) -> dict[str, Any]:
    """`provenance` of a step's cost."""
    clock = "process time" if options.device == "cpu" else "wall-clock time"
    return provenance(options, "torch", "lightning", device=options.device, clock=clock)


if __name__ == "__main__":
    main()
