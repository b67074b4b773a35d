"""What labels from low-resolution logits cost: lazily, and by interpolating everything and then taking the largest.

Logits are those of procedural streets: each class's share of a block of pixels, sharpened, with noise; the share of
cells that hold a border is in the report. A row of pure noise, where no cell is uniform, shows the worst case. All ways
take turns, round after round, so that load from other programs falls on all alike; medians of wall-clock time are
compared. The plain way is `F.interpolate` and `argmax`, on contiguous logits, as it is usually written; its faster
forms (channels_last, ``max(1).indices``) are there too, and the quickest of the four counts as "best".

    python benchmarks/upsampling.py --output benchmarks/results/upsampling.json

With ``--kernels`` it compares instead what can do the work on a CPU, one JSON line each: time in turns, with one thread
and more, and the memory that a fresh process grows by when it imports the kernel and labels an image, NumPy and the
logits there already. The committed lines also have Numba's kernel, which the commit that they name still has.

    python benchmarks/upsampling.py --rounds 200 --kernels benchmarks/results/upsampling_kernels.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from reports import provenance, write_report
from rich.console import Console
from rich.table import Table
from torch import Tensor

from litheseg.files import atomic_path
from litheseg.masks import upsampling as masks
from litheseg.models import upsampling
from litheseg.models.upsampling import label_maps, upsample_labels
from litheseg.streets import render_street

Name = TypeVar("Name")

TARGET = 20.0
PLAIN = ("argmax", "argmax, channels_last", "max", "max, channels_last")


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.kernels:
        compare(options)
        return
    report: dict[str, Any] = {"target": TARGET}
    report["rows"] = [row(name, options) for name in CASES] if options.case is None else [row(options.case, options)]
    report |= provenance(options, "torch", "numpy", clock="wall-clock time")
    show(report)
    write_report(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), help="one of the rows only")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernels", type=Path, help="compare kernels; where to write JSON lines")
    parser.add_argument("--output", type=Path, help="where to write JSON")
    return parser.parse_args()


def street_logits(size: tuple[int, int], stride: int, classes: int, seed: int) -> Tensor:
    """1 x K x h x w of a street scene."""
    _, mask = render_street(np.random.default_rng(seed), size)
    labels = torch.from_numpy(mask.astype(np.int64)) % classes
    shares = F.avg_pool2d(F.one_hot(labels, classes).movedim(-1, 0)[None].float(), stride)
    return 8 * shares + 0.3 * torch.randn(shares.shape, generator=torch.Generator().manual_seed(seed))


def noise_logits(size: tuple[int, int], stride: int, classes: int, seed: int) -> Tensor:
    shape = (1, classes, size[0] // stride, size[1] // stride)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Maker = Callable[[tuple[int, int], int, int, int], Tensor]
CASES: dict[str, tuple[Maker, tuple[int, int], int, int]] = {
    "street": (street_logits, (360, 480), 8, 11),
    "street, stride 4": (street_logits, (360, 480), 4, 11),
    "large street": (street_logits, (1024, 2048), 8, 19),
    "noise": (noise_logits, (360, 480), 8, 11),
}


def row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of all ways, and what the lazy one gains."""
    maker, size, stride, classes = CASES[name]
    logits = maker(size, stride, classes, options.seed)
    times = measure(ways(logits, size), options.rounds)
    medians = {way: median(values) for way, values in times.items()}
    best = min(medians[way] for way in PLAIN)
    return {
        "case": name,
        "size": size,
        "stride": stride,
        "classes": classes,
        "border_cells": border_cells(logits),
        "differing_pixels": int((upsample_labels(logits, size) != plain(logits, size).argmax(1)).sum()),
        "milliseconds": medians,
        "fastest_milliseconds": {way: min(values) for way, values in times.items()},
        "gain": medians["argmax"] / medians["lazy"],
        "gain_over_best": best / medians["lazy"],
    }


def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def border_cells(logits: Tensor) -> float:
    """Share of the cells between four samples that have more than one winner."""
    winners = logits.argmax(1)
    corners = torch.stack([winners[:, :-1, :-1], winners[:, :-1, 1:], winners[:, 1:, :-1], winners[:, 1:, 1:]])
    return float((corners != corners[0]).any(0).float().mean())


