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
import importlib
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from protocols import Protocol, read_protocols
from reports import commit, hardware

from litheseg.data import open_source
from litheseg.errors import Interrupted
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.training.config import Recipe
from litheseg.training.layout import on_cpu
from litheseg.training.recipe import load_recipe
from litheseg.training.run import train

HERE = Path(__file__).parent
# Over everything else, to rehearse: what takes seconds.
TINY = (
    "--data.size=[48,64]",
    "--data.crop=[48,64]",
    "--data.batch_size=2",
    "--data.steps=2",
    "--data.cache=ram",
    "--trainer.epochs=2",
    "--trainer.val_every=2",
    "--trainer.precision=32-true",
)


@dataclass(frozen=True)
class Row:
    """One training run of a table.

    Attributes:
        model: the network's name.
        overrides: what the row changes; {ID} stands for the model that another row trains.
        network: in a table of students, what the model is there: a student, or the pair that a teacher is of.
        labelled: in such a table, the share of the training images that are.
        fold: the sequence that is left out and scored, where the protocol has such.
        tiny: whether it is a rehearsal, of a few steps on tiny images.
        keys: of the rows that `overrides` may name, by id.
    """

    table: str
    protocol: str
    model: str
    id: str
    label: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    network: str | None = None
    labelled: str | None = None
    fold: str | None = None
    tiny: bool = False
    keys: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """What makes the row unique, usable as a folder name."""
        share = f"-{self.labelled.replace('/', 'of')}" if self.labelled else ""
        fold = f"-{self.fold}" if self.fold else ""
        name = (self.network or self.model).replace("*", "star")
        return f"{self.protocol}-{name}{share}-{self.id}{fold}-seed{self.seed}"

    def arguments(self, data: str, work: Path) -> list[str]:
        """The overrides of protocol and row, in this order."""
        protocol = protocol_of(self.protocol).arguments
        fold = [f"--data.leave_out={self.fold}"] if self.fold else []
        own = [*fold, f"--model.name={self.model}", f"--data.root={data}", f"--trainer.seed={self.seed}"]
        bundles = {other: work / key / "model.safetensors" for other, key in self.keys.items()}
        overrides = [_filled(part, bundles) for part in self.overrides]
        return [*protocol, *own, *overrides, *(TINY if self.tiny else ())]


def _filled(override: str, values: Mapping[str, Any]) -> str:
    """The override with values in the place of their {NAME}; other names stay."""
    return re.sub(r"{([\w.-]+)}", lambda match: str(values.get(match[1], match[0])), override)


def protocol_of(name: str) -> Protocol:
    """A protocol by its name."""
    protocols = read_protocols(HERE / "protocols.yaml")
    return protocols[_one_of(protocols, name, "protocols.yaml has no protocol")]


def read_rows(
    table: str,
    protocol: str,
    model: str | None,
    seeds: list[int],
    shares: list[str] | None = None,
    folds: list[str] | None = None,
) -> list[Row]:
    """The rows of a table; all rows of the first seed come before those of the next, and of a fold before the next.

    A row may name its model; the others are of `model`, by default the first of the table's. In a table of students
    `model` is one of these, and there are rows for each of `shares`, by default the table's first alone. A protocol
    with folds has every row once for each of `folds`, by default all.
    """
    content = yaml.safe_load((HERE / f"{table}.yaml").read_text())
    if "module" in content:
        importlib.import_module(content["module"])
    if "students" in content:
        groups = [
            _student_rows(content, table, protocol, model, seed, share)
            for seed in seeds
            for share in shares or content["shares"][:1]
        ]
    else:
        groups = [_model_rows(content, table, protocol, model, seed) for seed in seeds]
    groups = _per_fold(groups, protocol, folds)
    return [replace(row, keys={other.id: other.key for other in group}) for group in groups for row in group]


def _per_fold(groups: list[list[Row]], protocol: str, folds: list[str] | None) -> list[list[Row]]:
    """Each group once per fold, where the protocol has folds."""
    known = protocol_of(protocol).folds
    for fold in folds or ():
        _one_of(known, fold, f"protocol {protocol} has no fold")
    if not known:
        return groups
    return [[replace(row, fold=fold) for row in group] for group in groups for fold in folds or known]


def _model_rows(content: dict[str, Any], table: str, protocol: str, model: str | None, seed: int) -> list[Row]:
    models = content.get("models", [None])
    model = _one_of(models, model, f"{table}.yaml has no model")
    return [
        Row(
            table,
            protocol,
            row.get("model", model),
            row["id"],
            row["label"],
            row["recipe"],
            tuple(row["overrides"]),
            seed,
        )
        for row in content["rows"]
    ]


