"""Successive halving that cannot lose the best: more and more repeats for fewer and fewer candidates.

Wanted is the most accurate candidate whose percentile is within the budget. Everybody gets a few repeats. Then, in
rounds that double the repeats, only those are measured on which the answer depends: from the most accurate downwards to
the first that looks safely inside. A candidate leaves for good only when its timings rule it out (an exact test, see
`stats`); the less accurate are not dropped but wait: should all those above them turn out too slow, they come back.
Plain successive halving (Jamieson and Talwalkar, AISTATS 2016) drops the worse half on every rung, which here would
drop the answer whenever more than half of the candidates are a little too slow. A hyperparameter library fits less
well still: accuracy does not depend on the timings, the budget is a constraint rather than a score, timings must be
interleaved to be comparable, and the candidates are few enough to list. (Optuna's pruners look at one trial at a time.)

It knows no clock and no model: timings and accuracies come from the callables that it is given.

Usage:
    >>> race = Race(measure, accuracy, budget=20.0)
    >>> race.run(candidates)
    Candidate(...)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from litheseg.runtime.latency import Latency, Scope, needed_repeats

__all__ = ["FIRST_REPEATS", "Race"]

FIRST_REPEATS = 6
"""What every candidate gets."""
_SAFELY = 0.85  # of the budget: whose slowest pass so far is below it needs no company from below
_ALIKE = 1.25  # candidates of equal accuracy whose medians differ by less go on together

C = TypeVar("C", bound=Hashable)


class Race(Generic[C]):
    """Finds the most accurate candidate within a budget, and among equally accurate ones the faster.

    Args:
        measure: (candidates, repeats) -> milliseconds of each, measured side by side.
        accuracy: of a candidate; asked only for those that timings have not ruled out, once each.
        budget: milliseconds.
        percentile: that has to be within the budget.
        recall: timings of a candidate from earlier, which count.

    Attributes:
        samples: timings of every candidate so far.
        accuracies: of those that were asked for.
    """

    def __init__(
        self,
        measure: Callable[[Sequence[C], int], Mapping[C, Sequence[float]]],
        accuracy: Callable[[C], float],
        budget: float,
        percentile: float = 95.0,
        recall: Callable[[C], Latency] = lambda _: Latency(Scope.END_TO_END),
    ) -> None:
        self.samples: dict[C, Latency] = {}
        self.accuracies: dict[C, float] = {}
        self._measure, self._accuracy, self._recall = measure, accuracy, recall
        self._budget, self._percentile = budget, percentile
        self._pool: dict[C, None] = {}

    @property
    def pool(self) -> tuple[C, ...]:
        """All candidates so far."""
        return tuple(self._pool)

    def run(self, candidates: Iterable[C] = ()) -> C | None:
        """Add candidates and race until the answer stands; None where nothing is within the budget."""
        self._pool |= dict.fromkeys(candidates)
        self.add_repeats([c for c in self._pool if len(self._of(c)) < FIRST_REPEATS], FIRST_REPEATS)
        while open_ := [c for c in self._contenders() if not self.settled(c)]:
            self.add_repeats(open_, min(len(self._of(c)) for c in open_))
        return next((c for c in self.ranked() if self.inside(c)), None)

    def add_repeats(self, candidates: Sequence[C], repeats: int) -> None:
        """Time some more, side by side."""
        if candidates:
            for candidate, times in self._measure(candidates, repeats).items():
                self._of(candidate).add(times)

    def repeats(self, candidate: C) -> int:
        """How often it was timed."""
        return len(self._of(candidate))

    def possible(self, candidate: C) -> bool:
        """Whether its timings leave it a chance."""
        return not self._of(candidate).clearly_above(self._budget, self._percentile)

    def settled(self, candidate: C) -> bool:
        """Whether there are enough timings to tell the percentile."""
        return len(self._of(candidate)) >= needed_repeats(self._percentile)

    def estimate(self, candidate: C) -> float:
        """The percentile in milliseconds, as far as it can be told."""
        return self._of(candidate).percentile(self._percentile)

    def inside(self, candidate: C) -> bool:
        """Whether it is known well, and within the budget."""
        return self.settled(candidate) and self.estimate(candidate) <= self._budget

    def ranked(self) -> list[C]:
        """Those with a chance, the most accurate first, and the faster first among equals."""
        fitting = [c for c in self._pool if self.possible(c)]
        return sorted(fitting, key=lambda c: (-self._accuracy_of(c), self._of(c).percentile(50)))

    def _contenders(self) -> list[C]:
        """From the most accurate down to the first that looks safe, and those that may be its faster equals."""
        chosen: list[C] = []
        safe: C | None = None
        for candidate in self.ranked():
            if safe is not None and not self._may_be_faster(candidate, safe):
                break
            chosen.append(candidate)
            if safe is None and (self.inside(candidate) or self._looks_safe(candidate)):
                safe = candidate
        return chosen

    def _looks_safe(self, candidate: C) -> bool:
        return max(self._of(candidate).ms) <= _SAFELY * self._budget

    def _may_be_faster(self, candidate: C, safe: C) -> bool:
        if self._accuracy_of(candidate) != self._accuracy_of(safe):
            return False
        return self._of(candidate).percentile(50) <= _ALIKE * self._of(safe).percentile(50)

    def _accuracy_of(self, candidate: C) -> float:
        if candidate not in self.accuracies:
            self.accuracies[candidate] = self._accuracy(candidate)
        return self.accuracies[candidate]

    def _of(self, candidate: C) -> Latency:
        if candidate not in self.samples:
            self.samples[candidate] = self._recall(candidate)
        return self.samples[candidate]
