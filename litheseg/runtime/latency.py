"""Measure latencies, of the network alone or end to end, and test them against a budget.

End to end means: a uint8 image of the camera's size in, a uint8 mask of that size out, through the `pipeline` that
prediction uses. Pipelines take turns (`litheseg.machine.interleave`); in a turn images follow each other at once or at
a frame rate. Images should look like those in use: in noise every pixel is a border, and labels take far longer.

Latencies have long tails that no normal distribution describes, so nothing here assumes one. "The 95th percentile is
within the budget" means that a pass exceeds the budget with a probability of at most 5 %. The number of passes over it
is then binomial, and the tests are exact. They assume independent passes; neighbours in time are not quite, so the
levels are small.

Usage:
    >>> pipelines = {"narrow": Pipeline(open_engine("exports/street", width=0.25), size=(360, 480))}
    >>> times = measure(pipelines, [image], repeats=90)["narrow"][Scope.END_TO_END]
    >>> times.percentile(95), times.clearly_above(budget=9.0, percentile=95)
    (11.4, True)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np

from litheseg.errors import LithesegError
from litheseg.machine import interleave
from litheseg.masks.image_format import ImageFormat
from litheseg.progress import work
from litheseg.runtime.pipeline import STAGES, Pipeline
from litheseg.streets import render_street

__all__ = ["Latency", "Scope", "Stages", "check_percentile", "measure", "needed_repeats", "street_frames"]

K = TypeVar("K", bound=Hashable)

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
    """Latency samples of one scope, in milliseconds.

    Attributes:
        scope: of what they are; numbers of different scopes must not be compared.
        ms: in the order measured.
    """

    scope: Scope
    ms: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ms)

    def add(self, more: Sequence[float]) -> None:
        """Append new samples."""
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
        return _at_least(exceed, len(self.ms), 1 - percentile / 100) < _CLEARLY

    def upper_bound(self, percentile: float) -> float | None:
        """The bound below which the percentile lies with 95 % confidence; None with too few samples.

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


Stages = Mapping[Scope, Latency]
"""Latencies of one pipeline: of each stage, and of all together as `Scope.END_TO_END`."""


def measure(
    pipelines: Mapping[K, Pipeline],
    images: Sequence[np.ndarray],
    *,
    repeats: int = 60,
    warmup: int = 3,
    fps: float | None = None,
) -> dict[K, Stages]:
    """Time pipelines side by side.

    Args:
        pipelines: by name.
        images: uint8 H x W x 3; each pipeline takes them in turn.
        repeats: timed images of each pipeline, >= 1.
        warmup: untimed images of each, before.
        fps: images a second, as from a camera; None for one after the other.

    Returns:
        By name: milliseconds of every `Scope`.

    Raises:
        LithesegError: numbers out of range.
        DataError: an image that an engine does not take.
    """
    if repeats < 1 or warmup < 0:
        raise LithesegError(f"timing needs repeats >= 1 and warmup >= 0, not {repeats} and {warmup}")
    if fps is not None and not fps > 0:
        raise LithesegError(f"fps is {fps:g}; give images a second, such as 15")
    calls = {
        name: partial(lambda pipeline, frames: pipeline.stages(next(frames)), pipeline, itertools.cycle(images))
        for name, pipeline in pipelines.items()
    }
    with work(f"timing {len(calls)} side by side, {repeats} images each", still=True) as turns:
        times = interleave(calls, repeats, warmup=warmup, fps=fps, timed=lambda call: call(), turned=turns.show)
    return {name: _by_scope(rows) for name, rows in times.items()}


def street_frames(
    size: tuple[int, int],
    count: int = 4,
    images: ImageFormat = ImageFormat(),  # noqa: B008 - frozen
) -> list[np.ndarray]:
    """Stand-ins where there are no images of the camera: rendered street scenes; of other than RGB of 8 bits, noise."""
    if not images.is_rgb8:
        return [images.noise(size, np.random.default_rng(seed)) for seed in range(count)]
    return [np.ascontiguousarray(render_street(np.random.default_rng(seed), size)[0]) for seed in range(count)]


def _by_scope(rows: Sequence[tuple[float, ...]]) -> Stages:
    columns = dict(zip(map(Scope, STAGES), zip(*rows, strict=True), strict=True)) | {
        Scope.END_TO_END: tuple(map(sum, rows))
    }
    return {scope: Latency(scope, list(times)) for scope, times in columns.items()}


def check_percentile(percentile: float) -> float:
    """`percentile` where it is in [50, 99.9].

    Raises:
        LithesegError: it is not.
    """
    if not 50 <= percentile <= 99.9:
        raise LithesegError(f"percentile {percentile:g} is outside [50, 99.9]; 95 is usual, 99 takes 5 times as long")
    return float(percentile)


def needed_repeats(percentile: float) -> int:
    """Timed passes from which a percentile, and a bound of it with 95 % confidence, can be stated: 59 for the 95th."""
    return max(20, math.ceil(math.log(1 - _CONFIDENCE) / math.log(percentile / 100)))


@lru_cache(maxsize=4096)
def _at_least(exceed: int, repeats: int, share: float) -> float:
    """The probability of at least `exceed` in so many repeats, each with a probability of `share`."""
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
    orders = math.lgamma(repeats + 1) - math.lgamma(count + 1) - math.lgamma(repeats - count + 1)
    return math.exp(orders + count * math.log(share) + (repeats - count) * math.log1p(-share))
