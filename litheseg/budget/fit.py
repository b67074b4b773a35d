"""`litheseg fit`: from a model file and a budget to the most accurate deployable network within it, proven by timing.

The steps of `fit`: candidates and limits (`candidates`), running, timing and scoring them (`measure`), choosing the
best (`choose`), and writing the result.

Usage:
    >>> result = fit("model.safetensors", budget=20.0, output="deployed", data="data/camvid")
    >>> result.deployed, result.promise["milliseconds"]
    (PosixPath('deployed/export'), 14.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from litheseg.budget.candidates import (
    Choices,
    Limits,
    paper_costs,
)
from litheseg.budget.choose import Search, choose_measured
from litheseg.budget.dense_layers import DensePlan, timed_layers
from litheseg.budget.fit_result import FIT_FILE, FitResult
from litheseg.budget.kit import read_measurements
from litheseg.budget.measure import Accuracy, Bench, Exports
from litheseg.budget.store import Store, store_folder
from litheseg.bundle.exported import check_choice
from litheseg.bundle.targets import PRECISIONS, RUNTIMES, TARGETS
from litheseg.deploy.quantize.quantizer import quantizable
from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.bundle import open_bundle_data
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, load_bundle, model_digest
from litheseg.nn import extract
from litheseg.progress import say, work
from litheseg.runtime.engines import available_runtimes
from litheseg.runtime.latency import street_frames
from litheseg.values import Bytes, Counts, Duration, Names, Quantity, Size, Sizes, Widths

if TYPE_CHECKING:
    from litheseg.data.loading.datamodule import SegmentationData

__all__ = ["fit"]

_FRAMES = 4  # images that are timed


def fit(
    model: str | Path,
    *,
    budget: Duration,
    output: str | Path,
    percentile: float = 95.0,
    reserve: Duration = 0.0,
    fps: float | None = None,
    memory: Bytes | None = None,
    model_size: Bytes | None = None,
    macs: Quantity | None = None,
    min_miou: float | None = None,
    min_class_iou: float | None = None,
    widths: Widths | None = None,
    sizes: Sizes | None = None,
    runtime: Names | None = None,
    precision: Names | None = None,
    threads: Counts | None = None,
    data: str | Path | None = None,
    source: str = "auto",
    split: str = "val",
    image: Size | None = None,
    measured: Path | None = None,
    plan: Path | None = None,
    fresh: bool = False,
    cache: Path | None = None,
    force: bool = False,
    command: str = "",
) -> FitResult:
    """Find the most accurate deployable network of a model within a budget, and write it.

    Args:
        model: an elastic model file.
        budget: milliseconds of one image, end to end; written 20ms or, as a rate, 15fps.
        output: folder of the export, fit.json and frontier.png.
        percentile: of the times, that must be within the budget, in [50, 99.9].
        reserve: milliseconds of the budget kept for what is not timed; written 3ms.
        fps: frame rate at which images come; by default one follows the other at once.
        memory: most bytes of weights and of activations alive at once; written 50MB.
        model_size: most bytes of the weights as stored; written 2MB.
        macs: most multiply-accumulates of an image; written 1G.
        min_miou: refuse less, in [0, 1].
        min_class_iou: choose nothing whose worst class has a lower IoU, in [0, 1].
        widths: to choose among; by default those of the model, and between them where that may pay.
        sizes: heights and widths of the network's input; by default the training size, 3/4 and 1/2 of it.
        runtime: to choose among, or all; by default those that are installed.
        precision: to choose among, or all; by default fp32, and int8 where it can be made.
        threads: numbers of CPU threads; by default all cores, half of them and one.
        data: folder of labelled images that measure accuracy; by default what the model was trained on.
        source: kind of data, auto to detect it.
        split: which images measure accuracy.
        image: height and width of the camera's images; by default those of the data.
        measured: timings of another machine, which `litheseg measure` made; by default this machine is timed.
        plan: file that says which grouped layers stay dense; by default they are timed.
        fresh: forget the timings of earlier fits.
        cache: folder of what is kept between fits; by default ~/.cache/litheseg/budget.
        force: replace a fit that is there.
        command: the shell command, for fit.json.

    Returns:
        What was found, and the folder or file to deploy.

    Raises:
        BudgetError: nothing is within the limits; names the nearest network.
        LithesegError: an argument, a file or data that cannot be used.
    """
    output = Path(output)
    if measured and plan:
        raise LithesegError("--plan does not go with --measured: a kit's networks were timed without one")
    if (output / FIT_FILE).exists() and not force:
        raise LithesegError(f"{output} holds a fit already; give another --output, or --force to replace it")
    limits = Limits(
        budget,
        percentile=percentile,
        reserve=reserve,
        memory=memory,
        model_size=model_size,
        macs=macs,
        min_miou=min_miou,
        min_class_iou=min_class_iou,
        fps=fps,
    )
    runtimes, precisions = _known(runtime, RUNTIMES, "runtime"), _known(precision, PRECISIONS, "precision")
    choices = Choices(widths, sizes, runtimes, precisions, threads)
    bundle = load_bundle(model)
    # Two fits of one model would also disturb each other's timings.
    with folder_lock(output), folder_lock(store_folder(bundle, cache)):
        store = Store.of(bundle, cache, fresh=fresh)
        dense = None if measured else _dense_plan(bundle, plan, store)
        labelled = _labelled(bundle, data, source, split)
        exports = Exports(bundle, store.exports, plan=dense, data=labelled, split=split)
        accuracy = Accuracy(exports, store)
        costs = partial(paper_costs, bundle.model())
        facts = {"model": model_digest(bundle), "bundle": str(model), "command": command}
        if measured is not None:
            timings = read_measurements(measured, facts["model"])
            limits = timings.limits(limits)
            allowed = [candidate for candidate in timings.samples if choices.allow(candidate)]
            found = choose_measured(timings, limits, accuracy, costs, allowed)
            camera, host = None, timings.host
            facts["measured"] = str(measured)
        else:
            frames = _frames(bundle, labelled, split, image)
            camera, host = (frames[0].shape[0], frames[0].shape[1]), store.host
            bench = Bench(exports.engine, frames, store, fps=fps, plan=plan)
            int8 = _wants_int8(choices) and exports.calibrates
            say(f"budget   {limits.available:g} ms for p{percentile:g} of images of {camera[0]}x{camera[1]}")
            say(f"machine  {host['cpu']}, {host['cores']} cores")
            say(f"scored   {accuracy.origin}")
            search = Search(limits, bench, accuracy, costs, refine=widths is None, int8=int8)
            size = bundle.header.size if bundle.header.resizes else camera
            found = search.run(choices.candidates(bundle.header.available_widths, size))
        result = FitResult(found, limits, accuracy.origin, camera, host, output, facts, bundle.header)
        with work("writing the choice"):
            result.write(exports, dense)
    return result


def _known(names: Sequence[str] | None, known: Sequence[str], what: str) -> Sequence[str] | None:
    """The names, of which each must be known; all of them for "all"."""
    if names is not None and list(names) == ["all"]:
        return known
    for name in names or ():
        check_choice(what, name, known)
    return names


def _dense_plan(bundle: Bundle, file: Path | None, store: Store) -> DensePlan | None:
    """The plan of a model with grouped convolutions: the one given, that of earlier fits, or an empty one."""
    if not timed_layers(extract(bundle.model(), bundle.header.available_widths[0])):
        return None
    digest = model_digest(bundle)
    if file is not None:
        return DensePlan.load(file, digest)
    try:
        return DensePlan.load(store.plan_file, digest, file=store.plan_file)
    except LithesegError:  # none yet
        return DensePlan(digest, file=store.plan_file)


def _labelled(bundle: Bundle, data: str | Path | None, source: str, split: str) -> SegmentationData | None:
    """Labelled images; None where no folder is named and the model's own data is not here.

    Raises:
        DataError: data that was named and cannot be used.
    """
    try:
        opened = open_bundle_data(bundle, data, source=source, split=split)
        opened.source.samples(split)
    except DataError:
        if data is not None or source != "auto":
            raise
        return None
    return opened


def _frames(
    bundle: Bundle, labelled: SegmentationData | None, split: str, image: tuple[int, int] | None
) -> list[np.ndarray]:
    """Images of the camera's size: some of those that are scored; or rendered streets."""
    if labelled is None or image is not None:
        return street_frames(image or bundle.header.size, images=bundle.header.images)
    samples = labelled.source.samples(split)
    images = [labelled.source.read_image(sample) for sample in samples[:: max(1, len(samples) // _FRAMES)][:_FRAMES]]
    return [frame for frame in images if frame.shape == images[0].shape]


def _wants_int8(choices: Choices) -> bool:
    wanted = choices.precisions is None or "int8" in choices.precisions
    formats = {TARGETS[name].format for name in choices.runtimes or available_runtimes()}
    return wanted and any(quantizable(name) for name in formats)
