"""The search behind `fit`: from candidates to the most accurate one within the budget, proven by fresh timings.

Coarse first: the widths that the model has, at every input size, in every runtime. Then finer where it may pay: between
the widest width that fits and the next that does not. int8 last, since making it takes minutes: of networks that are
more accurate than the best so far, and too slow. What is found is timed anew, beside its rivals and for `PROOF_MS` at
least; if it does not hold, the next best has to, and the result says so.

It knows timings and accuracies only through what it is given, and writes nothing.

Usage:
    >>> found = Search(limits, timer, scores).run(candidates)
    >>> found.chosen.candidate.name, found.chosen.times.percentile(95)
    ('w0.5-180x240-fp32 openvino 2t', 14.2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from litheseg.budget.bench import Timer
from litheseg.budget.candidates import Candidate, Network
from litheseg.budget.limits import Limits
from litheseg.budget.race import Race
from litheseg.budget.scores import Scores
from litheseg.errors import LithesegError
from litheseg.runtime.latency import Latency, Scope, needed_repeats

__all__ = ["PROOF_MS", "BudgetError", "Found", "Point", "Search", "refusal"]

PROOF_MS = 20_000
"""How long the choice and its rivals are timed, together, at least: a machine has slow and fast seconds."""

_HALVINGS = 2
_FINEST = 1 / 32  # of the widths between trained ones
_NEAR = 1.1  # times the budget: what is re-measured beside the choice, lest the first timings were unlucky
_RIVALS = 2
_VERIFYING = 3  # times the repeats that a percentile needs, at least
_ROUNDS = 3
_BEYOND = 3.0  # times the budget: how far the frontier is shown
_SHOWN_REPEATS = 24
_INT8_GAIN = 6.0  # int8 is not faster than fp32 by more
_INT8_LOSS = 0.005  # what int8 may cost
_INT8_TRIALS = 4


class BudgetError(LithesegError):
    """Nothing fits; the message names what is nearest."""


@dataclass(frozen=True)
class Point:
    """A candidate, and what is known of it.

    Attributes:
        candidate: which.
        times: its timings.
        miou: in [0, 1]; None where it was not measured, because its timings ruled it out.
        costs: params, macs, model_size and memory.
    """

    candidate: Candidate
    times: Latency
    miou: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self, percentile: float) -> dict[str, Any]:
        """Flat, for JSON."""
        known = {**self.candidate.to_dict(), "miou": self.miou, **self.costs}
        return {**known, **self.times.to_dict(percentile)}


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        chosen: with its fresh timings only.
        verified: it and its rivals, with their fresh timings.
        points: everything that was timed, the most accurate first.
        notes: what a user should know.
    """

    chosen: Point
    verified: tuple[Point, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...]


