"""Do one job: read an image, predict, encode and write its results. Every engine uses this.

An image always goes through the network alone, in a fixed number of threads, since floating-point sums depend on batch
size and threads. So masks do not depend on the engine or the workers, and more cores process more images at once.
Decoding, networks and encoding of different images overlap in threads of one process: all three release Python's lock.
The threads share one network where its runtime computes several images at once.

Usage:
    >>> label = Labeller.open(PredictionSettings(model="model.safetensors", output="labelled", width=0.5), workers=2)
    >>> for outcome in label.run(jobs):
    ...     print(outcome.index, outcome.problem)
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, cast

from litheseg.errors import LithesegError
from litheseg.masks.opening import MAX_PIXELS
from litheseg.masks.pictures import OverlayStyle, encode_mask, encode_overlay
from litheseg.masks.reading import count_pixels, read_image
from litheseg.runtime.jobs import ENDINGS, Job
from litheseg.runtime.predictor import Model, Predictor
from litheseg.runtime.storage import OutputFolder, fetch, open_folder

__all__ = ["JobOutcome", "Labeller", "PixelRoom", "PredictionSettings", "UnwritableError"]

_USUAL: Final = 25_000_000  # pixels of an image for which every worker has room; a larger one waits until there is some
_WAITING = 3  # threads per predictor: one computes, while others read and write


class UnwritableError(LithesegError):
    """A result could not be written; the next one could not be either, so the run ends."""


@dataclass(frozen=True)
class PredictionSettings:
    """Settings with which another process labels images as this one would.

    Attributes:
        model: path of a bundle or an export.
        output: address of the folder for the results.
        width: None for the widest.
        device: where to run.
        size: as in `Predictor`, as are `runtime` and `precision`.
        threads: of the CPU, for each image.
        style: of overlays.
        force: results that exist are replaced.
        max_pixels: of one image, width times height.
    """

    model: str
    output: str
    width: float | None = None
    device: str = "cpu"
    size: tuple[int, int] | Literal["training"] | None = "training"
    runtime: str | None = None
    precision: str | None = None
    threads: int = 1
    style: OverlayStyle = field(default_factory=OverlayStyle)
    force: bool = False
    max_pixels: int = MAX_PIXELS

    def predictors(self, workers: int, source: Model | None = None) -> list[Predictor]:
        """Predictors that may work at the same time, ready for the first image.

        Args:
            workers: how many; they are one and the same where a runtime computes several images at once.
            source: the model, if it is loaded already.

        Raises:
            LithesegError: as `Predictor`.
        """
        first = self._predictor(source)
        if first.runtime != "openvino":  # whose networks compute one image after another
            return [first] * workers
        return [first, *(self._predictor(source) for _ in range(workers - 1))]

    def _predictor(self, source: Model | None) -> Predictor:
        how: dict[str, Any] = {"runtime": self.runtime, "precision": self.precision, "threads": self.threads}
        predictor = Predictor(source or self.model, self.width, self.device, size=self.size, **how)
        predictor.prepare(predictor.width)
        return predictor


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        index: the job's.
        problem: why the image could not be labelled; None if its results are written.
    """

    index: int
    problem: str | None = None


class PixelRoom:
    """Lets images of so many pixels in at the same time; one that is larger than all of it waits until it is alone.

    Args:
        pixels: of all images together.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels, self._used = pixels, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image, and keep it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


class Labeller:
    """Does jobs, one in a call or many in threads.

    Args:
        predictors: those that may work at the same time; the same one may stand there several times.
        output: where results go.
        width: None for the predictors' own.
        style: of overlays.
        max_pixels: of one image, width times height; all that are in work together have that many, and 25 million more
            for each further predictor.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        output: OutputFolder,
        *,
        width: float | None = None,
        style: OverlayStyle | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._output, self._width, self._max_pixels = output, width, max_pixels
        self._style = style or OverlayStyle()
        self._style.painted(predictors[0].classes)  # an unknown class is refused before anything is written
        self._threads = _WAITING * len(predictors)
        self._room = PixelRoom(max_pixels + _USUAL * (len(predictors) - 1))
        self._idle: queue.SimpleQueue[Predictor] = queue.SimpleQueue()
        for predictor in predictors:
            self._idle.put(predictor)

    @classmethod
    def open(cls, settings: PredictionSettings, *, workers: int = 1) -> Labeller:
        """A labeller with predictors of its own.

        Raises:
            LithesegError: as `Predictor`, or an output that cannot be used.
        """
        predictors, output = settings.predictors(workers), open_folder(settings.output)
        return cls(predictors, output, style=settings.style, max_pixels=settings.max_pixels)

    def __call__(self, job: Job) -> JobOutcome:
        """Do a job; several threads may call at once.

        Raises:
            UnwritableError: a result cannot be written.
        """
        try:
            source = cast(Path, fetch(job.image))
            pixels = count_pixels(source, max_pixels=self._max_pixels)
            with self._room.taken(pixels), self._predictor() as predictor:
                files = self._files(predictor, source, job)
        except LithesegError as error:
            return JobOutcome(job.index, str(error))
        except Exception as error:  # of a runtime, say: each has its own for want of memory, or too small an image
            return JobOutcome(job.index, f"{job.image}: {error or type(error).__name__}")
        try:
            for name, data in files.items():
                self._output.write(name, data)
        except LithesegError as error:
            raise UnwritableError(str(error)) from error
        return JobOutcome(job.index)

    def remaining(self, job: Job) -> Job | None:
        """The job without the results that exist by now; None if that is all of it."""
        parts = tuple(part for part in job.parts if not self._output.exists(job.name + ENDINGS[part]))
        return replace(job, parts=parts) if parts else None

    def run(self, jobs: Iterable[Job]) -> Generator[JobOutcome, None, None]:
        """Do all jobs in threads; outcomes come as they are ready.

        Args:
            jobs: taken as they are needed, a few ahead.

        Raises:
            UnwritableError: a result cannot be written; what was begun is finished.
        """
        source, pending = iter(jobs), set[Future[JobOutcome]]()
        with ThreadPoolExecutor(self._threads, "labelling") as pool:
            try:
                pending = {pool.submit(self, job) for job in islice(source, self._threads)}
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    pending |= {pool.submit(self, job) for job in islice(source, len(done))}
                    for future in done:
                        yield future.result()
            finally:  # also when the caller has had enough: what has not begun does not begin
                for future in pending:
                    future.cancel()

    def _files(self, predictor: Predictor, source: Path, job: Job) -> Mapping[str, bytes]:
        image = read_image(source, predictor.header.images, max_pixels=self._max_pixels)
        mask = predictor.predict_rgb(image, width=self._width)
        encoders = {
            "mask": lambda: encode_mask(mask, predictor.classes),
            "overlay": lambda: encode_overlay(image, mask, predictor.classes, self._style),
        }
        return {job.name + ENDINGS[part]: encoders[part]() for part in job.parts}

    @contextmanager
    def _predictor(self) -> Iterator[Predictor]:
        predictor = self._idle.get()
        try:
            yield predictor
        finally:
            self._idle.put(predictor)
