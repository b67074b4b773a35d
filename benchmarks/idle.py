"""What a box has left between the images: processor time of a network that is given an image at a steady rate.

A runtime's threads may wait for the next image by spinning, which keeps cores busy for nothing. Measured are, for two
widths in each runtime, the milliseconds of an image, end to end, and the processor time from one image to the next, in
cores. ONNX Runtime is measured as it comes, with threads that stop with each pass, and with ones that never spin.

    python benchmarks/idle.py model.safetensors --output benchmarks/results/idle.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from reports import provenance, write_report
from rich.console import Console
from rich.table import Table

from litheseg.deploy.export import export_bundle
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.machine import host_facts
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.runtime import engines
from litheseg.runtime.engines import open_engine
from litheseg.runtime.latency import street_frames
from litheseg.runtime.pipeline import Pipeline

SIZE = (360, 480)
WIDTHS = (0.25, 1.0)
RUNTIMES = {  # name -> settings of a session in ONNX Runtime
    "torch": {},
    "openvino": {},
    "onnxruntime": {},
    "onnxruntime, stopping": {"session.force_spinning_stop": "1"},
    "onnxruntime, not spinning": {"session.intra_op.allow_spinning": "0"},
}


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    bundle = load_bundle(options.model)
    frames = street_frames(SIZE)
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "export"
        export_bundle(bundle, export, formats=("onnx", "openvino"), widths=WIDTHS, size=SIZE, check=False)
        rows = [
            {"width": width, "runtime": runtime}
            | measured(opened(bundle, export, width, runtime, options.threads), frames, options)
            for width in WIDTHS
            for runtime in RUNTIMES
        ]
    show(rows)
    write_report(options.output, {"rows": rows, **provenance(options, host=host_facts())})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help=f"with widths {' and '.join(map(str, WIDTHS))}")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rate", type=float, default=15.0, help="images a second")
    parser.add_argument("--images", type=int, default=90, help="of each network")
    parser.add_argument("--output", type=Path, help="where to write JSON")
    return parser.parse_args()


def opened(bundle: Bundle, export: Path, width: float, runtime: str, threads: int) -> Pipeline:
    """The network in a runtime, with the settings of its name."""
    if runtime == "torch":
        return Pipeline(bundle_engine(bundle, width, "torch", threads=threads), SIZE, threads)
    usual = engines.session_options

    def session_options(threads: int | None = None) -> Any:
        options = usual(threads)
        for name, value in RUNTIMES[runtime].items():
            options.add_session_config_entry(name, value)
        return options

    with mock.patch.object(engines, "session_options", session_options):
        engine = open_engine(export, width=width, runtime=runtime.partition(",")[0], threads=threads)
    return Pipeline(engine, SIZE, threads)


def measured(pipeline: Pipeline, frames: Sequence[np.ndarray], options: argparse.Namespace) -> dict[str, float]:
    """p50 of an image in milliseconds, and how many cores the process keeps busy."""
    for _ in range(10):
        pipeline(frames[0])
    times, busy = [], []
    before = time.process_time()
    for index in range(options.images):
        began = time.perf_counter()
        pipeline(frames[index % len(frames)])
        times.append(1e3 * (time.perf_counter() - began))
        time.sleep(max(0.0, 1 / options.rate - (time.perf_counter() - began)))
        now = time.process_time()
        busy.append((now - before) * options.rate)
        before = now
    return {"p50_ms": round(median(times), 2), "cores_busy": round(median(busy), 2)}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("width", "runtime", "p50, ms", "cores busy")
    for row in rows:
        table.add_row(f"{row['width']:g}", row["runtime"], f"{row['p50_ms']:.2f}", f"{row['cores_busy']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
