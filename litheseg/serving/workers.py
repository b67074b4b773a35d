"""A pool of threads behind a short queue: what does not fit is refused at once, what was taken is finished.

It knows neither images nor HTTP. Its numbers may be read from any thread.

Usage:
    >>> workers = Workers(workers=2, queue=16)
    >>> future = workers.submit(work)  # Problem "busy" when 16 wait already; work is told what it waited
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from litheseg.serving.problems import Problem

__all__ = ["Turn", "Workers"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Turn:
    """What work is told when its turn has come.

    Attributes:
        waited_ms: milliseconds in the queue.
        crowded: whether the queue behind it is at least half full.
    """

    waited_ms: float
    crowded: bool


class Workers:
    """Runs work in threads.

    Args:
        workers: threads.
        queue: how much may wait while all of them are busy.
    """

    def __init__(self, workers: int, queue: int) -> None:
        self.workers, self.queue = workers, queue
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="litheseg")
        self._lock = threading.Lock()
        self._taken = self._running = 0
        self._stopping = False

    @property
    def waiting(self) -> int:
        """Taken and not begun."""
        return self._taken - self._running

    @property
    def running(self) -> int:
        """Begun and not finished."""
        return self._running

    @property
    def stopping(self) -> bool:
        """Whether new work is refused for good."""
        return self._stopping

    def check_open(self) -> None:
        """Refuse once it stops.

        Raises:
            Problem: "stopping".
        """
        if self._stopping:
            raise Problem("stopping", "the server is shutting down; try another one, or later", retry_after=5)

    def submit(self, work: Callable[[Turn], Result]) -> Future[Result]:
        """Take work; a future that is cancelled before its turn leaves the queue.

        Raises:
            Problem: "busy" or "stopping".
        """
        with self._lock:
            self.check_open()
            if self._taken >= self.workers + self.queue:
                raise Problem("busy", f"{self.queue} requests wait already; try again in a moment", retry_after=1)
            self._taken += 1
        future = self._pool.submit(self._run, work, time.perf_counter())
        future.add_done_callback(self._finished)
        return future

    def stop(self) -> None:
        """Refuse new work; what was taken goes on."""
        self._stopping = True

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

    def _run(self, work: Callable[[Turn], Result], taken: float) -> Result:
        with self._lock:
            self._running += 1
            crowded = 2 * self.waiting >= self.queue
        try:
            return work(Turn(1e3 * (time.perf_counter() - taken), crowded))
        finally:
            with self._lock:
                self._running -= 1
                self._taken -= 1

    def _finished(self, future: Future[Result]) -> None:
        if future.cancelled():
            with self._lock:
                self._taken -= 1
