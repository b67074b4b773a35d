"""Networks that are timed in turns: do they seem slower than when one runs alone? And at a camera's pace?

After a pass a runtime's threads spin for a while, and take cores from whoever runs next; and who runs next has to get
the processor used to its data and branches again. Measured are, for a few networks: the processor time that goes by
after a pass, and the time of an image, end to end, in turns of three passes that begin at once, in turns that wait
until nothing spins, in turns that also run untimed for a while (as litheseg times), alone, and at a pace. The ways are
measured one after the other, several times over, and all timings of a way are taken together. Leave the machine alone
meanwhile.

    python benchmarks/turns.py model.safetensors --output benchmarks/results/turns.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from reports import provenance, write_report
from rich.console import Console
from rich.table import Table

from litheseg import machine
from litheseg.deploy.export import export_bundle
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.machine import host_facts, settle
from litheseg.models.bundle import load_bundle
from litheseg.runtime.engines import open_engine
from litheseg.runtime.kit import summary
from litheseg.runtime.latency import Scope, measure, street_frames
from litheseg.runtime.pipeline import Pipeline

SIZE = (360, 480)
WIDTHS = (0.25, 0.5)
AT_ONCE, WAITING, AS_TIMED, ALONE, PACED = WAYS = ("at once", "waiting", "as timed", "alone", "at a pace")
PACE = 30.0  # images a second
REPEATS = 60  # twenty turns of three passes


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    frames = street_frames(SIZE)
    with tempfile.TemporaryDirectory() as folder:
        pipelines = opened(options.model, Path(folder) / "export", options.threads)
        spins = {name: spun(pipeline, frames) for name, pipeline in pipelines.items()}
        times: dict[str, dict[str, list[float]]] = {way: {name: [] for name in pipelines} for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                for name, found in measured(way, pipelines, frames).items():
                    times[way][name] += found
    rows = [
        {"network": name, "spins_ms": spins[name], **{way: summary(times[way][name]) for way in WAYS}}
        for name in pipelines
    ]
    show(rows)
    write_report(options.output, {"rows": rows, **provenance(options, host=host_facts())})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help=f"with widths {' and '.join(map(str, WIDTHS))}")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=5, help=f"of {REPEATS} timed images of each network in each way")
    parser.add_argument("--output", type=Path, help="where to write JSON")
    return parser.parse_args()


def opened(model: Path, folder: Path, threads: int) -> dict[str, Pipeline]:
    """Two widths of the model, in the runtimes."""
    bundle = load_bundle(model)
    export_bundle(bundle, folder, formats=("onnx", "openvino"), widths=WIDTHS, size=SIZE, check=False)
    return {
        f"width {width:g}, {runtime}": Pipeline(
            bundle_engine(bundle, width, "torch", threads=threads)
            if runtime == "torch"
            else open_engine(folder, width=width, runtime=runtime, threads=threads),
            SIZE,
            threads,
        )
        for width in WIDTHS
        for runtime in ("torch", "onnxruntime", "openvino")
    }


def end_to_end(pipelines: dict[str, Pipeline], frames: Sequence[np.ndarray], **how: Any) -> dict[str, list[float]]:
    """Milliseconds of pipelines that take turns, as `profile` and `fit` time them."""
    return {name: stages[Scope.END_TO_END].ms for name, stages in measure(pipelines, frames, **how).items()}


def spun(pipeline: Pipeline, frames: Sequence[np.ndarray]) -> float:
    """Milliseconds of processor time that go by after a pass, while nobody waits for anything; median of five."""
    found = []
    for _ in range(5):
        pipeline(frames[0])
        used = time.process_time()
        settle(limit=10)
        found.append(1e3 * (time.process_time() - used))
    return round(median(found), 1)


def measured(way: str, pipelines: Mapping[str, Pipeline], frames: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Milliseconds end to end, `REPEATS` of each."""
    if way == ALONE:
        return {name: end_to_end({name: own}, frames, repeats=REPEATS)[name] for name, own in pipelines.items()}
    with ExitStack() as without:
        if way == AT_ONCE:
            without.enter_context(mock.patch.object(machine, "settle"))
        if way in (AT_ONCE, WAITING):
            without.enter_context(mock.patch.object(machine, "_AGAIN", 0.0))
        return end_to_end(pipelines, frames, repeats=REPEATS, fps=PACE if way == PACED else None)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="p50 / p95, ms")
    for name in ("network", "spins, ms", *WAYS):
        table.add_column(name, justify="left" if name == "network" else "right")
    for row in rows:
        times = (f"{row[way]['p50']:.2f} / {row[way]['p95']:.2f}" for way in WAYS)
        table.add_row(row["network"], f"{row['spins_ms']:.0f}", *times)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
