"""How few layers must stay in floating point: more and more of them until it holds, then back to the fewest.

From a ranking, the first 1, 2, 4, ... layers are kept until the result holds; then bisection between the last number
that failed and the first that held. Every number is tried for real: the ranking gives the order only. Bisection takes
it that keeping more layers does not make the result worse; where it does, what is found holds, but fewer might too.

It does not know what a layer is, how a trial is made, or what it means to hold.

Usage:
    >>> trials = search(ranking, lambda kept: quantize_and_check(kept), limit=len(ranking) // 2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Trial", "search"]


LayerT = TypeVar("LayerT")


class Trial(Protocol):
    """What came of one attempt."""

    @property
    def holds(self) -> bool:
        """Whether the result is accepted."""


TrialT = TypeVar("TrialT", bound=Trial)


def search(layers: Sequence[LayerT], attempt: Callable[[Sequence[LayerT]], TrialT], *, limit: int) -> dict[int, TrialT]:
    """Find the shortest beginning of a ranking that, kept in floating point, makes the result hold.

    That it does not hold with none kept is taken as known.

    Args:
        layers: the most important to keep first.
        attempt: makes and judges a result with these layers kept.
        limit: keep at most so many, >= 0.

    Returns:
        All trials by the number of layers kept, in the order in which they were made. The answer is the smallest number
        that holds; if none does, there is no answer.
    """
    trials: dict[int, TrialT] = {}

    def holds(count: int) -> bool:
        trials[count] = attempt(layers[:count])
        return trials[count].holds

    limit = min(limit, len(layers))
    low, high = 0, min(1, limit)
    while high > low and not holds(high):
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return trials
