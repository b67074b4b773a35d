"""Which width a request gets: the one it names, the widest that fits its budget, or what the load allows.

Three rules, for requests that name no width. The controller holds the target: 95 of 100 answers within it, waiting
included. A request that has waited long gets what still fits into its own time, judged by what each width took here
lately. While the queue is half full everything runs at the narrowest width, so narrowing comes before refusing. With
a fixed width none of them applies. It knows no images and has no clock; it may be used from several threads.

Usage:
    >>> pace = Pace(widths, target_ms=200)
    >>> width = pace.choose(Ask(budget_ms=80), waited_ms=12, crowded=False)
    >>> pace.observe(Ask(budget_ms=80), width, waited_ms=12, work_ms=31)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from litheseg.runtime.controller import Controller

__all__ = ["Ask", "Pace", "Timing"]

_KEPT = 256  # latest requests of a width
_LOADS = 64  # latest requests of all widths


@dataclass(frozen=True)
class Ask:
    """What a request says of its width: at most one of the two.

    Attributes:
        width: this one, whatever the load.
        budget_ms: the widest that answers within so many milliseconds, waiting included; the narrowest if none does.
    """

    width: float | None = None
    budget_ms: float | None = None


@dataclass(frozen=True)
class Timing:
    """Milliseconds of work (decoding, network, encoding; no waiting) over the latest requests at one width."""

    p50: float
    p95: float
    count: int


class Pace:
    """Chooses widths and remembers what they cost.

    Args:
        widths: to choose from, widest first.
        target_ms: as in `ServerSettings`.
        fixed: the width of requests that name none; None to choose by the target.
    """

    def __init__(self, widths: Iterable[float], *, target_ms: float, fixed: float | None = None) -> None:
        self.widths = tuple(widths)
        self.target_ms, self.fixed = target_ms, fixed
        self._controller = Controller(self.widths, target_ms=target_ms)
        self._recent: dict[float, deque[float]] = {width: deque(maxlen=_KEPT) for width in self.widths}
        self._costs: dict[float, float] = {}  # milliseconds, when measured
        self._loads: deque[float] = deque(maxlen=_LOADS)  # what requests took lately, as multiples of these costs
        self._load = 1.0
        self._lock = threading.Lock()

    @property
    def width(self) -> float:
        """What a request gets that names nothing and waits for nobody."""
        return self._controller.width if self.fixed is None else self.fixed

    def measured(self, milliseconds: Mapping[float, Iterable[float]]) -> None:
        """Take note of what every width took before the first request; the controller starts from it."""
        with self._lock:
            for width, values in milliseconds.items():
                self._recent[width].extend(values)
            self._costs = {width: float(np.median(self._recent[width])) for width in self.widths}
            self._controller = Controller(self.widths, target_ms=self.target_ms, costs=self._costs)

    def choose(self, ask: Ask, *, waited_ms: float, crowded: bool) -> float:
        """The width of a request whose turn has come.

        Args:
            ask: what it says.
            waited_ms: that it spent in the queue.
            crowded: whether the queue is half full.
        """
        if ask.width is not None:
            return ask.width
        if self.fixed is not None and ask.budget_ms is None:
            return self.fixed
        if crowded:
            return self.widths[-1]
        limit = ask.budget_ms if ask.budget_ms is not None else self.target_ms
        widest = max(self.widths) if ask.budget_ms is not None else self.width
        fitting = (w for w in self.widths if w <= widest and waited_ms + self._expected(w) <= limit)
        return next(fitting, self.widths[-1])

    def observe(self, ask: Ask, width: float, *, waited_ms: float, work_ms: float) -> None:
        """Take note of an answered request."""
        with self._lock:
            self._recent[width].append(work_ms)
            if self._costs:
                self._loads.append(work_ms / self._costs[width])
                self._load = float(np.percentile(self._loads, 95))
            if ask == Ask() and self.fixed is None:
                # Where the queue forced another width, what the present one would have taken: else the controller,
                # which sees that all is in time, would leave it to the queue to stay long.
                present = self._controller.width
                relative = self._costs[present] / self._costs[width] if self._costs else 1.0
                self._controller.observe(waited_ms + relative * work_ms)

    def timing(self, width: float) -> Timing | None:
        """What a width took lately; None before it was measured."""
        with self._lock:
            values = np.array(self._recent[width])
        if not len(values):
            return None
        p50, p95 = np.percentile(values, [50, 95])
        return Timing(float(p50), float(p95), len(values))

    def _expected(self, width: float) -> float:
        """Milliseconds that it should stay below, mostly; a width that nobody used lately shares the others' load."""
        return self._costs.get(width, 0.0) * self._load
