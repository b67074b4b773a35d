"""What it costs to resize an image: torchvision, Pillow, the C extension and NumPy, one thread each.

Images are procedural streets. All four take turns, round after round, so that load from other programs falls on all
alike; medians of processor time are compared, and each one's ratio to torchvision is taken within a round. In how many
values the others differ from torchvision, and by how much at most, is in the report. Torchvision and Pillow are given
what they like best: a view of H W 3 as 3 H W, and a finished `Image`.

    python benchmarks/resizing.py --output benchmarks/results/resizing.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from reports import provenance, write_report
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2 import functional as tv

from litheseg.masks import resizing
from litheseg.masks.resizing import resize_image
from litheseg.streets import render_street

TARGET = 2.0  # times torchvision's, for C
CASES = [
    ((720, 960), (360, 480)),
    ((1080, 1920), (512, 1024)),
    ((3000, 4000), (360, 480)),
    ((360, 480), (180, 240)),
]


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    torch.set_num_threads(1)
    if resizing._kernel() is resizing._resize:
        raise SystemExit("The C extension was not built: pip install -e . where there is a compiler")
    rows = [row(old, new, options) for old, new in CASES]
    facts = provenance(options, "torch", "torchvision", "pillow", "numpy", clock="processor time of the thread")
    report = {"target": TARGET, "rows": rows, **facts}
    show(report)
    write_report(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds, after one for warming up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to write JSON")
    return parser.parse_args()


def row(old: tuple[int, int], new: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Medians of all ways, their ratios to torchvision, and how far their pixels are from its."""
    image, _ = render_street(np.random.default_rng(options.seed), old)
    steps = ways(image, new)
    expected = steps["torchvision"]().astype(np.int16)
    gaps = {way: np.abs(run().astype(np.int16) - expected) for way, run in steps.items()}
    times = measure(steps, options.rounds)
    reference = times["torchvision"]
    return {
        "from": old,
        "to": new,
        "milliseconds": {way: median(values) for way, values in times.items()},
        "fastest_milliseconds": {way: min(values) for way, values in times.items()},
        "ratio_to_torchvision": {
            way: median(own / other for own, other in zip(values, reference, strict=True))
            for way, values in times.items()
        },
        "differing_values": {way: float((gap > 0).mean()) for way, gap in gaps.items()},
        "largest_difference": {way: int(gap.max()) for way, gap in gaps.items()},
    }


def ways(image: np.ndarray, new: tuple[int, int]) -> dict[str, Callable[[], np.ndarray]]:
    """Each gives uint8 h w 3."""
    pixels, picture = torch.from_numpy(image).permute(2, 0, 1), Image.fromarray(image)

    def by_numpy() -> np.ndarray:
        with patch.object(resizing, "_kernel", lambda: resizing._resize):
            return resize_image(image, new)

    return {
        "torchvision": lambda: tv.resize(pixels, list(new), antialias=True).permute(1, 2, 0).numpy(),
        "Pillow": lambda: np.asarray(picture.resize(new[::-1], Image.Resampling.BILINEAR)),
        "C": lambda: resize_image(image, new),
        "NumPy": by_numpy,
    }


def measure(steps: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every way in every round, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, run in steps.items():
            started = time.thread_time()
            run()
            times[name].append(1e3 * (time.thread_time() - started))
    return {name: values[1:] for name, values in times.items()}


def show(report: dict[str, Any]) -> None:
    titles = [" -> ".join(f"{h}x{w}" for h, w in (row["from"], row["to"])) for row in report["rows"]]
    table = Table("way", *titles, title="milliseconds (times torchvision's)")
    for way in report["rows"][0]["milliseconds"]:
        cells = [(row["milliseconds"][way], row["ratio_to_torchvision"][way]) for row in report["rows"]]
        table.add_row(way, *(f"{value:.2f} ({ratio:.2f})" for value, ratio in cells))
    for way in ("Pillow", "C", "NumPy"):
        shares = [f"{row['differing_values'][way]:.2%}" for row in report["rows"]]
        table.add_row(f"{way}: other values", *shares)
    Console().print(table)
    print(f"target for C: {report['target']:g} times torchvision's")


if __name__ == "__main__":
    main()
