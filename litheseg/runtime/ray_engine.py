"""Labelling by Ray Data: processes on this machine, or on all machines of a cluster.

Every worker is a process with its own predictor; names are sent between processes, never pixels. A block of images is
the unit of work. A worker that dies is replaced and its block repeated, without images that have results by then; an
image whose worker dies repeatedly is listed as bad. It uses the cluster that is running in this program or that
``RAY_ADDRESS`` names, where model and paths must be readable everywhere, or else starts one and stops it at the end.

Usage:
    >>> for outcome in run_ray(PredictionSettings("model.safetensors", "labelled"), jobs, workers=8):
    ...     print(outcome.index, outcome.problem)
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from litheseg.bundle.names import is_named
from litheseg.errors import DataError, LithesegError, MissingExtraError
from litheseg.runtime.jobs import Job
from litheseg.runtime.labeller import JobOutcome, Labeller, PredictionSettings, UnwritableError
from litheseg.runtime.storage import local_path

__all__ = ["run_ray"]

_BLOCK = 64  # images at most: what is looked at again when a worker dies
_BLOCKS = 8  # for each worker at least, so that all of them end together
_DEATHS = 3  # of workers that had nothing but one image in hand: then the image is to blame
_UNWRITABLE = -1  # in place of an image's index


def run_ray(settings: PredictionSettings, jobs: Sequence[Job], *, workers: int) -> Generator[JobOutcome, None, None]:
    """Do all jobs; outcomes come block by block.

    Args:
        settings: for the workers.
        jobs: what is to be done.
        workers: processes, each with `settings.threads` cores, and with a GPU if the device is one.

    Raises:
        MissingExtraError: Ray is not installed.
        DataError: an output that other processes cannot reach.
        UnwritableError: a result cannot be written.
        LithesegError: workers cannot be started.
    """
    ray = _ray()
    if settings.output.startswith("memory://"):
        raise DataError(f"{settings.output} is this process's own memory; take engine 'local' or another output")
    if not jobs:
        return
    settings = replace(settings, model=_absolute(settings.model), output=_absolute(settings.output))
    with _session(ray, workers * settings.threads):
        try:
            for batch in _results(ray, settings, jobs, workers):
                yield from _outcomes(batch)
        except ray.exceptions.RayError as error:
            raise LithesegError(f"Ray stopped: {str(error).strip().splitlines()[-1]}") from error


class _Diary:
    """An actor that counts what was begun and not ended, and outlives workers."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """Count it; returns how often it was begun before and not ended."""
        self._begun[what] += 1
        return self._begun[what] - 1

    def end(self, what: str) -> int:
        """Forget it."""
        return self._begun.pop(what, 0)


class _Worker:
    """Labels blocks of images in a process of its own."""

    def __init__(self, settings: PredictionSettings, diary: Any) -> None:
        self._label = Labeller.open(settings)
        self._settings, self._diary = settings, diary

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        columns = (block["index"].tolist(), map(_text, block["image"]), map(_text, block["name"]), block["parts"])
        jobs = [Job(i, image, name, tuple(parts.split())) for i, image, name, parts in zip(*columns, strict=True)]
        begun = self._note("begin", f"block {jobs[0].index}")
        outcomes = self._carefully(jobs) if begun else self._label.run(jobs)
        try:
            done = list(outcomes)
        except UnwritableError as error:
            done = [JobOutcome(_UNWRITABLE, str(error))]
        problems = [_bytes(outcome.problem or "") for outcome in done]
        return {"index": [outcome.index for outcome in done], "problem": problems}

    def _carefully(self, jobs: Iterable[Job]) -> Iterator[JobOutcome]:
        """A worker has died over this block: leave out what it wrote, then one image at a time, to find the bad one."""
        for job in jobs:
            rest, name = job if self._settings.force else self._label.remaining(job), f"image {job.index}"
            if rest is None:
                yield JobOutcome(job.index)
            elif (deaths := self._note("begin", name)) < _DEATHS:
                yield from self._label.run([rest])
                self._note("end", name)
            else:
                reason = f"{job.image}: {deaths} workers died over it, for want of memory perhaps; make it smaller"
                yield JobOutcome(job.index, reason)

    def _note(self, verb: str, what: str) -> int:
        return int(_ray().get(getattr(self._diary, verb).remote(what)))


def _results(
    ray: ModuleType, settings: PredictionSettings, jobs: Sequence[Job], workers: int
) -> Iterable[dict[str, np.ndarray]]:
    import pyarrow

    rows = max(1, min(_BLOCK, math.ceil(len(jobs) / (_BLOCKS * workers))))
    blocks = [
        pyarrow.table(
            {
                "index": [job.index for job in some],
                "image": [_bytes(_absolute(job.image)) for job in some],
                "name": [_bytes(job.name) for job in some],
                "parts": [" ".join(job.parts) for job in some],
            }
        )
        for some in (jobs[start : start + rows] for start in range(0, len(jobs), rows))
    ]
    diary = ray.remote(_Diary).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    labelled = ray.data.from_arrow(blocks).map_batches(
        _Worker,
        fn_constructor_kwargs={"settings": settings, "diary": diary},
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        num_cpus=settings.threads,
        num_gpus=int(settings.device != "cpu") or None,
    )
    return labelled.iter_batches(batch_size=None, batch_format="numpy")


def _outcomes(batch: dict[str, np.ndarray]) -> Iterator[JobOutcome]:
    for index, problem in zip(batch["index"].tolist(), map(_text, batch["problem"]), strict=True):
        if index == _UNWRITABLE:
            raise UnwritableError(problem)
        yield JobOutcome(index, problem or None)


@contextmanager
def _session(ray: ModuleType, cores: int) -> Iterator[None]:
    """Connect to Ray, with little logging; settings, and a session that ran before, are kept."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = (context.enable_progress_bars, context.print_on_execution_start, log.level)
    context.enable_progress_bars = context.print_on_execution_start = False
    log.setLevel(logging.ERROR)
    starts, quiet = not ray.is_initialized(), {"log_to_driver": False, "logging_level": logging.ERROR}
    if starts and "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    elif starts:
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        if starts:
            ray.shutdown()
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        log.setLevel(before[2])


def _ray() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray[data]", "ray", "engine 'ray'") from error
    return ray


def _bytes(text: str) -> bytes:
    """Names as bytes: Arrow's strings hold UTF-8 only, file names any bytes."""
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _absolute(address: str) -> str:
    path = None if is_named(address) else local_path(address)
    return address if path is None else str(path.absolute())
