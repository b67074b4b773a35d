"""Do the next missing rows of a results table, within a time budget.

A table is a YAML list of rows (recipe + overrides); a protocol fixes everything else. Finished rows are appended, one
JSON line each, to `benchmarks/results/<table>.jsonl`, which is committed; tables and plots are made from it by
`benchmarks/tables.py`. A row that was cut off (killed, out of time) goes on where it stopped at the next call.

Usage:
    python benchmarks/run.py slimseg --protocol camvid-half --data path/to/camvid --model ddrnet --minutes 60
    python benchmarks/run.py slimseg --protocol camvid-half-seq --data path/to/camvid --folds 0016E5 --minutes 60
    python benchmarks/run.py mgd --protocol camvid-half-few --data path/to/camvid --student ddrnet --labelled 1/16
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from records import append, commit, hardware, results, versions
from rows import Row, finished, read_rows

from litheseg.data import open_source
from litheseg.errors import Interrupted
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.training.layout import on_cpu
from litheseg.training.recipe import Recipe, load_recipe
from litheseg.training.run import train
from litheseg.training.teachers import FrozenConfig


def run_row(row: Row, data: str, work: Path, minutes: float) -> dict[str, Any]:
    """Train one row, or go on with it; stop cleanly when the time is up.

    Raises:
        Interrupted: out of time; what was done is kept.
    """
    recipe = load_recipe(row.recipe, row.arguments(data, work))
    _require_teachers(recipe)
    folder = work / row.key
    alarm = threading.Timer(max(1.0, 60 * minutes), os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    start = time.monotonic()
    try:
        result = train(recipe, folder, resume=True)
    finally:
        alarm.cancel()
        kept = folder / "minutes.txt"  # over all parts of a row
        spent = (time.monotonic() - start) / 60 + (float(kept.read_text()) if kept.exists() else 0.0)
        kept.write_text(f"{spent:.3f}")
    bundle = load_bundle(result.bundle)
    metrics = {**bundle.header.metrics}
    beside = {"train_ce": last_cross_entropy(folder / "metrics.csv")}
    if row.fold:
        beside["published_val"] = published_val(recipe, bundle)
    for name, values in beside.items():
        for width, value in values.items():
            metrics[width] = {**metrics[width], name: value}
    return _record(row, metrics, spent, recipe)


def _require_teachers(recipe: Recipe) -> None:
    """Refuse a row that learns from another row's model which is not there."""
    for teacher in recipe.teachers.values():
        bundle = teacher.bundle if isinstance(teacher, FrozenConfig) else None
        if bundle is not None and not Path(bundle).exists():
            raise SystemExit(f"{bundle} is missing: run that row first (with --again if its results are kept already)")


def last_cross_entropy(curves: Path) -> dict[str, float]:
    """By width: the loss on the labels in the last epoch, over the training views."""
    last: dict[str, str] = {}
    with curves.open(newline="") as file:
        for line in csv.DictReader(file):
            last.update({name: value for name, value in line.items() if value and name.startswith("train/labels@")})
    return {name.removeprefix("train/labels@"): float(value) for name, value in last.items()}


def published_val(recipe: Recipe, bundle: Bundle) -> dict[str, float]:
    """Mean IoU by width on the val split that was published with the data set; empty where there is none."""
    source = open_source(recipe.data.source, recipe.data.root, **recipe.data.options)
    if "val" not in source.splits() or source.holds_out:
        return {}
    scores = evaluate_bundle(bundle, source, device="cpu" if on_cpu(recipe.trainer) else "cuda").scores
    return {f"{width:g}": found.miou for width, found in scores.items()}


def _record(row: Row, metrics: Any, minutes: float, recipe: Recipe) -> dict[str, Any]:
    few = {"network": row.network, "labelled": row.labelled, "steps": recipe.trainer.epochs * recipe.data.steps}
    return {
        "table": row.table,
        "key": row.key,
        "protocol": row.protocol,
        "model": row.model,
        "id": row.id,
        "label": row.label,
        "seed": row.seed,
        **({"fold": row.fold} if row.fold else {}),
        **({"tiny": True} if row.tiny else {}),
        **(few if row.labelled else {}),
        "metrics": metrics,
        "command": row.command,
        "commit": commit() or "",
        "hardware": hardware("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": versions("torch", "torchvision", "lightning", "timm"),
        "minutes": round(minutes, 1),
        **({"processes": int(os.environ["BENCHMARK_PROCESSES"])} if "BENCHMARK_PROCESSES" in os.environ else {}),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="slimseg, ablation, grouping, mgd, pairs or peers")
    parser.add_argument("--protocol", default="camvid-half", help="one of protocols.yaml")
    parser.add_argument("--data", required=True, help="the folder of CamVid, or of the membranes")
    parser.add_argument("--model", "--student", help="one of the table's models or students; by default its first")
    parser.add_argument("--labelled", nargs="+", help="shares of the training images, of the mgd table: 1/16 ... all")
    parser.add_argument("--folds", nargs="+", help="what to leave out, of a protocol with folds; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--minutes", type=float, default=600, help="time budget; an unfinished row is resumed next time"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="where runs are kept")
    parser.add_argument("--results", type=Path, help="where finished rows are added; by default results/TABLE.jsonl")
    parser.add_argument("--only", nargs="*", help="ids of rows; all by default")
    parser.add_argument("--tiny", action="store_true", help="a few steps on tiny images, to rehearse; needs --results")
    parser.add_argument("--again", action="store_true", help="also rows that are done; the last line of each counts")
    parser.add_argument("--dry-run", action="store_true", help="list the rows and whether they are done")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    if arguments.tiny and not arguments.results:
        parser.error("--tiny needs --results: such rows must not be among the real ones")
    path = arguments.results or results(arguments.table)
    done = finished(path, arguments.table)
    names = ("table", "protocol", "model", "seeds", "labelled", "folds")
    rows = read_rows(*(getattr(arguments, name) for name in names))
    for row in (replace(row, tiny=arguments.tiny) for row in rows):
        if arguments.only and row.id not in arguments.only:
            continue
        print(f"{'done' if row.key in done else 'missing':8} {row.key}", flush=True)
        left = (end - time.monotonic()) / 60
        if (row.key in done and not arguments.again) or arguments.dry_run:
            continue
        if left <= 0:
            sys.exit("out of time; the next call goes on")
        try:
            append(path, run_row(row, arguments.data, arguments.work, left))
        except Interrupted as stop:
            sys.exit(f"out of time: {stop}")


if __name__ == "__main__":
    main()
