"""One format for every number that was measured: a line of JSON that says what it is and where it comes from.

A record has `table` (its file's name), `key` (unique in the table), `seed` (null where nothing is drawn), `metrics`
(what was measured), and its origin: `command`, `commit`, `hardware`, `versions`, and what else matters, such as
`options` and `clock`. Trained rows also have `protocol`, `model`, `id`, `label`, `minutes` and `date`; their metrics
are by width. What the programs in `measure/` report is one record per row (`rows/0`) and one per further fact
(`target`).

Usage:
    >>> save(options, {"target": 1.15, "rows": rows}, "torch", clock="process time")
    >>> report(Path("benchmarks/results/step_cost.jsonl"))["rows"]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from litheseg.files import atomic_path

__all__ = ["append", "commit", "hardware", "newest", "origin", "read", "report", "results", "save", "versions"]

RESULTS = Path(__file__).parent / "results"
_ROOT = Path(__file__).parents[1]

Record = dict[str, Any]


# --- reading ---------------------------------------------------------------------------------------------------------


def results(table: str) -> Path:
    """The committed file of a table."""
    return RESULTS / f"{table}.jsonl"


def read(path: Path) -> Iterator[Record]:
    """All records of a file, in its order; none where there is no file."""
    yield from map(json.loads, filter(None, path.read_text().splitlines() if path.exists() else ()))


def newest(path: Path) -> list[Record]:
    """The records of a file, of those with one key the last."""
    return list({record["key"]: record for record in read(path)}.values())


def report(path: Path) -> dict[str, Any]:
    """What `save` wrote: lists of rows and facts by name, with their origin; empty where there is no file."""
    content: dict[str, Any] = {}
    record: Record = {}
    for record in read(path):
        name, row, _ = record["key"].partition("/")
        if row:
            content.setdefault(name, []).append(record["metrics"])
        else:
            content[name] = record["metrics"]
    return content | {name: value for name, value in record.items() if name not in ("table", "key", "metrics", "seed")}


# --- writing ---------------------------------------------------------------------------------------------------------


def append(path: Path, record: Record) -> None:
    """Add one record, in one write: several processes may add to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(f"{json.dumps(record)}\n".encode())
        os.fsync(file.fileno())


def save(options: argparse.Namespace, measured: Mapping[str, Any], *packages: str, **facts: Any) -> None:
    """Write what a program measured to `options.output`, whole or not at all; nothing without an output.

    Args:
        options: of the program, for the origin of the records.
        measured: by name: a list of rows, which become one record each, or anything else, which becomes one record.
        packages: whose versions matter.
        **facts: as of `origin`.
    """
    if options.output is None:
        return
    common = {"seed": getattr(options, "seed", None)}, origin(options, *packages, **facts)
    lines = [
        json.dumps({"table": options.output.stem, "key": key, **common[0], "metrics": value, **common[1]})
        for name, values in measured.items()
        for key, value in _parts(name, values)
    ]
    with atomic_path(options.output) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _parts(name: str, values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
        yield from ((f"{name}/{index}", value) for index, value in enumerate(values))
    else:
        yield name, values


# --- where numbers come from -----------------------------------------------------------------------------------------


def origin(options: argparse.Namespace, *packages: str, device: str = "cpu", **facts: Any) -> dict[str, Any]:
    """What the numbers of a program depend on: command, options, commit, hardware, load and versions.

    Args:
        options: of the program; absolute paths are shown by their last part.
        packages: whose versions matter; those that are not installed are left out.
        device: on which it ran.
        **facts: further entries.
    """
    given = {name: _shown(value) for name, value in vars(options).items() if name != "output" and value is not None}
    return {
        "command": f"python {sys.argv[0]} {shlex.join(map(_word, sys.argv[1:]))}",
        "options": given,
        **facts,
        "commit": commit(),
        "hardware": hardware(device),
        "load_average": [round(value, 2) for value in os.getloadavg()],  # of 1, 5 and 15 minutes, this run included
        "versions": {"python": platform.python_version(), **versions(*packages)},
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str | None:
    """With `-dirty` where the package or a program has changes; None outside a repository.

    In a copy without its history the environment says it, as BENCHMARK_COMMIT.
    """
    if given := os.environ.get("BENCHMARK_COMMIT"):
        return given

    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], capture_output=True, text=True, cwd=_ROOT).stdout.strip()
        except OSError:  # no git
            return ""

    changed = git("status", "--porcelain", "--", "litheseg", "benchmarks/*.py", "benchmarks/*.yaml")
    name = git("rev-parse", "HEAD")
    return f"{name}{'-dirty' * bool(changed)}" if name else None


def hardware(device: str = "cpu") -> str:
    """Name of the GPU; cores and name of the processor."""
    if device != "cpu":
        import torch  # here, so that whoever only asks for the commit does not load it

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _word(text: str) -> str:
    return Path(text).name if Path(text).is_absolute() else text


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_shown(entry) for entry in value]
    return _word(str(value)) if isinstance(value, Path) else value
