"""What a plan has to know about this machine: how long a training step takes, and how fast networks run here.

Both are of networks that were not trained yet: neither time depends on the weights.

Usage:
    >>> step_seconds(recipe, data)
    {4: 1.9, 1: 0.8}
    >>> latencies(recipe, data.classes, widths=(1.0, 0.25), size=(360, 480), folder=Path("deployed/trials"))
    {1.0: 31.2, 0.25: 9.8}
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from litheseg.budget.candidates import Candidate, Variant
from litheseg.budget.measure import Bench, Exports
from litheseg.budget.store import Store
from litheseg.data.sources.base import Source
from litheseg.errors import LithesegError
from litheseg.machine import cores
from litheseg.models.bundle import Bundle, BundleHeader, from_nothing, save_bundle
from litheseg.progress import track
from litheseg.runtime.engines import available_runtimes
from litheseg.training.build import build_data, build_elastic_model, build_task
from litheseg.training.layout import on_cpu
from litheseg.training.recipe import Recipe
from litheseg.training.task import SegmentationTask

__all__ = ["latencies", "step_seconds"]

_WARMUP, _TIMED = 1, 3  # steps
_REPEATS = 6
_RUNTIMES = ("openvino", "onnxruntime")  # the faster one on most CPUs, and its export, first


def step_seconds(recipe: Recipe, widths: Sequence[Sequence[float]]) -> dict[int, float]:
    """Seconds of a training step, by the number of widths that are trained.

    Args:
        recipe: with the data, crop and batch size to time.
        widths: the sets of widths to choose among.
    """
    device = torch.device("cpu" if on_cpu(recipe.trainer) else "cuda")
    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
    result = {}
    for chosen in track(widths, "timing training steps"):
        data = build_data(recipe)
        task = build_task(replace(_without_weights(recipe), widths=tuple(chosen)), data).to(device)
        assert isinstance(task, SegmentationTask)
        optimizer: torch.optim.Optimizer = task.configure_optimizers()["optimizer"]
        batch = {name: value.to(device) for name, value in data.train_batch(0, 0).items()}
        times = []
        for _ in range(_WARMUP + _TIMED):
            begin = time.perf_counter()
            optimizer.zero_grad()
            task.loss(task.begin(batch))[0].backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        result[len(chosen)] = min(times[_WARMUP:])
    return result


def latencies(
    recipe: Recipe, source: Source, *, widths: Sequence[float], size: tuple[int, int], folder: Path
) -> dict[float, float]:
    """Milliseconds of one image of the data, end to end, by width, in a runtime that is installed.

    Args:
        recipe: of the network.
        source: its images are timed.
        widths: that are timed.
        size: height and width of the network's input.
        folder: of the exports and timings, which are kept.
    """
    bundle = _untrained(recipe, source, size, folder / "untrained.safetensors")
    store = Store.of(bundle, folder)
    bench = Bench(Exports(bundle, store.exports).engine, [source.read_image(source.samples("train")[0])], store)
    runtime = next((name for name in _RUNTIMES if name in available_runtimes()), None)
    if runtime is None:
        raise LithesegError("no runtime here can run the network; pip install 'litheseg[export]'")
    candidates = {width: Candidate(Variant(width, size, "fp32"), runtime, cores()) for width in widths}
    times = bench.measure(list(candidates.values()), _REPEATS)
    return {width: statistics.median(times[candidate]) for width, candidate in candidates.items()}


def _without_weights(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, args={**recipe.model.args, **from_nothing(recipe.model.name)}))


def _untrained(recipe: Recipe, source: Source, size: tuple[int, int], path: Path) -> Bundle:
    config, images = _without_weights(recipe).model.for_images(source.images), source.images
    model = build_elastic_model(config, recipe.widths, len(source.classes)).eval()
    header = BundleHeader(
        architecture={"name": config.name, "args": config.args},
        classes=source.classes,
        mean=images.mean,
        std=images.std,
        dtype=images.dtype,
        widths=tuple(recipe.widths),
        divisor=recipe.model.divisor,
        size=size,
    )
    return save_bundle(path, model, header)
