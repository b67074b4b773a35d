"""What a box can hold, said beforehand: at each width, how many clients at once are answered within the target.

Every width is measured before the first request, with all that a worker does for one (decoding, network, encoding):
alone, and with all workers busy. From that follows what clients meet who each send their next image when the answer has
come. As many as there are workers, or fewer, do not wait; more share the workers, so that an answer takes as many turns
as there are clients to a worker, rounded up. The 95th of 100 times counts, and a quarter is added for what is not
measured: HTTP, which takes from the same cores, and that a few images are no more than a sample. It knows no images.

Usage:
    >>> measured = measure(lambda width: time.sleep(0.03), (1.0, 0.5), Workers(workers=2, queue=16))
    >>> capacity(measured[0.5], workers=2, queue=16, target_ms=100)
    Capacity(clients=4, per_second=53.0, enough_ms=37.7)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from litheseg.serving.workers import Workers

__all__ = ["Capacity", "Measured", "capacity", "measure"]

_SECONDS = 0.8  # that measuring should take, where the fewest passes do not take longer
_FEWEST, _MOST = 2, 5  # passes a width
_MORE = 1.25  # HTTP takes 2.3 ms of a core for an image of which decoding, network and encoding take 16 to 30


@dataclass(frozen=True)
class Measured:
    """Milliseconds of work for an image at one width, over several images.

    Attributes:
        alone: while nothing else was at work.
        busy: while all workers were.
    """

    alone: tuple[float, ...]
    busy: tuple[float, ...]


@dataclass(frozen=True)
class Capacity:
    """What one width can hold within the target.

    Attributes:
        clients: at once, each with one image after the other; 0 where even one waits too long.
        per_second: images that they get labelled together.
        enough_ms: the least target that as many clients as there are workers could have, or one where `clients` is 0.
    """

    clients: int
    per_second: float
    enough_ms: float


def capacity(measured: Measured, *, workers: int, queue: int, target_ms: float) -> Capacity:
    """The most clients that still get 95 of 100 answers within the target.

    Args:
        measured: at the width.
        workers: images at work at once.
        queue: that may wait besides; more clients would be refused.
        target_ms: from a received upload to its answer, waiting included.
    """
    typical, late = (_at_once(measured, workers, share) for share in (50, 95))
    fitting = [n for n, ms in enumerate(late, 1) if ms <= target_ms]
    clients = max(fitting, default=0)
    if clients < workers:
        rate = 1e3 * clients / typical[clients - 1] if clients else 0.0
        return Capacity(clients, rate, late[-1] if clients else late[0])
    clients = min(workers * math.floor(target_ms / late[-1]), workers + queue)
    return Capacity(clients, 1e3 * workers / typical[-1], late[-1])


def measure(work: Callable[[float], object], widths: Iterable[float], workers: Workers) -> dict[float, Measured]:
    """Time the work at every width.

    Args:
        work: what is done for one image at a width.
        widths: those to measure.
        workers: open, and with nothing else to do.
    """
    widths = tuple(widths)
    for width in widths:
        work(width)  # the first time takes longer
    once = sum(_timed(work, width) for width in widths) / 1e3
    # With all workers busy each pass may take as long again.
    passes = min(_MOST, max(_FEWEST, math.floor(_SECONDS / (3 * once)))) if once else _MOST
    alone: dict[float, list[float]] = {width: [] for width in widths}
    for _ in range(passes):
        for width, times in alone.items():
            times.append(_timed(work, width))
    return {width: Measured(tuple(times), _together(work, width, passes, workers)) for width, times in alone.items()}


def _timed(work: Callable[[float], object], width: float) -> float:
    started = time.perf_counter()
    work(width)
    return 1e3 * (time.perf_counter() - started)


def _together(work: Callable[[float], object], width: float, passes: int, workers: Workers) -> tuple[float, ...]:
    runs = [workers.submit(lambda turn: [_timed(work, width) for _ in range(passes)]) for _ in range(workers.workers)]
    return tuple(ms for run in runs for ms in run.result())


def _at_once(measured: Measured, workers: int, percentile: float) -> list[float]:
    """A percentile of the work for 1, 2, ... `workers` images at once; only the first and the last are measured."""
    alone, busy = (_MORE * float(np.percentile(times, percentile)) for times in (measured.alone, measured.busy))
    return np.linspace(alone, max(alone, busy), workers).tolist() if workers > 1 else [max(alone, busy)]
