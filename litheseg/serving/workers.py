"""Worker threads behind a short queue, and how many clients they can serve within a target.

What does not fit into the queue is refused at once; what was taken is finished.

Before the first request every width is timed with all that a worker does for an image: alone, and with all workers
busy. From that follows how many clients, each of which sends its next image when the answer has come, are answered
within the target. With at most as many clients as workers none waits; with more, an answer takes clients / workers
turns, rounded up.

Usage:
    >>> workers = Workers(workers=2, queue=16)
    >>> times = measure_load(lambda width: time.sleep(0.03), (1.0, 0.5), workers)
    >>> sustained_load(times[0.5], workers=2, queue=16, target_ms=100)
    SustainedLoad(clients=4, per_second=53.0, enough_ms=37.7)
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from litheseg.serving.problems import Problem

__all__ = ["LoadTimes", "SustainedLoad", "Workers", "measure_load", "sustained_load"]

_MEASURING_SECONDS = 0.8  # for all widths together, if the fewest passes take no longer
_FEWEST_PASSES, _MOST_PASSES = 2, 5  # at each width
# For what is not measured: HTTP takes 2.3 ms of a core for an image of which decoding, network and encoding take 16 to
# 30, and a few images are a small sample.
_HTTP_FACTOR = 1.25

Result = TypeVar("Result")


class Workers:
    """Runs work in threads; its numbers may be read from any thread.

    Args:
        workers: threads.
        queue: how much may wait while all of them are busy.
    """

    def __init__(self, workers: int, queue: int) -> None:
        self.workers, self.queue = workers, queue
        self.stopping = False  # whether new work is refused for good
        self.running = 0  # begun and not finished
        self._taken = 0  # not finished
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="litheseg")
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Taken and not begun."""
        return self._taken - self.running

    def check_open(self) -> None:
        """Refuse once it stops.

        Raises:
            Problem: "stopping".
        """
        if self.stopping:
            raise Problem("stopping", "the server is shutting down; try another one, or later", retry_after=5)

    def submit(self, work: Callable[[float, bool], Result]) -> Future[Result]:
        """Take work; a future that is cancelled before its turn leaves the queue.

        Args:
            work: called with the milliseconds that it waited, and whether the queue behind it is at least half full.

        Raises:
            Problem: "busy" or "stopping".
        """
        with self._lock:
            self.check_open()
            if self._taken >= self.workers + self.queue:
                raise Problem("busy", f"{self.queue} requests wait already; try again in a moment", retry_after=1)
            self._taken += 1
        future = self._pool.submit(self._run, work, time.perf_counter())
        future.add_done_callback(self._forget_if_cancelled)
        return future

    def stop(self) -> None:
        """Refuse new work; what was taken goes on."""
        self.stopping = True

    def join(self, seconds: float) -> bool:
        """Wait for what was taken; false if the time did not suffice."""
        end = time.monotonic() + seconds
        while self._taken and time.monotonic() < end:
            time.sleep(0.01)
        return not self._taken

    def close(self) -> None:
        """Stop, and let the threads end; what still waits is dropped."""
        self.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Callable[[float, bool], Result], submitted: float) -> Result:
        with self._lock:
            self.running += 1
            crowded = 2 * self.waiting >= self.queue
        try:
            return work(1e3 * (time.perf_counter() - submitted), crowded)
        finally:
            with self._lock:
                self.running -= 1
                self._taken -= 1

    def _forget_if_cancelled(self, future: Future[Result]) -> None:
        if future.cancelled():
            with self._lock:
                self._taken -= 1


@dataclass(frozen=True)
class LoadTimes:
    """Milliseconds of work for an image at one width: while nothing else ran, and while all workers were busy."""

    alone: tuple[float, ...]
    busy: tuple[float, ...]


@dataclass(frozen=True)
class SustainedLoad:
    """What one width can serve within the target.

    Attributes:
        clients: at once, each with one image after the other; 0 where even one waits too long.
        per_second: images that they get labelled together.
        enough_ms: the least target that as many clients as there are workers could have, or one where `clients` is 0.
    """

    clients: int
    per_second: float
    enough_ms: float


def measure_load(work: Callable[[float], object], widths: Iterable[float], workers: Workers) -> dict[float, LoadTimes]:
    """Time the work for an image at every width, with workers that have nothing else to do."""

    def timed(width: float, passes: int) -> list[float]:
        times = [time.perf_counter()]
        for _ in range(passes):
            work(width)
            times.append(time.perf_counter())
        return (1e3 * np.diff(times)).tolist()

    widths = tuple(widths)
    for width in widths:
        work(width)  # the first time takes longer
    once = sum(timed(width, 1)[0] for width in widths) / 1e3
    # With all workers busy each pass may take as long again.
    passes = math.floor(_MEASURING_SECONDS / (3 * once)) if once else _MOST_PASSES
    passes = min(_MOST_PASSES, max(_FEWEST_PASSES, passes))
    alone = [[timed(width, 1)[0] for width in widths] for _ in range(passes)]
    measured = {}
    for width, times in zip(widths, zip(*alone, strict=True), strict=True):
        runs = [workers.submit(lambda *_, width=width: timed(width, passes)) for _ in range(workers.workers)]
        measured[width] = LoadTimes(times, tuple(ms for run in runs for ms in run.result()))
    return measured


def sustained_load(times: LoadTimes, *, workers: int, queue: int, target_ms: float) -> SustainedLoad:
    """The most clients that still get 95 of 100 answers within the target, and are not refused by a full queue."""
    typical, late = (_by_concurrency(times, workers, percentile) for percentile in (50, 95))
    clients = sum(ms <= target_ms for ms in late)  # which rise
    if clients < workers:
        rate = 1e3 * clients / typical[clients - 1] if clients else 0.0
        return SustainedLoad(clients, rate, late[-1] if clients else late[0])
    clients = min(workers * math.floor(target_ms / late[-1]), workers + queue)
    return SustainedLoad(clients, 1e3 * workers / typical[-1], late[-1])


def _by_concurrency(times: LoadTimes, workers: int, percentile: float) -> list[float]:
    """A percentile of the work for 1, 2, ... `workers` images at once; only the first and the last are measured."""
    alone, busy = (_HTTP_FACTOR * float(np.percentile(part, percentile)) for part in (times.alone, times.busy))
    return np.linspace(alone, max(alone, busy), workers).tolist() if workers > 1 else [max(alone, busy)]
