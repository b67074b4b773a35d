"""Predict many images: write masks and overlays into a folder; a bad image does not stop the run.

Images come from files, folders, manifests and object stores; results are files or objects, each written once and as a
whole. What exists is kept, so a run that was stopped or killed goes on with the same call. What could not be labelled
is listed in ``failed.jsonl`` beside the results, as it fails. An engine does the work: threads of this process
(`labeller`), or Ray's processes on this machine or many (`ray_engine`); masks are the same, bit for bit.

Usage:
    >>> summary = predict_files("model.safetensors", ["photos/"], "labelled/", width=0.5, kind="both")
    >>> summary.written, summary.failed
    (12, (('photos/broken.jpg', 'photos/broken.jpg is not an image that can be read; replace or remove it'),))
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from litheseg.bundle.targets import PrecisionName, RuntimeName
from litheseg.errors import DataError, did_you_mean
from litheseg.machine import cores
from litheseg.masks.opening import MAX_PIXELS
from litheseg.masks.pictures import OverlayStyle
from litheseg.runtime.failures import REPORT, FailureLog
from litheseg.runtime.jobs import Job, WorkPlan, find_items, make_plan
from litheseg.runtime.labeller import JobOutcome, Labeller, PredictionSettings
from litheseg.runtime.predictor import Model, Predictor
from litheseg.runtime.ray_engine import run_ray
from litheseg.runtime.storage import OutputFolder, open_folder
from litheseg.values import Names, Quantity, Width

__all__ = ["ENGINES", "REPORT", "Kind", "Progress", "Summary", "predict_files"]

ENGINES = ("local", "ray")

Kind = Literal["mask", "overlay", "both"]

_KINDS = {"mask": ("mask",), "overlay": ("overlay",), "both": ("mask", "overlay")}


@dataclass(frozen=True)
class Summary:
    """What became of the inputs.

    Attributes:
        images: inputs found.
        written: files written.
        skipped: files that existed and were kept.
        failed: (input, reason) of the inputs that could not be labelled.
    """

    images: int
    written: int
    skipped: int
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: images found.
        kept: images that had nothing left to do when the run began.
        labelled: images done since.
        failed: images that could not be labelled.
    """

    total: int
    kept: int
    labelled: int
    failed: int

    @property
    def done(self) -> int:
        """Images that need no more work."""
        return self.kept + self.labelled + self.failed


