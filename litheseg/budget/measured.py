"""The most accurate model within a budget on another machine, from what a kit measured there.

Nothing can be timed again here: the choice rests on the measurements, which must be enough for the percentile, and the
promise is of the network alone. What reads, resizes and paints on the target comes on top; `Limits.reserve` keeps room
for it. Widths and sizes are those of the kit. It knows timings and accuracies only through what it is given.

Usage:
    >>> found = choose_measured(read_measurements(path, digest), limits, scores, costs)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from litheseg.budget.candidates import Candidate, Network
from litheseg.budget.limits import Limits
from litheseg.budget.scores import Scores
from litheseg.budget.search import Found, Point, refusal
from litheseg.budget.target import SCRIPT, Measurements
from litheseg.errors import LithesegError
from litheseg.runtime.latency import needed_repeats

__all__ = ["choose_measured"]

_BEYOND = 3.0  # times the budget: how far accuracies are looked at


def choose_measured(
    measured: Measurements,
    limits: Limits,
    scores: Scores,
    costs: Callable[[Iterable[Network]], Mapping[Network, Mapping[str, float]]],
    *,
    among: Callable[[Candidate], bool] = lambda _: True,
) -> Found:
    """Choose.

    Args:
        measured: timings from the target.
        limits: what has to hold.
        scores: accuracies.
        costs: of networks on paper.
        among: which candidates may be chosen.

    Raises:
        BudgetError: nothing is within the limits; names the nearest point.
        LithesegError: too few repeats, or nothing to choose among.
    """
    candidates = [c for c in measured.samples if among(c) and scores.known(c.network)]
    if not candidates:
        raise LithesegError(
            f"{measured.path} has no timing of a candidate whose accuracy is known; name the data with --data, or ask "
            f"for widths, sizes, runtimes and threads that were measured: {_told(measured.samples)}"
        )
    _check_repeats(measured, candidates, limits.percentile)
    points = _points(measured, candidates, limits, scores, costs({c.network for c in candidates}))
    fitting = [p for p in points if p.miou is not None and p.times.percentile(limits.percentile) <= limits.available]
    fitting = [p for p in fitting if not limits.broken_on_paper(p.costs)]
    if not fitting or (limits.min_miou is not None and (fitting[0].miou or 0) < limits.min_miou):
        raise refusal(limits, points)
    note = f"timed by {SCRIPT} on {measured.host.get('cpu', 'another machine')}; run it there again to verify"
    return Found(fitting[0], (), points, (note,))


def _points(
    measured: Measurements,
    candidates: Sequence[Candidate],
    limits: Limits,
    scores: Scores,
    costs: Mapping[Network, Mapping[str, float]],
) -> tuple[Point, ...]:
    """The most accurate first, and the faster first among equals; accuracies up to some way beyond the budget."""
    times = {c: measured.samples[c].percentile(limits.percentile) for c in candidates}
    reach = _BEYOND * max(limits.available, min(times.values()))
    points = [
        Point(c, measured.samples[c], scores.miou(c.network) if times[c] <= reach else None, costs[c.network])
        for c in candidates
    ]
    return tuple(sorted(points, key=lambda point: (-(point.miou or 0), times[point.candidate])))


def _check_repeats(measured: Measurements, candidates: Sequence[Candidate], percentile: float) -> None:
    needed = needed_repeats(percentile)
    fewest = min(len(measured.samples[candidate]) for candidate in candidates)
    if fewest < needed:
        raise LithesegError(
            f"{measured.path} has {fewest} repeats, and the {percentile:g}th percentile takes {needed}; run "
            f"`python {SCRIPT} --repeats {needed}` on the target, or ask for a lower --percentile"
        )


def _told(candidates: Iterable[Candidate]) -> str:
    names = [candidate.name for candidate in candidates]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
