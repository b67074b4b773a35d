"""Latencies: what they are of (the network alone, or end to end), and what timings allow to be said of a percentile.

Latencies have long tails that no normal distribution describes, so nothing here assumes one. "The 95th percentile is
within the budget" says that a pass exceeds the budget with a probability of at most 5 %: how many passes did is then
binomial, and the tests are exact. They take passes for independent, which neighbours in time are not quite: levels are
chosen accordingly small.

It does not know candidates, clocks or budgets' names.

Usage:
    >>> times = Latency(Scope.END_TO_END, [9.8, 10.1, 10.0, 14.2])
    >>> times.percentile(50), times.clearly_above(budget=9.0, percentile=95)
    (10.05, False)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from litheseg.errors import LithesegError

__all__ = ["Latency", "Scope", "check_percentile", "needed_repeats"]

_CONFIDENCE = 0.95
_CLEARLY = 1e-4  # of the tests that drop something: a thousand candidates may be tested


class Scope(StrEnum):
    """What a latency is of. The first three are the stages of `litheseg.runtime.pipeline`, the last is all of them."""

    PREPARE = "prepare"
    NETWORK = "network"
    LABELS = "labels"
    END_TO_END = "end to end"


@dataclass
class Latency:
    """Milliseconds of one thing, as often as it was timed so far.

    Attributes:
        scope: of what they are; numbers of different scopes must not be compared.
        ms: in the order measured.
    """

    scope: Scope
    ms: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ms)

    def add(self, more: Sequence[float]) -> None:
        """Measured since."""
        self.ms.extend(more)

    def percentile(self, percentile: float) -> float:
        """Linearly interpolated; infinite without samples."""
        if not self.ms:
            return math.inf
        ordered, place = sorted(self.ms), (len(self.ms) - 1) * percentile / 100
        below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
        return below + (above - below) * (place - math.floor(place))  # as NumPy, but fast for a few values

    def clearly_above(self, budget: float, percentile: float) -> bool:
        """Whether so many passes exceed the budget that the percentile cannot be within it (level 0.0001)."""
        exceed = sum(value > budget for value in self.ms)
        return _chance(exceed, len(self.ms), 1 - percentile / 100) < _CLEARLY

    def upper_bound(self, percentile: float) -> float | None:
        """Below which the percentile lies with 95 % confidence; None where there are too few samples to say.

        The k-th smallest of n samples is such a bound if fewer than k of n passes lie below the percentile with a
        probability of at least 95 %.
        """
        rank = _quantile(_CONFIDENCE, len(self.ms), percentile / 100) + 1
        return sorted(self.ms)[rank - 1] if rank <= len(self.ms) else None

    def to_dict(self, percentile: float) -> dict[str, Any]:
        """Scope and percentiles, rounded to microseconds."""
        shown = {f"p{name:g}_ms": round(self.percentile(name), 3) for name in sorted({50, 95, 99, percentile})}
        bound = self.upper_bound(percentile)
        return {
            "scope": str(self.scope),
            **shown,
            "upper_bound_ms": None if bound is None else round(bound, 3),
            "repeats": len(self),
        }


def needed_repeats(percentile: float) -> int:
    """Timed passes from which a percentile, and a bound of it with 95 % confidence, can be told: 59 for the 95th."""
    return max(20, math.ceil(math.log(1 - _CONFIDENCE) / math.log(percentile / 100)))


@lru_cache(maxsize=4096)
def _chance(exceed: int, repeats: int, share: float) -> float:
    """Of at least `exceed` in so many repeats, each with a probability of `share`."""
    return math.fsum(_binomial(count, repeats, share) for count in range(exceed, repeats + 1))


@lru_cache(maxsize=4096)
def _quantile(confidence: float, repeats: int, share: float) -> int:
    """The smallest count that is not exceeded with at least this probability."""
    below = 0.0
    for count in range(repeats):
        below += _binomial(count, repeats, share)
        if below >= confidence:
            return count
    return repeats


def _binomial(count: int, repeats: int, share: float) -> float:
    """The probability of so many in so many repeats, each with a probability of `share`."""
    ways = math.lgamma(repeats + 1) - math.lgamma(count + 1) - math.lgamma(repeats - count + 1)
    return math.exp(ways + count * math.log(share) + (repeats - count) * math.log1p(-share))


def check_percentile(percentile: float) -> float:
    """`percentile` where it is in [50, 99.9].

    Raises:
        LithesegError: it is not.
    """
    if not 50 <= percentile <= 99.9:
        raise LithesegError(f"percentile {percentile:g} is outside [50, 99.9]; 95 is usual, 99 takes 5 times as long")
    return float(percentile)
