"""Rows that came back from a GPU, checked and added to the committed results files.

A row is added if it is whole, is no rehearsal, names a commit of this repository without changes, is a row of its
table, and was trained by the command that the table and protocol give today. What is there already is passed over.

Usage:
    >>> merge(Path("results-of-gpu"), models=Path("zoo"))
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import records
import rows

from gpu.models import restore

__all__ = ["merge", "problem_of"]

_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("table", "key", "protocol", "model", "id", "label", "command", "commit", "hardware", "date"), str),
    **{"seed": int, "metrics": dict, "versions": dict, "minutes": (int, float)},
}
_ROOT = Path(__file__).parents[2]
_TABLES = ("slimseg", "ablation", "mgd", "grouping", "pairs", "peers")


def merge(folder: Path, *, models: Path | None = None, again: bool = False) -> int:
    """Add what can be added and say what cannot; 0 if every line was added or is there already.

    Raises:
        SystemExit: nothing came back.
    """
    path = folder / "rows.jsonl"
    if not path.exists():
        raise SystemExit(f"{path} is missing; give the --out folder of a run")
    added = known = refused = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            problem = problem_of(record)
        except ValueError:
            record, problem = {}, "no JSON object: the line was cut off"
        if problem:
            print(f"refused: line {number}, {record.get('key', '?')}: {problem}")
            refused += 1
            continue
        target = records.results(record["table"])
        if record["key"] in rows.finished(target, record["table"]) and (not again or record in records.read(target)):
            known += 1
            continue
        records.append(target, record)
        added += 1
    print(f"{added} rows added, {known} there already, {refused} refused")
    for half in sorted(folder.glob("*.half.safetensors")) if models else ():
        assert models is not None
        models.mkdir(parents=True, exist_ok=True)
        restore(half, models / f"{half.name.removesuffix('.half.safetensors')}.safetensors")
        print(f"model: {models / half.name.removesuffix('.half.safetensors')}.safetensors")
    if added:
        print("now: python benchmarks/tables.py")
    return int(refused > 0)


def problem_of(record: Mapping[str, Any]) -> str:
    """Why a row must not be added; "" if it may."""
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            return f"'{name}' is missing or of the wrong type"
    if record.get("tiny"):
        return "a rehearsal"
    return _problem_of_metrics(record["metrics"]) or _problem_of_commit(record["commit"]) or _problem_of_row(record)


def _problem_of_metrics(metrics: Mapping[str, Any]) -> str:
    for width, values in metrics.items():
        miou = values.get("miou") if isinstance(values, dict) else None
        if not re.fullmatch(r"[01](\.\d+)?", width) or not isinstance(miou, float) or not 0 <= miou <= 1:
            return f"width {width} has mIoU {miou}"
    return "" if metrics else "no width was scored"


def _problem_of_commit(commit: str) -> str:
    if not re.fullmatch("[0-9a-f]{40}", commit):
        return f"commit '{commit}': pack a commit without changes, and change nothing on the way"
    words = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    known = subprocess.run(words, capture_output=True, cwd=_ROOT).returncode == 0
    return "" if known else f"commit {commit[:12]} is not in this repository"


def _problem_of_row(record: Mapping[str, Any]) -> str:
    """Against the table and protocol as they are now."""
    table = record["table"]
    if table not in _TABLES:
        return f"there is no table '{table}'"
    network = record.get("network", record["model"])
    shares, folds = ([record[name]] if name in record else None for name in ("labelled", "fold"))
    try:
        found = _rows_of(record, network, shares, folds)
    except SystemExit as error:
        return str(error)
    row = next((row for row in found if row.key == record["key"]), None)
    if row is None:
        return f"table {table} has no such row"
    names = ("protocol", "model", "id", "label", "seed")
    differing = next((name for name in names if record[name] != getattr(row, name)), None)
    if differing:
        return f"'{differing}' is {record[differing]}, and the table has {getattr(row, differing)}"
    return "" if record["command"] == row.command else "it was trained by another command than the table gives now"


def _rows_of(
    record: Mapping[str, Any], network: str, shares: list[str] | None, folds: list[str] | None
) -> list[rows.Row]:
    """The rows among which it should be; a row that brings its own model is one of every network's."""
    table, protocol, seeds = record["table"], record["protocol"], [record["seed"]]
    try:
        return rows.read_rows(table, protocol, network, seeds, shares, folds)
    except SystemExit:
        found = [rows.read_rows(table, protocol, name, seeds, shares, folds) for name in rows.networks(table)]
        return [row for group in found for row in group]
