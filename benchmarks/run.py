"""Do the next missing rows of a results table, within a time budget.

A table is a YAML list of rows (recipe + overrides); a protocol fixes everything else. Finished rows are appended, one
JSON line each, to `benchmarks/results/<table>.jsonl`, which is committed; tables and plots are made from it by
`benchmarks/tables.py`. A row that was cut off (killed, out of time) goes on where it stopped at the next call.

Usage:
    python benchmarks/run.py slimseg --protocol camvid-half --data path/to/camvid --model ddrnet --minutes 60
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from litheseg.deploy.bundle import load_bundle
from litheseg.training.callbacks import Interrupted
from litheseg.training.recipe import load_recipe
from litheseg.training.run import train

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One training run of a table."""

    table: str
    protocol: str
    model: str
    id: str
    label: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        """What makes the row unique, usable as a folder name."""
        return f"{self.protocol}-{self.model.replace('*', 'star')}-{self.id}-seed{self.seed}"

    def arguments(self, data: str, work: Path) -> list[str]:
        """The overrides of protocol and row, in this order; {ID} stands for the model that another row trained."""
        protocol = yaml.safe_load((HERE / "protocols.yaml").read_text())[self.protocol]
        own = [f"--model.name={self.model}", f"--data.root={data}", f"--trainer.seed={self.seed}"]
        return [*protocol, *own, *(self._with_bundles(part, work) for part in self.overrides)]

    def _with_bundles(self, override: str, work: Path) -> str:
        def bundle(match: re.Match[str]) -> str:
            rows = read_rows(self.table, self.protocol, None, [self.seed])
            other = next(row for row in rows if row.id == match[1])
            return str(work / other.key / "model.safetensors")

        return re.sub(r"{([\w.-]+)}", bundle, override)


def read_rows(table: str, protocol: str, model: str | None, seeds: list[int]) -> list[Row]:
    """The rows of a table; all rows of the first seed come before those of the next.

    A row may name its model; the others are of `model`, by default the first of the table's.
    """
    content = yaml.safe_load((HERE / f"{table}.yaml").read_text())
    models = content.get("models", [None])
    model = model or models[0]
    if model not in models:
        raise SystemExit(f"{table}.yaml has no model '{model}'; choose from {', '.join(filter(None, models))}")
    return [
        Row(
            table, protocol, row.get("model", model), row["id"], row["label"], row["recipe"], tuple(row["overrides"]), s
        )
        for s in seeds
        for row in content["rows"]
    ]


def results_file(table: str) -> Path:
    """Where a table's finished rows are."""
    return HERE / "results" / f"{table}.jsonl"


def finished(table: str) -> set[str]:
    """Keys of the rows that are done."""
    path = results_file(table)
    return {json.loads(line)["key"] for line in path.read_text().splitlines()} if path.exists() else set()


def run_row(row: Row, data: str, work: Path, minutes: float) -> dict[str, Any]:
    """Train one row, or go on with it; stop cleanly when the time is up.

    Raises:
        Interrupted: out of time; what was done is kept.
    """
    recipe = load_recipe(row.recipe, row.arguments(data, work))
    folder = work / row.key
    alarm = threading.Timer(max(1.0, 60 * minutes), os.kill, (os.getpid(), signal.SIGINT))
    alarm.daemon = True
    alarm.start()
    start = time.monotonic()
    try:
        result = train(recipe, folder, resume=True)
    finally:
        alarm.cancel()
        spent = _add_minutes(folder, (time.monotonic() - start) / 60)
    metrics = {**load_bundle(result.bundle).header.metrics}
    for width, value in last_cross_entropy(folder / "metrics.csv").items():
        metrics[width] = {**metrics[width], "train_ce": value}
    return _record(row, metrics, spent)


def last_cross_entropy(curves: Path) -> dict[str, float]:
    """By width: the term on the labels in the last epoch, over the training views."""
    last: dict[str, str] = {}
    with curves.open(newline="") as file:
        for line in csv.DictReader(file):
            last.update({name: value for name, value in line.items() if value and name.startswith("train/main@")})
    return {name.removeprefix("train/main@"): float(value) for name, value in last.items()}


def _add_minutes(folder: Path, minutes: float) -> float:
    """Training time over all parts of a row, kept beside it."""
    path = folder / "minutes.txt"
    total = minutes + (float(path.read_text()) if path.exists() else 0.0)
    path.write_text(f"{total:.3f}")
    return total


def _record(row: Row, metrics: Any, minutes: float) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "litheseg"], capture_output=True, text=True, cwd=HERE.parent
    )
    arguments = row.arguments("DATA", Path("runs/benchmarks"))
    return {
        "key": row.key,
        "protocol": row.protocol,
        "model": row.model,
        "id": row.id,
        "label": row.label,
        "seed": row.seed,
        "metrics": metrics,
        "command": shlex.join(["litheseg", "train", "--recipe", row.recipe, *arguments]),
        "commit": commit + ("-dirty" if dirty.stdout.strip() else ""),
        "hardware": _hardware(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "lightning", "timm")},
        "minutes": round(minutes, 1),
        "date": time.strftime("%Y-%m-%d"),
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{os.cpu_count()} x {names[0] if names else platform.processor()}"


def append(table: str, record: dict[str, Any]) -> None:
    """Add one line, in one write."""
    path = results_file(table)
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="slimseg or grouping")
    parser.add_argument("--protocol", default="camvid-half", help="one of protocols.yaml")
    parser.add_argument("--data", required=True, help="the CamVid folder")
    parser.add_argument("--model", help="one of the table's models; by default its first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--minutes", type=float, default=600, help="time budget; an unfinished row is resumed next time"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="where runs are kept")
    parser.add_argument("--only", nargs="*", help="ids of rows; all by default")
    parser.add_argument("--dry-run", action="store_true", help="list the rows and whether they are done")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    done = finished(arguments.table)
    for row in read_rows(arguments.table, arguments.protocol, arguments.model, arguments.seeds):
        if arguments.only and row.id not in arguments.only:
            continue
        print(f"{'done' if row.key in done else 'missing':8} {row.key}", flush=True)
        left = (end - time.monotonic()) / 60
        if row.key in done or arguments.dry_run:
            continue
        if left <= 0:
            sys.exit("out of time; the next call goes on")
        try:
            append(arguments.table, run_row(row, arguments.data, arguments.work, left))
        except Interrupted as stop:
            sys.exit(f"out of time: {stop}")


if __name__ == "__main__":
    main()
