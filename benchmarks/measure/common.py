"""What programs that measure have in common: options, timing in turns, and a table on the console.

Usage:
    >>> options = arguments(__doc__, rounds=7, threads=1).parse_args()
    >>> times = in_turns({"plain": plain, "lazy": lazy}, options.rounds)
    >>> show([{"case": "street", "milliseconds": 1.5}], "labels")
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from litheseg.masks.classes import CAMVID_CLASSES

__all__ = ["arguments", "both_clocks", "ddrnet_file", "in_turns", "memory", "show", "summary"]

Name = TypeVar("Name")

_OPTIONS: dict[str, dict[str, Any]] = {
    "size": {"type": int, "nargs": 2, "metavar": ("H", "W"), "help": "of the images"},
    "batch_size": {"type": int},
    "precision": {"choices": ["bf16", "fp32"], "help": "bf16 is autocast"},
    "rounds": {"type": int, "help": "timed rounds, after one for warming up"},
    "threads": {"type": int, "help": "CPU threads"},
    "device": {},
    "seed": {"type": int},
}


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with --output and the common options that are named with their defaults.

    Args:
        description: a module's docstring; its first sentence is shown.
        **defaults: keys of `_OPTIONS`.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **_OPTIONS[name])
    parser.add_argument("--output", type=Path, help="where to write the records, JSON lines")
    return parser


def in_turns(
    steps: Mapping[Name, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, list[float]]:
    """Milliseconds of every step in every round; one more round goes before, untimed.

    All take turns, so that load from other programs falls on all alike: compare medians of one call only.
    """
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, run in steps.items():
            started = clock()
            run()
            times[name].append(1e3 * (clock() - started))
    return {name: values[1:] for name, values in times.items()}


def both_clocks(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of one call: CPU time of all threads, and wall-clock time."""
    used, began = time.process_time(), time.perf_counter()
    call()
    return 1e3 * (time.process_time() - used), 1e3 * (time.perf_counter() - began)


def summary(passes: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of passes as `both_clocks` gives them: median CPU time; median and 95th percentile on the wall's clock."""
    cpu, wall = zip(*passes, strict=True)
    cuts = quantiles(wall, n=20, method="inclusive")
    return {"cpu": median(cpu), "p50": cuts[9], "p95": cuts[18]}


def memory(process: int | str, name: str) -> float | None:
    """Bytes of a process ("self" for this one) by a line of its status, such as VmRSS; None where there is none."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def ddrnet_file(path: Path, base: int, widths: Sequence[float], size: tuple[int, int], seed: int) -> Any:
    """An elastic DDRNet that was not trained, as a model file: weights change no time."""
    import torch

    from litheseg.models import build_model
    from litheseg.models.bundle import BundleHeader, save_bundle
    from litheseg.nn import slim

    torch.manual_seed(seed)
    network = slim(build_model("ddrnet", num_classes=len(CAMVID_CLASSES), base=base), widths)
    architecture = {"name": "ddrnet", "args": {"base": base}}
    return save_bundle(path, network, BundleHeader(architecture, CAMVID_CLASSES, widths=tuple(widths), size=size))


def show(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print a column per row and a line per value; values in mappings have joined names."""
    flat = [dict(_flat("", row)) for row in rows]
    table = Table(title=title, show_header=False)
    for name in dict.fromkeys(name for row in flat for name in row):
        table.add_row(name, *(_text(row.get(name)) for row in flat))
    Console(width=200).print(table)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name} {key}".strip(), inner)
    else:
        yield name, value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"({len(value)} values)"
    return "" if value is None else str(value)
