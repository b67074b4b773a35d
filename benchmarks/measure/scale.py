"""What `litheseg predict` gains over one image after another: threads, processes and Ray, by ratio within one run.

Photos of procedural streets lie on disk as JPEG; every method reads them, labels them and writes palette PNGs. The
methods take turns, round after round, so that load from other programs falls on all alike; medians of wall-clock time
are compared.
"loop" is the predictor in a loop, with PyTorch's own threads and Pillow's usual compression, which is what `predict`
did before it had engines. What a method costs before its first image (imports, the model) is left out; for Ray, which
`predict` starts anew, it is in the report. Other programs on the cores make ratios smaller: more images at once cannot
use cores that are taken. Processor time an image is nearly free of that: it shows what a method itself adds.

    python benchmarks/measure scale --output benchmarks/results/scale.jsonl
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from records import save

from litheseg.files import atomic_path
from litheseg.masks.reading import read_image
from litheseg.runtime.files import predict_files
from litheseg.runtime.jobs import Job, find_items, make_plan
from litheseg.runtime.labeller import Labeller, PredictionSettings
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.storage import open_folder
from litheseg.streets import render_street
from measure.common import arguments, ddrnet_file, show

WIDTHS, SIZE = (1.0, 0.25), (360, 480)
CASES = {  # name -> size of the photos, width
    "360x480, width 1": ((360, 480), 1.0),
    "360x480, width 0.25": ((360, 480), 0.25),
    "1080x1920, width 1": ((1080, 1920), 1.0),
}
BASELINE = "loop"

Step = Callable[[Path], float]
"""Labels everything into a folder; returns the processor time of other processes, in seconds."""


def main() -> None:
    """Parse, measure, print a table, write records."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = work / "model.safetensors"
        ddrnet_file(model, options.base, WIDTHS, SIZE, options.seed)
        rows = [row(name, model, work / str(number), options) for number, name in enumerate(options.cases)]
        report = {"rows": rows} | ({"ray": ray_row(model, work, options)} if options.ray_images else {})
    show(rows, f"images a second, times the loop's, processor milliseconds (Ray: {report.get('ray')})")
    save(options, report, "torch", "pillow", "numpy", "ray", clock="wall-clock time, medians")


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, rounds=7, seed=0)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--images", type=int, default=24, help="a round of each method")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4], help="of the local engine")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of the pool and of Ray")
    parser.add_argument("--ray-images", type=int, default=200, help="for Ray; 0 leaves it out")
    parser.add_argument("--base", type=int, default=16, help="DDRNet's base channels")
    return parser.parse_args()


def photos(folder: Path, size: tuple[int, int], count: int, seed: int) -> list[Path]:
    """So many files; four different streets."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed)
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number < 4:
            Image.fromarray(render_street(noise, size)[0]).save(path, quality=90)
        else:
            shutil.copy(paths[number % 4], path)
    return paths


def row(name: str, model: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of all methods."""
    size, width = CASES[name]
    images = photos(work / "photos", size, options.images, options.seed)
    with ProcessPoolExecutor(
        options.processes, get_context("spawn"), initializer=begin_process, initargs=(str(model), width)
    ) as pool:
        steps = methods(model, width, images, pool, options)
        times = measure(steps, work / "out", options.rounds)
    rate = {method: options.images / median(wall for wall, _ in values) for method, values in times.items()}
    return {
        "case": name,
        "images_per_second": rate,
        "gain": {method: value / rate[BASELINE] for method, value in rate.items()},
        "fastest_images_per_second": {method: options.images / min(w for w, _ in v) for method, v in times.items()},
        "processor_ms": {method: 1e3 * median(cpu for _, cpu in v) / options.images for method, v in times.items()},
    }


def methods(
    model: Path, width: float, images: list[Path], pool: ProcessPoolExecutor, options: argparse.Namespace
) -> dict[str, Step]:
    """Name -> label all images into a folder."""
    predictor = Predictor(model, width)
    predictor.prepare(width)

    def loop(threads: int) -> Step:
        def run(output: Path) -> float:
            torch.set_num_threads(threads)
            for path in images:
                mask = Image.fromarray(predictor.predict_rgb(read_image(path)))
                mask.putpalette(predictor.classes.palette().ravel().tolist())
                with atomic_path(output / f"{path.stem}.png") as temporary:
                    mask.save(temporary, format="PNG")
            return 0.0

        return run

    def local(workers: int) -> Step:
        settings = PredictionSettings(str(model), "", width)
        predictors = settings.predictors(workers)

        def run(output: Path) -> float:
            list(Labeller(predictors, open_folder(output)).run(jobs(images, output)))
            return 0.0

        return run

    def processes(output: Path) -> float:
        return sum(pool.map(do_in_process, [(str(output), job) for job in jobs(images, output)]))

    return {
        BASELINE: loop(os.cpu_count() or 1),
        "loop, 1 thread": loop(1),
        **{f"local, {count} workers": local(count) for count in options.workers},
        f"{options.processes} processes": processes,
    }


def jobs(images: list[Path], output: Path) -> list[Job]:
    folder = open_folder(output)
    return list(make_plan(find_items(images, folder), folder, ("mask",), force=True).jobs)


_predictors: list[Predictor] = []


def begin_process(model: str, width: float) -> None:
    torch.set_num_threads(1)
    _predictors.extend(PredictionSettings(model, "", width).predictors(1))


def do_in_process(task: tuple[str, Job]) -> float:
    """Processor seconds that it took."""
    started = time.process_time()
    output, job = task
    Labeller(_predictors, open_folder(output))(job)
    return time.process_time() - started


def measure(steps: dict[str, Step], output: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall-clock, processor) seconds of every method in every round, the first round left out."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, run in steps.items():
            started, busy = time.perf_counter(), time.process_time()
            elsewhere = run(output)
            times[name].append((time.perf_counter() - started, elsewhere + time.process_time() - busy))
    return {name: values[1:] for name, values in times.items()}


def ray_row(model: Path, work: Path, options: argparse.Namespace) -> dict[str, float]:
    """What Ray costs before the first image, and how fast it is then."""
    photos(work / "ray" / "photos", (360, 480), options.ray_images, options.seed)
    seen: list[tuple[float, int]] = []
    started = time.perf_counter()
    predict_files(
        model,
        work / "ray" / "photos",
        work / "ray" / "out",
        engine="ray",
        workers=options.processes,
        progress=lambda state: seen.append((time.perf_counter() - started, state.done)),
    )
    first, last = next(entry for entry in seen if entry[1]), seen[-1]
    rate = (last[1] - first[1]) / max(last[0] - first[0], 1e-9)
    return {"workers": options.processes, "seconds_to_first_image": first[0], "images_per_second": rate}