def _student_rows(
    content: dict[str, Any], table: str, protocol: str, student: str | None, seed: int, share: str
) -> list[Row]:
    """One student's rows and those of its teachers, for one share; where all is labelled, those that need no more."""
    student = _one_of(content["students"], student, f"{table}.yaml has no student")
    _one_of(content["shares"], share, f"{table}.yaml has no share")
    steps = content["steps"][_one_of(content["steps"], protocol, f"{table}.yaml has no steps for protocol")]
    teachers_by = content["teachers_by"].get(protocol, protocol)
    values = content["students"][student]
    common = [*content["every"], f"--data.steps={steps}", *([] if share == "all" else [f"--data.labelled={share}"])]
    rows = []
    for entry in content["rows"]:
        if share == "all" and not entry.get("labels_only"):
            continue
        name, role = values["teachers"], entry.get("teacher")
        pair = content["teachers"][name]
        network = pair[role] if role else values
        recipe = entry.get("recipe", pair["recipe"])
        own = [*content["recipes"].get(recipe, []), *network.get("overrides", []), *entry["overrides"]]
        overrides = [*common, f"--model.args={json.dumps(network['args'])}", *own]
        rows.append(
            Row(
                table,
                teachers_by if role else protocol,
                network["model"],
                entry["id"],
                _filled(entry["label"], pair),
                recipe,
                tuple(_filled(override, values["weights"]) for override in overrides),
                seed,
                network=name if role else student,
                labelled=share,
            )
        )
    return rows


def _one_of(known: Iterable[Any], name: Any, complaint: str) -> Any:
    """`name`, or the first where it is None; refused where it is not known."""
    known = list(known)
    if name is not None and name not in known:
        raise SystemExit(f"{complaint} '{name}'; choose from {', '.join(filter(None, known))}")
    return known[0] if name is None else name


def results_file(table: str) -> Path:
    """Where a table's finished rows are."""
    return HERE / "results" / f"{table}.jsonl"


def finished(path: Path) -> set[str]:
    """Keys of the rows that are done."""
    return {json.loads(line)["key"] for line in path.read_text().splitlines()} if path.exists() else set()


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
        spent = _add_minutes(folder, (time.monotonic() - start) / 60)
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
    tutors = [tutor.bundle for tutor in recipe.mgd.tutors.values()]
    for bundle in filter(None, [recipe.teacher.bundle, *tutors]):
        if not Path(bundle).exists():
            raise SystemExit(f"{bundle} is missing: run that row first (with --again if its results are kept already)")


def last_cross_entropy(curves: Path) -> dict[str, float]:
    """By width: the term on the labels in the last epoch, over the training views."""
    last: dict[str, str] = {}
    with curves.open(newline="") as file:
        for line in csv.DictReader(file):
            last.update({name: value for name, value in line.items() if value and name.startswith("train/main@")})
    return {name.removeprefix("train/main@"): float(value) for name, value in last.items()}


def published_val(recipe: Recipe, bundle: Bundle) -> dict[str, float]:
    """Mean IoU by width on the val split that the data set itself has; empty where it has none."""
    source = open_source(recipe.data.source, recipe.data.root, **recipe.data.options)
    if "val" not in source.splits():
        return {}
    scores = evaluate_bundle(bundle, source, device="cpu" if on_cpu(recipe.trainer) else "cuda").scores
    return {f"{width:g}": found.miou for width, found in scores.items()}


def _add_minutes(folder: Path, minutes: float) -> float:
    """Training time over all parts of a row, kept beside it."""
    path = folder / "minutes.txt"
    total = minutes + (float(path.read_text()) if path.exists() else 0.0)
    path.write_text(f"{total:.3f}")
    return total


def _record(row: Row, metrics: Any, minutes: float, recipe: Recipe) -> dict[str, Any]:
    arguments = row.arguments("DATA", Path("runs/benchmarks"))
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
        "command": shlex.join(["litheseg", "train", "--recipe", row.recipe, *arguments]),
        "commit": commit() or "",
        "hardware": hardware("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": {name: version(name) for name in ("torch", "torchvision", "lightning", "timm")},
        "minutes": round(minutes, 1),
        "date": time.strftime("%Y-%m-%d"),
    }


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line, in one write: several processes may add to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(f"{json.dumps(record)}\n".encode())
        os.fsync(file.fileno())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="slimseg, grouping, mgd or peers")
    parser.add_argument("--protocol", default="camvid-half", help="one of protocols.yaml")
    parser.add_argument("--data", required=True, help="the CamVid folder")
    parser.add_argument("--model", "--student", help="one of the table's models or students; by default its first")
    parser.add_argument("--labelled", nargs="+", help="shares of the training images, of the mgd table: 1/16 ... all")
    parser.add_argument("--folds", nargs="+", help="sequences to leave out, of a protocol with folds; all by default")
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
    results = arguments.results or results_file(arguments.table)
    done = finished(results)
    rows = read_rows(
        arguments.table,
        arguments.protocol,
        arguments.model,
        arguments.seeds,
        arguments.labelled,
        arguments.folds,
    )
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
            append(results, run_row(row, arguments.data, arguments.work, left))
        except Interrupted as stop:
            sys.exit(f"out of time: {stop}")


if __name__ == "__main__":
    main()