class Search:
    """Looks for the most accurate candidate.

    Args:
        limits: what has to hold.
        timer: times candidates.
        scores: their accuracies.
        costs: of networks on paper.
        recall: timings of a candidate from earlier.
        refine: whether widths between those given may be tried.
        quantise: whether int8 may be tried.
        progress: told what is being done.
    """

    def __init__(
        self,
        limits: Limits,
        timer: Timer,
        scores: Scores,
        costs: Callable[[Iterable[Network]], Mapping[Network, Mapping[str, float]]],
        *,
        recall: Callable[[Candidate], Latency] = lambda _: Latency(Scope.END_TO_END),
        refine: bool = True,
        quantise: bool = False,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._limits, self._timer, self._scores, self._costs_of = limits, timer, scores, costs
        self._refine, self._quantise, self._progress = refine, quantise, progress
        self._costs: dict[Network, Mapping[str, float]] = {}
        self._notes: dict[str, None] = {}
        self.race: Race[Candidate] = Race(timer.measure, self._accuracy, limits.available, limits.percentile, recall)

    def run(self, candidates: Iterable[Candidate]) -> Found:
        """Search, then prove.

        Raises:
            BudgetError: nothing is within the limits; names the nearest point, and what it would take.
        """
        best = self.race.run(self._admitted(tuple(candidates)))
        for _ in range(_HALVINGS if self._refine else 0):
            best = self.race.run(self._admitted(self._between(best)))
        if self._quantise:
            best = self._try_int8(best)
        self._show_neighbours()
        if best is None:
            raise refusal(self._limits, self.points())
        verified, chosen = self._prove(best)
        if self._limits.min_miou is not None and (chosen.miou or 0) < self._limits.min_miou:
            raise refusal(self._limits, self.points())
        return Found(chosen, verified, self.points(), tuple(self._notes))

    def points(self) -> tuple[Point, ...]:
        """Everything that was timed, the most accurate first."""
        points = [self._point(candidate, self.race.samples[candidate]) for candidate in self.race.pool]
        return tuple(sorted(points, key=lambda point: (-(point.miou or 0), point.times.percentile(50))))

    # Who takes part

    def _admitted(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those whose accuracy can be told, that keep the limits on paper, and that run here."""
        told = [candidate for candidate in candidates if self._scores.known(candidate.network)]
        if candidates and not told and not self.race.pool:
            raise LithesegError(
                "the accuracy of none of the widths and sizes is known without labelled data; name its folder with "
                "--data, or ask for trained widths at the size of training"
            )
        self._costs |= self._costs_of({candidate.network for candidate in told} - self._costs.keys())
        broken = {n: self._limits.broken_on_paper(self._costs[n]) for n in {c.network for c in told}}
        fitting = [candidate for candidate in told if not broken[candidate.network]]
        if told and not fitting and not self.race.pool:
            raise _too_big(self._limits, {network: self._costs[network] for network in broken})
        reasons = self._timer.unusable([c for c in fitting if not self.race.repeats(c)])
        for reason in reasons.values():
            self._notes[f"left out: {reason}"] = None
        usable = [candidate for candidate in fitting if candidate not in reasons]
        if fitting and not usable and not self.race.pool:
            raise LithesegError("; ".join(dict.fromkeys(reasons.values())))
        return usable

    def _between(self, best: Candidate | None) -> list[Candidate]:
        """In each input size and precision: the width halfway between one that fits and the next one that does not."""
        floor = -1.0 if best is None else self._accuracy(best)
        result = []
        for family in self._families():
            fitting = [c for c in family if self.race.estimate(c) <= self._limits.available]
            wider = [c for c in family if c not in fitting and all(c.network.width > d.network.width for d in fitting)]
            if fitting and wider and self._accuracy(wider[-1]) > floor:
                low, high = fitting[0].network.width, wider[-1].network.width
                width = round((low + high) / 2 / _FINEST) * _FINEST
                if low < width < high:
                    result.append(replace(fitting[0], network=fitting[0].network._replace(width=width)))
        return result

    def _families(self) -> list[list[Candidate]]:
        """Per input size and precision: each width in the fastest of its runtimes and threads, the widest first."""
        fastest: dict[Network, Candidate] = {}
        for candidate in sorted(self.race.pool, key=lambda c: self.race.samples[c].percentile(50)):
            fastest.setdefault(candidate.network, candidate)
        families: dict[tuple[Any, ...], list[Candidate]] = {}
        for network in sorted(fastest, key=lambda network: -network.width):
            families.setdefault(network[1:], []).append(fastest[network])
        return list(families.values())

    def _try_int8(self, best: Candidate | None) -> Candidate | None:
        """The int8 twins of networks that are too slow, not hopelessly so, and more accurate: the best of them first.

        Making one takes minutes, so the first that fits ends it, and so does a number of failures.
        """
        floor = -1.0 if best is None else self._accuracy(best) + _INT8_LOSS
        reach = _INT8_GAIN * self._limits.available
        slow = [c for c in self._fastest_in_files() if self._limits.available < self.race.estimate(c) <= reach]
        better = sorted((c for c in slow if self._accuracy(c) > floor), key=lambda c: -self._accuracy(c))
        for candidate in better[:_INT8_TRIALS]:
            twin = replace(candidate, network=candidate.network._replace(precision="int8"))
            best = self.race.run(self._admitted([twin]))
            if best == twin:
                break
        return best

    def _fastest_in_files(self) -> list[Candidate]:
        """Each fp32 network in the fastest of the runtimes that can have an int8 twin of it."""
        fastest: dict[Network, Candidate] = {}
        for candidate in sorted(self.race.pool, key=lambda c: self.race.samples[c].percentile(50)):
            if candidate.runtime != "torch" and candidate.network.precision == "fp32":
                fastest.setdefault(candidate.network, candidate)
        return list(fastest.values())

    def _show_neighbours(self) -> None:
        """Accuracies and better timings also of what is somewhat too slow, or less accurate than the choice.

        They show what more or fewer milliseconds would buy, and, if nothing fits, what is nearest.
        """
        families = [candidate for family in self._families() for candidate in family]
        fastest = min(map(self.race.estimate, families), default=0.0)
        reach = _BEYOND * max(self._limits.available, fastest)
        near = [candidate for candidate in families if self.race.estimate(candidate) <= reach]
        self.race.add_repeats([c for c in near if self.race.repeats(c) < _SHOWN_REPEATS], _SHOWN_REPEATS)
        for candidate in near:
            if candidate not in self.race.accuracies:
                self.race.accuracies[candidate] = self._accuracy(candidate)

    # The proof

    def _prove(self, best: Candidate) -> tuple[tuple[Point, ...], Point]:
        """Fresh timings of the choice and its rivals, until one holds."""
        first, promised = best, self.race.estimate(best)
        fresh: dict[Candidate, Latency] = {}
        for _ in range(_ROUNDS):
            group = [candidate for candidate in self._rivals(best) if candidate not in fresh]
            self._progress("verifying")
            times = self._timer.measure(group, self._proof_repeats(group))
            fresh |= {candidate: Latency(Scope.END_TO_END, list(values)) for candidate, values in times.items()}
            self.race.samples |= {candidate: fresh[candidate] for candidate in group}  # they replace what was promised
            holding = [c for c in self.race.ranked() if c in fresh and self.race.inside(c)]
            if holding:
                break
            following = self.race.run()
            if following is None:
                raise refusal(self._limits, self.points())
            best = following
        else:
            raise refusal(self._limits, self.points())
        if holding[0] != first and not self.race.inside(first):
            self._notes[
                f"{first.name} was within the budget at first ({promised:.2f} ms) and not when timed again "
                f"({self.race.estimate(first):.2f} ms): the next best is promised instead"
            ] = None
        points = tuple(self._point(candidate, times) for candidate, times in fresh.items())
        return points, next(point for point in points if point.candidate == holding[0])

    def _proof_repeats(self, group: Sequence[Candidate]) -> int:
        """So many that the percentile is sure, and that the group is timed for `PROOF_MS`."""
        round_ms = sum(max(self.race.samples[c].percentile(50), self._limits.period) for c in group)
        return max(_VERIFYING * needed_repeats(self._limits.percentile), math.ceil(PROOF_MS / round_ms))

    def _rivals(self, best: Candidate) -> list[Candidate]:
        """The choice, more accurate ones that nearly fit, and the next ones below it."""
        ranked, scored = self.race.ranked(), self.race.accuracies
        better = [c for c in self.race.pool if scored.get(c, -1.0) > scored[best]]
        near = sorted(
            (c for c in better if self.race.estimate(c) <= _NEAR * self._limits.available), key=self.race.estimate
        )
        below = [c for c in ranked[ranked.index(best) + 1 :] if self.race.estimate(c) <= self._limits.available]
        return [*near[:_RIVALS], best, *below[:_RIVALS]]

    def _accuracy(self, candidate: Candidate) -> float:
        return self._scores.miou(candidate.network)

    def _point(self, candidate: Candidate, times: Latency) -> Point:
        known = {one.network: miou for one, miou in self.race.accuracies.items()}
        return Point(candidate, times, known.get(candidate.network), self._costs.get(candidate.network, {}))


def refusal(limits: Limits, points: Sequence[Point]) -> BudgetError:
    """Why nothing fits, and what is nearest.

    Args:
        limits: those that cannot be kept together.
        points: what was timed; at least one.
    """
    name = f"p{limits.percentile:g}"
    fast = [point for point in points if limits.min_miou is None or (point.miou or 0) >= limits.min_miou]
    nearest = min(fast or points, key=lambda point: point.times.percentile(limits.percentile))
    needed = nearest.times.percentile(limits.percentile) + limits.reserve
    accuracy = "" if nearest.miou is None else f", mIoU {100 * nearest.miou:.1f} %"
    told = f"{nearest.candidate.name}: {name} {needed - limits.reserve:.2f} ms{accuracy}"
    wanted = f"a {name} within {limits.available:.2f} ms"
    if limits.min_miou is not None:
        wanted += f" and an mIoU of {100 * limits.min_miou:.1f} %"
        if not fast:
            best = max(points, key=lambda point: point.miou or 0)
            return BudgetError(
                f"nothing has {wanted}: the most accurate is {best.candidate.name} with "
                f"{100 * (best.miou or 0):.1f} %; lower --min-miou, or train a more accurate model"
            )
    remedy = f"--budget {_rounded_up(needed)}ms would do, or smaller --sizes"
    return BudgetError(f"nothing has {wanted}; the nearest is {told} ({remedy})")


def _too_big(limits: Limits, costs: Mapping[Network, Mapping[str, float]]) -> BudgetError:
    """No network keeps the limits on paper."""

    def excess(network: Network) -> float:
        return max(costs[network][name] / getattr(limits, name) for name in limits.broken_on_paper(costs[network]))

    nearest = min(costs, key=excess)
    broken = limits.broken_on_paper(costs[nearest])
    told = ", ".join(f"{name.replace('_', '-')} {_short(costs[nearest][name])}" for name in broken)
    asked = ", ".join(f"{name.replace('_', '-')} {_short(getattr(limits, name))}" for name in broken)
    return BudgetError(
        f"no width and size keeps within {asked}; the nearest is {nearest.name} with {told}: raise the limit"
    )


def _rounded_up(milliseconds: float) -> str:
    """With some room: three digits, 5 % above."""
    return f"{milliseconds * 1.05:.3g}"


def _short(value: float) -> str:
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"