def ways(logits: Tensor, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    last = logits.contiguous(memory_format=torch.channels_last)

    def by_torch() -> Tensor:
        with patch.object(upsampling, "_IN_NUMPY", ()):
            return upsample_labels(logits, size)

    return {
        "argmax": lambda: plain(logits, size).argmax(1),
        "argmax, channels_last": lambda: plain(last, size).argmax(1),
        "max": lambda: plain(logits, size).max(1).indices,
        "max, channels_last": lambda: plain(last, size).max(1).indices,
        "lazy": lambda: upsample_labels(logits, size),
        "lazy, channels_last": lambda: upsample_labels(last, size),
        "lazy, one thread": lambda: upsample_labels(logits, size, threads=1),
        "lazy, PyTorch": by_torch,
        "lazy with borders": lambda: label_maps(logits, size, borders=True),
        "lazy with confidence": lambda: label_maps(logits, size, confidence="uint8"),
        "softmax and max": lambda: plain(logits, size).softmax(1).max(1),
    }


def measure(steps: dict[Name, Callable[[], object]], rounds: int) -> dict[Name, list[float]]:
    """Milliseconds of every way in every round, the first round left out."""
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: values[1:] for name, values in times.items()}


KERNELS = {
    "numpy": "from litheseg.masks.upsampling_arrays import fill_labels as kernel",
    "c": "from litheseg.masks._upsampling import fill_labels as kernel",
}
KERNEL_CASES: dict[str, tuple[tuple[int, int], int]] = {
    "street, 11 classes": ((360, 480), 11),
    "street, 19 classes": ((360, 480), 19),
    "large street": ((1024, 2048), 19),
}
GROWTH = """
import sys
import numpy as np
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
logits, size = np.load(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))
before = memory("VmRSS")
{source}
from litheseg.masks import upsampling
upsampling._kernel = lambda: kernel
upsampling.upsample_labels(logits, size, threads=int(sys.argv[4]))
print(memory("VmRSS") - before, memory("VmHWM") - before)
"""


def compare(options: argparse.Namespace) -> None:
    """Time all kernels in turns and weigh each by itself; write a JSON line for each of them and each case."""
    rows = []
    for case, (size, classes) in KERNEL_CASES.items():
        logits = street_logits(size, 8, classes, options.seed).numpy()
        times = measure(kernel_ways(logits, size, options.threads), options.rounds)
        first, *_ = KERNELS
        for (name, threads), values in times.items():
            row = {"kernel": name, "case": case, "size": size, "stride": 8, "classes": classes, "threads": threads}
            ratios = [one / other for one, other in zip(values, times[first, threads], strict=True)]
            row |= {"milliseconds": median(values), "fastest_milliseconds": min(values)}
            row |= {f"times_{first}": median(ratios), "megabytes": growth(name, logits, size, threads)}
            rows.append(row)
            print({key: value for key, value in row.items() if key not in ("size", "stride", "classes")})
    origin = provenance(options, "numpy", clock="wall-clock time")
    with atomic_path(options.kernels) as temporary:
        temporary.write_text("".join(json.dumps(row | origin) + "\n" for row in rows))


def kernel_ways(logits: np.ndarray, size: tuple[int, int], threads: int) -> dict[tuple[str, int], Callable[[], object]]:
    """By name of the kernel and number of threads, all through the public function."""

    def way(kernel: Callable[..., None], count: int) -> Callable[[], object]:
        def run() -> None:
            with patch.object(masks, "_kernel", lambda: kernel):
                masks.upsample_labels(logits, size, threads=count)

        return run

    ways: dict[tuple[str, int], Callable[[], object]] = {}
    for name, source in KERNELS.items():
        names: dict[str, Any] = {}
        exec(source, names)
        ways |= {(name, count): way(names["kernel"], count) for count in sorted({1, threads})}
    return ways


def growth(name: str, logits: np.ndarray, size: tuple[int, int], threads: int) -> dict[str, float]:
    """Megabytes of a fresh process: what stays, and the most there ever was."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(path := Path(folder) / "logits.npy", logits)
        words = [
            sys.executable,
            "-c",
            GROWTH.replace("{source}", KERNELS[name]),
            str(path),
            *map(str, (*size, threads)),
        ]
        stays, peak = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return {"stays": round(float(stays), 2), "peak": round(float(peak), 2)}


def show(report: dict[str, Any]) -> None:
    table = Table("way", *(row["case"] for row in report["rows"]), title="milliseconds")
    for way in report["rows"][0]["milliseconds"]:
        table.add_row(way, *(f"{row['milliseconds'][way]:.2f}" for row in report["rows"]))
    table.add_row("border cells", *(f"{row['border_cells']:.0%}" for row in report["rows"]))
    table.add_row("argmax / lazy", *(f"{row['gain']:.0f}" for row in report["rows"]))
    table.add_row("best plain / lazy", *(f"{row['gain_over_best']:.0f}" for row in report["rows"]))
    Console().print(table)
    print(f"target {TARGET:g}")


if __name__ == "__main__":
    main()
