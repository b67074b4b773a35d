"""The most accurate candidate within a budget: by successive halving and fresh timings here, or from measurements.

`Race` is successive halving that cannot lose the best: more and more repeats for fewer and fewer candidates. All get a
few repeats. Then, in rounds that double the repeats, only those are timed on which the answer depends: from the most
accurate downwards to the first that is likely to fit. A candidate is dropped only when its timings rule it out (an
exact test, see `litheseg.runtime.latency`); less accurate ones are timed further only if all above are too slow.
Plain successive halving (Jamieson and Talwalkar, AISTATS 2016) drops the worse half in every round, which here would
drop the answer whenever more than half of the candidates are a little too slow. A hyperparameter library fits less
well still: accuracy does not depend on the timings, the budget is a constraint rather than a score, timings must be
interleaved to be comparable, and the candidates are few enough to list.

`Search` races the model's widths, then widths between the widest that fits and the next, then int8 of more accurate
networks that are too slow. The best is timed again, beside its rivals; if it misses the budget, the next best is tried.
`choose_measured` chooses from the timings of a benchmark kit, where nothing can be timed again.

Usage:
    >>> found = Search(limits, bench, accuracy, costs).run(candidates)
    >>> found.chosen.candidate.name, found.chosen.times.percentile(95)
    ('w0.5-180x240-fp32 openvino 2t', 14.2)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from litheseg.budget.candidates import Candidate, Limits, Variant
from litheseg.budget.found import Found, Point, keeps_class_limit, refusal, too_big
from litheseg.budget.kit import SCRIPT, Measurements
from litheseg.budget.measure import Accuracy, Bench
from litheseg.errors import LithesegError, listed
from litheseg.progress import work
from litheseg.runtime.latency import Latency, Scope, needed_repeats

__all__ = [
    "FIRST_REPEATS",
    "PROOF_MS",
    "Race",
    "Search",
    "choose_measured",
]

FIRST_REPEATS = 6
"""Repeats of every candidate."""
_SAFELY = 0.85  # of the budget: a candidate whose slowest pass so far is below it is likely to fit
_ALIKE = 1.25  # equally accurate candidates whose medians differ by less are both kept

PROOF_MS = 20_000
"""Shortest time for which the choice and its rivals are timed together: machine speed varies over seconds."""
_HALVINGS = 2
_FINEST = 1 / 32  # of the widths between trained ones
_NEAR = 1.1  # times the budget: what is timed again beside the choice, in case its first timings were too slow
_RIVALS = 2
_VERIFYING = 3  # times the repeats that a percentile needs, at least
_ROUNDS = 3
_BEYOND = 3.0  # times the budget: how far the frontier is shown
_SHOWN_REPEATS = 24
_INT8_GAIN = 6.0  # int8 is not faster than fp32 by more
_INT8_LOSS = 0.005  # what int8 may cost
_INT8_TRIALS = 4

C = TypeVar("C", bound=Hashable)
Costs = Callable[[Iterable[Variant]], Mapping[Variant, Mapping[str, float]]]


class Race(Generic[C]):
    """Finds the most accurate candidate within a budget, and among equally accurate ones the faster.

    Args:
        measure: (candidates, repeats) -> milliseconds of each, measured side by side.
        accuracy: of a candidate; called once for each that timings have not ruled out.
        budget: milliseconds.
        percentile: that has to be within the budget.
        recall: earlier timings of a candidate, which count too.
        allowed: whether a candidate may be the answer; asked of those that timings have not ruled out.

    Attributes:
        samples: timings of every candidate so far.
        accuracies: those measured so far.
    """

    def __init__(
        self,
        measure: Callable[[Sequence[C], int], Mapping[C, Sequence[float]]],
        accuracy: Callable[[C], float],
        budget: float,
        percentile: float = 95.0,
        recall: Callable[[C], Latency] = lambda _: Latency(Scope.END_TO_END),
        allowed: Callable[[C], bool] = lambda _: True,
    ) -> None:
        self.samples: dict[C, Latency] = {}
        self.accuracies: dict[C, float] = {}
        self._measure, self._accuracy, self._recall = measure, accuracy, recall
        self._budget, self._percentile, self._allowed = budget, percentile, allowed

    def run(self, candidates: Iterable[C] = ()) -> C | None:
        """Add candidates and race until the answer is certain; None where nothing is within the budget."""
        for candidate in candidates:
            if candidate not in self.samples:
                self.samples[candidate] = self._recall(candidate)
        self.add_repeats([c for c, times in self.samples.items() if len(times) < FIRST_REPEATS], FIRST_REPEATS)
        while uncertain := [c for c in self._contenders() if not self._enough(c)]:
            self.add_repeats(uncertain, min(len(self.samples[c]) for c in uncertain))
        return next((c for c in self.ranked() if self.inside(c)), None)

    def add_repeats(self, candidates: Sequence[C], repeats: int) -> None:
        """Time some more, side by side."""
        if candidates:
            for candidate, times in self._measure(candidates, repeats).items():
                self.samples[candidate].add(times)

    def possible(self, candidate: C) -> bool:
        """Whether its timings do not rule it out."""
        return not self.samples[candidate].clearly_above(self._budget, self._percentile)

    def estimate(self, candidate: C) -> float:
        """The percentile in milliseconds, as far as its timings allow."""
        return self.samples[candidate].percentile(self._percentile)

    def inside(self, candidate: C) -> bool:
        """Whether it was timed often enough, and is within the budget."""
        return self._enough(candidate) and self.estimate(candidate) <= self._budget

    def ranked(self) -> list[C]:
        """Those that may be the answer, the most accurate first, and the faster first among equals."""
        fitting = [c for c in self.samples if self.possible(c) and self._allowed(c)]
        return sorted(fitting, key=lambda c: (-self.accuracy(c), self.samples[c].percentile(50)))

    def accuracy(self, candidate: C) -> float:
        """Accuracy of a candidate, measured once."""
        if candidate not in self.accuracies:
            self.accuracies[candidate] = self._accuracy(candidate)
        return self.accuracies[candidate]

    def _enough(self, candidate: C) -> bool:
        return len(self.samples[candidate]) >= needed_repeats(self._percentile)

    def _contenders(self) -> list[C]:
        """From the most accurate down to the first that is likely to fit, and those that may be its faster equals."""
        chosen: list[C] = []
        safe: C | None = None
        for candidate in self.ranked():
            if safe is not None and not self._may_be_faster(candidate, safe):
                break
            chosen.append(candidate)
            likely = self.inside(candidate) or max(self.samples[candidate].ms) <= _SAFELY * self._budget
            if safe is None and likely:
                safe = candidate
        return chosen

    def _may_be_faster(self, candidate: C, safe: C) -> bool:
        median, least = self.samples[candidate].percentile(50), self.samples[safe].percentile(50)
        return self.accuracy(candidate) == self.accuracy(safe) and median <= _ALIKE * least


class Search:
    """Finds the most accurate candidate, and verifies it by fresh timings.

    Args:
        limits: what has to hold.
        bench: times candidates.
        accuracy: of candidates.
        costs: counted costs of networks.
        refine: whether widths between those given may be tried.
        int8: whether int8 may be tried.
    """

    def __init__(
        self,
        limits: Limits,
        bench: Bench,
        accuracy: Accuracy,
        costs: Costs,
        *,
        refine: bool = True,
        int8: bool = False,
    ) -> None:
        self._limits, self._bench, self._scores, self._costs_of = limits, bench, accuracy, costs
        self._refine, self._int8 = refine, int8
        self._costs: dict[Variant, Mapping[str, float]] = {}
        self._notes: dict[str, None] = {}
        self.race: Race[Candidate] = Race(
            bench.measure, accuracy.miou, limits.available, limits.percentile, bench.recall, self._finds_all_classes
        )

    def run(self, candidates: Iterable[Candidate]) -> Found:
        """Search, then verify.

        Raises:
            BudgetError: nothing is within the limits; names the nearest point, and what it would take.
            LithesegError: nothing to choose among.
        """
        best = self.race.run(self._admitted(tuple(candidates)))
        for _ in range(_HALVINGS if self._refine else 0):
            best = self.race.run(self._admitted(self._between(best)))
        if self._int8:
            best = self._try_int8(best)
        self._time_neighbours()
        if best is None:
            raise refusal(self._limits, self._points())
        chosen, verified = self._prove(best)
        if self._limits.min_miou is not None and (chosen.miou or 0) < self._limits.min_miou:
            raise refusal(self._limits, self._points())
        return Found(chosen, verified, self._points(), (*self._notes, *self._bench.warnings(self.race.samples)))

    def _finds_all_classes(self, candidate: Candidate) -> bool:
        """Whether its worst class is as good as it has to be."""
        return self._limits.min_class_iou is None or keeps_class_limit(self._limits, self._scores.worst(candidate))

    def _admitted(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those with a known accuracy, within the counted limits, that run here."""
        first = not self.race.samples
        known = [candidate for candidate in candidates if self._scores.known(candidate.network)]
        if first and not known:
            raise LithesegError(
                "the accuracy of none of the widths and sizes is known without labelled data; name its folder with "
                "--data, or ask for trained widths at the size of training"
            )
        networks = {candidate.network for candidate in known}
        self._costs |= self._costs_of(networks - self._costs.keys())
        fitting = [c for c in known if not self._limits.broken_on_paper(self._costs[c.network])]
        if first and not fitting:
            raise too_big(self._limits, {network: self._costs[network] for network in networks})
        timed_before = [c for c in fitting if len(self.race.samples.get(c) or self._bench.recall(c))]
        reasons = self._bench.unusable([c for c in fitting if c not in timed_before])
        self._notes |= dict.fromkeys(f"left out: {reason}" for reason in reasons.values())
        usable = [candidate for candidate in fitting if candidate not in reasons]
        if first and not usable:
            raise LithesegError("; ".join(dict.fromkeys(reasons.values())))
        return usable

    def _between(self, best: Candidate | None) -> list[Candidate]:
        """In each input size and precision: the width halfway between one that fits and the next one that does not."""
        floor = -1.0 if best is None else self.race.accuracy(best)
        families: dict[Any, list[Candidate]] = defaultdict(list)  # the widest first
        for candidate in sorted(self._fastest(self.race.samples), key=lambda c: -c.network.width):
            families[candidate.network[1:]].append(candidate)
        result = []
        for family in families.values():
            fitting = [c for c in family if self.race.estimate(c) <= self._limits.available]
            wider = [c for c in family if c not in fitting and all(c.network.width > d.network.width for d in fitting)]
            if fitting and wider and self.race.accuracy(wider[-1]) > floor:
                low, high = fitting[0].network.width, wider[-1].network.width
                width = round((low + high) / 2 / _FINEST) * _FINEST
                if low < width < high:
                    result.append(replace(fitting[0], network=fitting[0].network._replace(width=width)))
        return result

    def _fastest(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Each network in the fastest of its runtimes and threads."""
        fastest: dict[Variant, Candidate] = {}
        for candidate in sorted(candidates, key=lambda c: self.race.samples[c].percentile(50)):
            fastest.setdefault(candidate.network, candidate)
        return list(fastest.values())

    def _try_int8(self, best: Candidate | None) -> Candidate | None:
        """Int8 of more accurate networks that are too slow, though not hopelessly so, the most accurate first.

        Making one takes minutes, so the first that fits ends it, and so does a number of failures.
        """
        floor = -1.0 if best is None else self.race.accuracy(best) + _INT8_LOSS
        reach = _INT8_GAIN * self._limits.available
        in_files = [c for c in self.race.samples if c.runtime != "torch" and c.network.precision == "fp32"]
        slow = [c for c in self._fastest(in_files) if self._limits.available < self.race.estimate(c) <= reach]
        better = sorted((c for c in slow if self.race.accuracy(c) > floor), key=lambda c: -self.race.accuracy(c))
        for candidate in better[:_INT8_TRIALS]:
            int8 = replace(candidate, network=candidate.network._replace(precision="int8"))
            best = self.race.run(self._admitted([int8]))
            if best == int8:
                break
        return best

    def _time_neighbours(self) -> None:
        """Measure accuracy and time also for what is somewhat too slow, or less accurate than the choice.

        This shows what another budget would give and, if nothing fits, what is nearest.
        """
        fastest = self._fastest(self.race.samples)
        reach = _BEYOND * max(self._limits.available, min(map(self.race.estimate, fastest), default=0.0))
        near = [candidate for candidate in fastest if self.race.estimate(candidate) <= reach]
        self.race.add_repeats([c for c in near if len(self.race.samples[c]) < _SHOWN_REPEATS], _SHOWN_REPEATS)
        for candidate in near:
            self.race.accuracy(candidate)

    def _prove(self, best: Candidate) -> tuple[Point, tuple[Point, ...]]:
        """The choice and its rivals: fresh timings until one holds."""
        first, promised = best, self.race.estimate(best)
        fresh: list[Candidate] = []
        for _ in range(_ROUNDS):
            group = [candidate for candidate in self._rivals(best) if candidate not in fresh]
            with work("timing the choice again, beside its rivals"):
                times = self._bench.measure(group, self._proof_repeats(group))
            for candidate, ms in times.items():
                self.race.samples[candidate] = Latency(Scope.END_TO_END, list(ms))  # in place of the earlier ones
            fresh += group
            holding = next((c for c in self.race.ranked() if c in fresh and self.race.inside(c)), None)
            if holding is not None:
                break
            following = self.race.run()
            if following is None:
                raise refusal(self._limits, self._points())
            best = following
        else:
            raise refusal(self._limits, self._points())
        if holding != first and not self.race.inside(first):
            note = (
                f"{first.name} was within the budget at first ({promised:.2f} ms) and not when timed again "
                f"({self.race.estimate(first):.2f} ms): the next best is promised instead"
            )
            self._notes[note] = None
        verified = tuple(point for point in self._points() if point.candidate in fresh)
        return next(point for point in verified if point.candidate == holding), verified

    def _proof_repeats(self, group: Sequence[Candidate]) -> int:
        """Enough repeats for the percentile, and for `PROOF_MS` of the group."""
        round_ms = sum(max(self.race.samples[c].percentile(50), self._limits.period) for c in group)
        return max(_VERIFYING * needed_repeats(self._limits.percentile), math.ceil(PROOF_MS / round_ms))

    def _rivals(self, best: Candidate) -> list[Candidate]:
        """The choice, more accurate ones that nearly fit, and the next ones below it."""
        ranked, scored = self.race.ranked(), self.race.accuracies
        better = [c for c in self.race.samples if scored.get(c, -1.0) > scored[best]]
        near = sorted(
            (c for c in better if self.race.estimate(c) <= _NEAR * self._limits.available), key=self.race.estimate
        )
        below = [c for c in ranked[ranked.index(best) + 1 :] if self.race.estimate(c) <= self._limits.available]
        return [*near[:_RIVALS], best, *below[:_RIVALS]]

    def _points(self) -> tuple[Point, ...]:
        """Everything that was timed, the most accurate first."""
        miou = {candidate.network: value for candidate, value in self.race.accuracies.items()}
        worst = {candidate.network: self._scores.worst(candidate) for candidate in self.race.accuracies}
        points = [
            Point(c, times, miou.get(c.network), self._costs[c.network], worst.get(c.network))
            for c, times in self.race.samples.items()
        ]
        return tuple(sorted(points, key=lambda point: (-(point.miou or 0), point.times.percentile(50))))


def choose_measured(
    measured: Measurements, limits: Limits, accuracy: Accuracy, costs: Costs, candidates: Iterable[Candidate]
) -> Found:
    """Choose from timings of another machine, which must be enough for the percentile.

    Args:
        measured: the timings.
        limits: what has to hold.
        accuracy: of candidates.
        costs: of networks on paper.
        candidates: those of the timings that may be chosen.

    Raises:
        BudgetError: nothing is within the limits; names the nearest point.
        LithesegError: too few repeats, or nothing to choose among.
    """
    known = [candidate for candidate in candidates if accuracy.known(candidate.network)]
    if not known:
        raise LithesegError(
            f"{measured.path} has no timing of a candidate whose accuracy is known; name the data with --data, or ask "
            "for widths, sizes, runtimes and threads that were measured: "
            + listed([candidate.name for candidate in measured.samples], 4)
        )
    needed, fewest = needed_repeats(limits.percentile), min(len(measured.samples[c]) for c in known)
    if fewest < needed:
        raise LithesegError(
            f"{measured.path} has {fewest} repeats, and the {limits.percentile:g}th percentile takes {needed}; run "
            f"`python {SCRIPT} --repeats {needed}` on the target, or ask for a lower --percentile"
        )
    paper = costs({candidate.network for candidate in known})
    times = {candidate: measured.samples[candidate].percentile(limits.percentile) for candidate in known}
    reach = _BEYOND * max(limits.available, min(times.values()))
    points = []
    for c in known:
        scores = (accuracy.miou(c), accuracy.worst(c)) if times[c] <= reach else (None, None)
        points.append(Point(c, measured.samples[c], scores[0], paper[c.network], scores[1]))
    points.sort(key=lambda point: (-(point.miou or 0), times[point.candidate]))
    fitting = [
        p
        for p in points
        if times[p.candidate] <= limits.available
        and not limits.broken_on_paper(p.costs)
        and keeps_class_limit(limits, p.worst)
    ]
    if not fitting or (limits.min_miou is not None and (fitting[0].miou or 0) < limits.min_miou):
        raise refusal(limits, points)
    place = measured.host.get("device") or measured.host.get("cpu", "another machine")
    note = f"timed by {SCRIPT} on {place}; run it there again to verify"
    return Found(fitting[0], (), tuple(points), (note,))
