"""Labelling in this process: threads, each with an image of its own, so that all cores are busy.

Decoding, networks and encoding of different images overlap: all three release Python's lock. Threads start at once,
where a process would import PyTorch first, and share one network; they end where that lock is the limit, at some eight
of them. It does not survive a crash of the process; the same call goes on where it was.

Usage:
    >>> for outcome in run_local(labeller, jobs, workers=2):
    ...     print(outcome.index, outcome.problem)
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from litheseg.machine import cores
from litheseg.runtime.jobs import Job
from litheseg.runtime.labeller import JobOutcome, Labeller

__all__ = ["default_workers", "run_local"]

_WAITING = 3  # threads per predictor: one computes, while others read and write


def default_workers(threads: int = 1) -> int:
    """As many images at once as this process has cores for, with so many threads each."""
    return max(1, cores() // threads)


def run_local(labeller: Labeller, jobs: Iterable[Job], *, workers: int) -> Generator[JobOutcome, None, None]:
    """Do all jobs; outcomes come as they are ready.

    Args:
        labeller: with predictors for so many workers.
        jobs: taken as they are needed, a few ahead.
        workers: images computed at once.

    Raises:
        UnwritableError: a result cannot be written; what was begun is finished.
    """
    pending: set[Future[JobOutcome]] = set()
    source = iter(jobs)
    number = _WAITING * workers
    with ThreadPoolExecutor(number, "labelling") as pool:
        try:
            pending = {pool.submit(labeller, job) for job in islice(source, number)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(labeller, job) for job in islice(source, len(done))}
                for future in done:
                    yield future.result()
        finally:  # also when the caller has had enough: what has not begun does not begin
            for future in pending:
                future.cancel()
