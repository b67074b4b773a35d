"""What a runtime's waiting threads cost: between the images of a camera, and for networks that are timed in turns.

Between two passes a runtime's threads may spin, which keeps cores busy for nothing and takes them from whoever runs
next. Two questions:

- idle: how many cores does a network keep busy that is given images at a steady rate? ONNX Runtime is measured as it
  comes, with threads that stop with each pass, and with ones that never spin.
- turns: do networks that are timed in turns seem slower than one that runs alone? Timed are turns of three passes that
  begin at once, that wait until nothing spins, that also run untimed for a while (as litheseg times), a network alone,
  and a network at a camera's frame rate; one after the other, several times over.

Times are end to end. Leave the machine alone meanwhile.

    python benchmarks/measure spinning idle model.safetensors --output benchmarks/results/idle.jsonl
    python benchmarks/measure spinning turns model.safetensors --output benchmarks/results/turns.jsonl
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
from records import save

from litheseg import machine
from litheseg.deploy.export import export_bundle
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.machine import host_facts, settle
from litheseg.models.bundle import load_bundle
from litheseg.runtime import in_onnxruntime
from litheseg.runtime.engines import open_engine
from litheseg.runtime.kit import summary
from litheseg.runtime.latency import Scope, measure, street_frames
from litheseg.runtime.pipeline import Pipeline
from measure.common import arguments, show

SIZE = (360, 480)
RUNTIMES = {  # name -> settings of a session in ONNX Runtime
    "torch": {},
    "openvino": {},
    "onnxruntime": {},
    "onnxruntime, stopping": {"session.force_spinning_stop": "1"},
    "onnxruntime, not spinning": {"session.intra_op.allow_spinning": "0"},
}
WIDTHS = {"idle": (0.25, 1.0), "turns": (0.25, 0.5)}
AT_ONCE, WAITING, AS_TIMED, ALONE, PACED = MODES = ("at once", "waiting", "as timed", "alone", "at a frame rate")
REPEATS = 60  # twenty turns of three passes
FRAME_RATE = 30.0  # images a second, of the last mode


def main() -> None:
    """Parse, measure, print a table, write records."""
    options = parse()
    runtimes = list(RUNTIMES) if options.question == "idle" else ["torch", "onnxruntime", "openvino"]
    with tempfile.TemporaryDirectory() as folder:
        pipelines = opened(options, WIDTHS[options.question], runtimes, Path(folder) / "export")
        rows = {"idle": idle, "turns": turns}[options.question](pipelines, options)
    show(rows, "milliseconds, and cores that are kept busy")
    save(options, {"rows": rows}, host=host_facts())


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, threads=2)
    parser.add_argument("question", choices=list(WIDTHS))
    parser.add_argument("model", type=Path, help=f"with widths as in {WIDTHS}")
    parser.add_argument("--rate", type=float, default=15.0, help="of idle: images a second")
    parser.add_argument("--images", type=int, default=90, help="of idle: of each network")
    parser.add_argument("--rounds", type=int, default=5, help=f"of turns: of {REPEATS} timed images in each mode")
    return parser.parse_args()


def opened(
    options: argparse.Namespace, widths: Sequence[float], runtimes: Sequence[str], export: Path
) -> dict[tuple[float, str], Pipeline]:
    """By width and runtime; sessions of ONNX Runtime with the settings of their names."""
    bundle = load_bundle(options.model)
    export_bundle(bundle, export, formats=("onnx", "openvino"), widths=widths, size=SIZE, check=False)
    usual, pipelines = in_onnxruntime.session_options, {}
    for width in widths:
        for runtime in runtimes:

            def session_options(threads: int | None = None, runtime: str = runtime) -> Any:
                made = usual(threads)
                for name, value in RUNTIMES[runtime].items():
                    made.add_session_config_entry(name, value)
                return made

            with mock.patch.object(in_onnxruntime, "session_options", session_options):
                if runtime == "torch":
                    engine = bundle_engine(bundle, width, "torch", threads=options.threads)
                else:
                    name = runtime.partition(",")[0]
                    engine = open_engine(export, width=width, runtime=name, threads=options.threads)
            pipelines[width, runtime] = Pipeline(engine, SIZE, options.threads)
    return pipelines


def idle(pipelines: Mapping[tuple[float, str], Pipeline], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per width and runtime: p50 of an image in milliseconds, and how many cores the process keeps busy."""
    frames, rows = street_frames(SIZE), []
    for (width, runtime), pipeline in pipelines.items():
        for _ in range(10):
            pipeline(frames[0])
        times, busy, before = [], [], time.process_time()
        for index in range(options.images):
            began = time.perf_counter()
            pipeline(frames[index % len(frames)])
            times.append(1e3 * (time.perf_counter() - began))
            time.sleep(max(0.0, 1 / options.rate - (time.perf_counter() - began)))
            now = time.process_time()
            busy.append((now - before) * options.rate)
            before = now
        found = {"p50_ms": round(median(times), 2), "cores_busy": round(median(busy), 2)}
        rows.append({"width": width, "runtime": runtime, **found})
    return rows


def turns(pipelines: Mapping[tuple[float, str], Pipeline], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per network: how long its threads spin, and its times in every mode."""
    frames = street_frames(SIZE)
    named = {f"width {width:g}, {runtime}": pipeline for (width, runtime), pipeline in pipelines.items()}
    spins = {name: spun(pipeline, frames) for name, pipeline in named.items()}
    times: dict[str, dict[str, list[float]]] = {mode: {name: [] for name in named} for mode in MODES}
    for _ in range(options.rounds):
        for mode in MODES:
            for name, found in measured(mode, named, frames).items():
                times[mode][name] += found
    return [
        {"network": name, "spins_ms": spins[name], **{mode: summary(times[mode][name]) for mode in MODES}}
        for name in named
    ]


def spun(pipeline: Pipeline, frames: Sequence[np.ndarray]) -> float:
    """Milliseconds of processor time that go by after a pass, while nobody waits for anything; median of five."""
    found = []
    for _ in range(5):
        pipeline(frames[0])
        used = time.process_time()
        settle(limit=10)
        found.append(1e3 * (time.process_time() - used))
    return round(median(found), 1)


def measured(mode: str, pipelines: Mapping[str, Pipeline], frames: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Milliseconds end to end, `REPEATS` of each."""

    def timed(pipelines: Mapping[str, Pipeline], fps: float | None = None) -> dict[str, list[float]]:
        found = measure(dict(pipelines), frames, repeats=REPEATS, fps=fps)
        return {name: stages[Scope.END_TO_END].ms for name, stages in found.items()}

    if mode == ALONE:
        return {name: timed({name: own})[name] for name, own in pipelines.items()}
    with ExitStack() as without:
        if mode == AT_ONCE:
            without.enter_context(mock.patch.object(machine, "settle"))
        if mode in (AT_ONCE, WAITING):
            without.enter_context(mock.patch.object(machine, "_AGAIN", 0.0))
        return timed(pipelines, FRAME_RATE if mode == PACED else None)
