"""Where candidates become pipelines that can be timed: exported once, opened when needed, measured in turns.

Of very many candidates only so many are open at once. One that cannot run here (its runtime is not installed, the
processor lacks its precision) is a reason in words, not an error: others may do. It does not know how candidates are
made to run (`workbench` does), how accurate they are, nor which one is wanted.

Usage:
    >>> bench = Bench(Workbench(bundle, store.exports).engine, frames)
    >>> reasons = bench.unusable(candidates)
    >>> bench.measure([candidate for candidate in candidates if candidate not in reasons], repeats=6)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

import numpy as np

from litheseg.budget.candidates import Candidate
from litheseg.errors import LithesegError, WidthError
from litheseg.runtime.engines import Engine
from litheseg.runtime.latency import Scope, measure
from litheseg.runtime.pipeline import Pipeline

__all__ = ["Bench", "Timer"]

_TOGETHER = 32  # pipelines open at once: a small network in a runtime takes tens of megabytes
_WARMUP = 3

Progress = Callable[[str], None]


class Timer(Protocol):
    """What a fit needs of a clock."""

    def unusable(self, candidates: Iterable[Candidate]) -> dict[Candidate, str]:
        """Those that cannot be timed, and why."""

    def measure(self, candidates: Sequence[Candidate], repeats: int) -> dict[Candidate, list[float]]:
        """Milliseconds of each, measured side by side."""


class Bench:
    """Times candidates on this machine, end to end.

    Args:
        engine: makes a candidate run; raises a `LithesegError` where it cannot.
        frames: images of the camera's size, uint8 H x W x 3, that each candidate takes in turn.
        fps: how many of them come in a second; None for one after the other.
        progress: told what is being done.
    """

    def __init__(
        self,
        engine: Callable[[Candidate], Engine],
        frames: Sequence[np.ndarray],
        *,
        fps: float | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        self._engine, self._frames, self._fps, self._progress = engine, frames, fps, progress
        self._open: dict[Candidate, Pipeline] = {}

    def unusable(self, candidates: Iterable[Candidate]) -> dict[Candidate, str]:
        """See `Timer.unusable`; opens each, which exports what is not exported yet."""
        reasons: dict[Candidate, str] = {}
        failed: dict[Hashable, str] = {}
        for candidate in candidates:
            int8 = candidate.network.precision == "int8"  # each network may or may not bear it
            kind = (candidate.runtime, candidate.network if int8 else candidate.network.precision)
            if kind not in failed:
                try:
                    self._pipeline(candidate)
                    continue
                except WidthError:
                    raise
                except LithesegError as error:
                    failed[kind] = str(error)  # a runtime that is not there fails alike for all
            reasons[candidate] = failed[kind]
        return reasons

    def measure(self, candidates: Sequence[Candidate], repeats: int) -> dict[Candidate, list[float]]:
        """See `Timer.measure`."""
        result: dict[Candidate, list[float]] = {}
        for first in range(0, len(candidates), _TOGETHER):
            some = candidates[first : first + _TOGETHER]
            pipelines = {candidate: self._pipeline(candidate) for candidate in some}
            pace = f" at {self._fps:g} images a second" if self._fps else ""
            self._progress(f"timing {len(some)} candidate{'s' * (len(some) > 1)}, {repeats} repeats{pace}")
            times = measure(pipelines, self._frames, repeats=repeats, warmup=_WARMUP, fps=self._fps)
            result |= {candidate: stages[Scope.END_TO_END].ms for candidate, stages in times.items()}
        return result

    def _pipeline(self, candidate: Candidate) -> Pipeline:
        if candidate not in self._open:
            while len(self._open) >= _TOGETHER:
                del self._open[next(iter(self._open))]
            engine = self._engine(candidate)
            self._open[candidate] = Pipeline(engine, candidate.network.size, candidate.threads)
        pipeline = self._open.pop(candidate)
        self._open[candidate] = pipeline  # the one used last is closed last
        return pipeline
