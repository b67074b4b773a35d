"""What a gradual training step costs, compared with the dense network's step in the same run.

The gradual step is the recipe's, in the middle of the fall: alpha is set, weights are masked, and after the optimizer
the fading weights are held at the size of the others. The dense step is that of the same network with ordinary dense
convolutions. Both are timed in turn, so that load from other programs falls on both alike; medians are compared. A
third, at alpha 0, shows what the rest of the run costs.

    python benchmarks/gradual_cost.py --output benchmarks/results/gradual_cost.json
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from reports import write_report
from step_cost import CLASSES, batch_of, measure, origin, show_ratios, step

from litheseg.models import SegmentationModel
from litheseg.nn.grouping import GradualConv2d, fade, gradual_layers
from litheseg.nn.surgery import conv_like, replace_layer
from litheseg.training import Recipe, load_recipe
from litheseg.training.build import build_elastic_model
from litheseg.training.gradual import GradualGrouping
from litheseg.training.objectives import build_objectives

TARGET = 1.05
NETWORKS = {
    "erfnet-dg4*": ["--grouping.where=1x1"],
    "ddrnet": ["--model.efficient.groups=4", "--model.efficient.where=encoder,3x3"],
}


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    rows = [row_of(model, overrides, options) for model, overrides in NETWORKS.items()]
    report = {"target": TARGET, "rows": rows} | origin(options)
    show_ratios(rows, "cost of a gradual training step", TARGET)
    write_report(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32", help="bf16 is autocast")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args()


def row_of(model: str, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The medians of one network's steps, and the ratio that the target is about."""
    torch.manual_seed(options.seed)
    recipe = load_recipe("gradual-grouping", [f"--model.name={model}", *overrides])
    times = measure(steps_of(recipe, options), options)
    medians = {f"{name}_ms": 1e3 * median(values) for name, values in times.items()}
    return {"model": model, **medians, "ratio": medians["gradual_ms"] / medians["dense_ms"]}


def steps_of(recipe: Recipe, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Name -> one whole training step: forward, loss, backward, optimizer, and what the callback does."""
    gradual = build_elastic_model(recipe.model, recipe.widths, CLASSES, grouping=recipe.grouping)
    grouped = copy.deepcopy(gradual)
    fade(grouped, stage=0, alpha=0.0)
    run = plain_step(recipe, gradual, options)
    callback = GradualGrouping(recipe.grouping, total_steps=1000)
    calls = iter(range(10**9))

    def gradual_step() -> None:
        fade(gradual, stage=0, alpha=0.5 - 1e-3 * next(calls))
        run()
        callback.on_train_batch_end(None, gradual, None, None, 0)  # type: ignore[arg-type]

    return {
        "dense": plain_step(recipe, dense_twin(copy.deepcopy(gradual)), options),
        "gradual": gradual_step,
        "at_zero": plain_step(recipe, grouped, options),
    }


def plain_step(recipe: Recipe, model: SegmentationModel, options: argparse.Namespace) -> Callable[[], None]:
    aux = getattr(model, "aux_head", None) is not None
    objectives = build_objectives(recipe, torch.linspace(1.0, 5.0, CLASSES), aux=aux)
    return step(recipe, model, objectives, None, (1.0,), batch_of(options), options)


def dense_twin(model: SegmentationModel) -> SegmentationModel:
    """The network with ordinary dense convolutions in the place of those that fade."""
    for name, (layer, _) in gradual_layers(model).items():
        assert isinstance(layer, GradualConv2d)
        replace_layer(model, name, conv_like(layer))
    return model


if __name__ == "__main__":
    main()