def predict_files(
    model: Model | Predictor | str | Path,
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    width: Width | None = None,
    kind: Kind = "mask",
    engine: str = "local",
    workers: int | None = None,
    force: bool = False,
    device: str = "cpu",
    size: tuple[int, int] | Literal["training"] | None = "training",
    runtime: RuntimeName | None = None,
    precision: PrecisionName | None = None,
    threads: int = 1,
    alpha: float = 0.5,
    clear: Names | None = None,
    legend: bool = True,
    max_pixels: Quantity = MAX_PIXELS,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Predict images into `output`, as `NAME.png` (mask) and `NAME_overlay.png`.

    An image that cannot be predicted is reported in the summary and in ``failed.jsonl``, and the others go on. Inputs
    are never overwritten; other existing files only with `force`.

    Args:
        model: path of a model file or an export; for the local engine also a loaded one or a predictor (then `device`,
            `size`, `runtime` and `precision` are its own).
        inputs: images, folders and manifests (``.parquet``, ``.csv``), as paths or URIs; files in folders count if
            their name ends like an image's and is not hidden.
        output: the folder for the results, a path or the URI of an object store; made if missing.
        width: one of the model's; None for the widest.
        kind: what to write.
        engine: this process, or Ray's processes.
        workers: images predicted at once; None for as many as there are cores.
        force: overwrite results that exist instead of keeping them.
        device: "cpu", "cuda", "cuda:1", ...
        size: height and width that images are resized to; "training" as for training, None for their own size.
        runtime: "torch", "onnxruntime" or "openvino"; None for PyTorch, or, of an export, one that takes its files.
        precision: "fp32", "bf16" or, of an export, "int8"; None for "fp32" if there is such a network.
        threads: of the CPU for each image. More cores are used better by more workers; masks of two runs are equal bit
            for bit if this is.
        alpha: weight of the class colours in overlays, in [0, 1].
        clear: names of classes that overlays leave as they are; by default background, void, other, ....
        legend: names and colours of the classes below overlays.
        max_pixels: width times height above which an image is listed as failed; the file's header decides.
        progress: called when the work begins, and whenever images are done.

    Raises:
        DataError: no images, an unknown `kind` or `engine`, a value out of range, a manifest that cannot be read, or an
            output that is a file or one of the input folders.
        WidthError: the model does not have the width.
        MissingExtraError: an engine, a runtime or a kind of input whose package is not installed.
        LithesegError: a result cannot be written.
    """
    style = OverlayStyle(alpha, None if clear is None else tuple(clear), legend)
    _check(kind, engine, workers=workers, threads=threads, max_pixels=max_pixels)
    workers = workers or max(1, cores() // threads)
    folder = open_folder(output)
    path = str(model) if isinstance(model, (str, Path)) else ""
    settings = PredictionSettings(
        path, str(output), width, str(device), size, runtime, precision, threads, style, force, max_pixels
    )
    label = _engine(model, settings, folder, workers, engine)
    items = find_items([inputs] if isinstance(inputs, (str, Path)) else inputs, folder)
    plan = make_plan(items, folder, _KINDS[kind], force=force)
    return _follow(plan, label(plan.jobs), folder, progress or (lambda _: None))


def _check(kind: str, engine: str, **counts: int | None) -> None:
    for name, value, choices in (("kind", kind, tuple(_KINDS)), ("engine", engine, ENGINES)):
        if value not in choices:
            raise DataError(f"unknown {name} '{value}'.{did_you_mean(value, choices)}")
    for name, number in counts.items():
        if number is not None and number < 1:
            raise DataError(f"{name} is {number}; give 1 or more")


def _engine(
    model: Model | Predictor | str | Path, settings: PredictionSettings, folder: OutputFolder, workers: int, engine: str
) -> Callable[[Sequence[Job]], Generator[JobOutcome, None, None]]:
    """A function that runs the jobs; errors of the model or the width are raised now."""
    if engine == "ray":
        if not settings.model:
            raise DataError("engine 'ray' needs the path of a model, which its workers load; or take 'local'")
        settings.predictors(1)
        return partial(run_ray, settings, workers=workers)
    if isinstance(model, Predictor):
        model.prepare(model.width if settings.width is None else settings.width)
        predictors = [model] * workers
    else:
        predictors = settings.predictors(workers, None if isinstance(model, (str, Path)) else model)
    return Labeller(predictors, folder, width=settings.width, style=settings.style, max_pixels=settings.max_pixels).run


def _follow(
    plan: WorkPlan,
    outcomes: Generator[JobOutcome, None, None],
    folder: OutputFolder,
    progress: Callable[[Progress], None],
) -> Summary:
    """Count outcomes until there are no more; what failed is listed as it fails."""
    due = {job.index: len(job.parts) for job in plan.jobs}
    failed, written, log = dict(plan.refused), 0, FailureLog(folder)
    state = Progress(len(plan.items), len(plan.items) - len(due) - len(failed), 0, len(failed))
    try:
        log.failed((plan.items[index].image, reason) for index, reason in plan.refused)
        progress(state)
        with closing(outcomes):
            for outcome in outcomes:
                image = plan.items[outcome.index].image
                if outcome.problem is None:
                    written += due[outcome.index]
                    state = replace(state, labelled=state.labelled + 1)
                    log.labelled(image)
                else:
                    failed[outcome.index] = outcome.problem
                    state = replace(state, failed=len(failed))
                    log.failed([(image, outcome.problem)])
                progress(state)
    except KeyboardInterrupt:
        log.close()
        raise
    rows = tuple((plan.items[index].image, failed[index]) for index in sorted(failed))
    log.close(rows)
    return Summary(len(plan.items), written, plan.kept, rows)
