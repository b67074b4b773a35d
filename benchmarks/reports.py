"""What all results files in `results/` have in common: where their numbers come from, and how they are written.

Usage:
    >>> report = {"rows": rows, **provenance(options, "torch", "onnxruntime", clock="wall-clock time")}
    >>> write_report(options.output, report)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from litheseg.files import atomic_path

__all__ = ["commit", "hardware", "provenance", "write_report"]

_ROOT = Path(__file__).parents[1]


def provenance(options: argparse.Namespace, *packages: str, device: str = "cpu", **facts: Any) -> dict[str, Any]:
    """What the numbers depend on: command, options, commit, hardware, load and versions.

    Args:
        options: of the script; absolute paths are shown by their last part.
        packages: whose versions matter; those that are not installed are left out.
        device: on which it ran.
        **facts: further entries.
    """
    given = {name: _shown(value) for name, value in vars(options).items() if name != "output" and value is not None}
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_word, sys.argv[1:])]),
        "options": given,
        **facts,
        "commit": commit(),
        "hardware": hardware(device),
        "load_average": [round(value, 2) for value in os.getloadavg()],  # of 1, 5 and 15 minutes, this run included
        "versions": {"python": platform.python_version(), **_versions(packages)},
    }


def commit() -> str | None:
    """With `-dirty` where the package or a script has changes; None outside a repository.

    A copy without its history is told by the environment, as BENCHMARK_COMMIT.
    """
    if told := os.environ.get("BENCHMARK_COMMIT"):
        return told

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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def write_report(path: Path | None, report: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all; nothing without a path."""
    if path:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")


def _word(text: str) -> str:
    return Path(text).name if Path(text).is_absolute() else text


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_shown(entry) for entry in value]
    return _word(str(value)) if isinstance(value, Path) else value


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
