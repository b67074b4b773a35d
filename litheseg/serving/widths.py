"""Which width a request gets: the one that it names, the widest that fits its time budget, or what the load allows.

For requests that name neither, the controller holds the target: 95 of 100 answers within it, waiting included. A
request that has waited long gets the width that still fits into its time, by the latest times of each width. While
the queue is half full, everything runs at the narrowest width, so narrowing comes before refusing. With a fixed width
none of this applies.

Usage:
    >>> chooser = WidthChooser((1.0, 0.5), target_ms=200)
    >>> width = chooser.choose(WidthRequest(budget_ms=80), waited_ms=12, crowded=False)
    >>> chooser.observe(WidthRequest(budget_ms=80), width, waited_ms=12, work_ms=31)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from litheseg.runtime.controller import Controller

__all__ = ["WidthChooser", "WidthRequest", "WidthTiming"]

_RECENT_OF_WIDTH = 256  # requests over which a width's times are taken
_RECENT = 64  # requests over which the load is taken


@dataclass(frozen=True)
class WidthRequest:
    """What a request says of its width: at most one of the two.

    Attributes:
        width: this one, whatever the load.
        budget_ms: the widest that answers within so many milliseconds, waiting included; the narrowest if none does.
    """

    width: float | None = None
    budget_ms: float | None = None


@dataclass(frozen=True)
class WidthTiming:
    """Milliseconds of work (decoding, network, encoding; no waiting) over the latest requests at one width."""

    p50: float
    p95: float
    count: int


class WidthChooser:
    """Chooses the width of each request, and remembers what each width took; usable from several threads.

    Args:
        widths: to choose from, widest first.
        target_ms: that 95 of 100 answers are to stay below, waiting included.
        fixed: the width of requests that name none; None to choose by the target.
    """

    def __init__(self, widths: Iterable[float], *, target_ms: float, fixed: float | None = None) -> None:
        self.widths = tuple(widths)
        self.target_ms, self.fixed = target_ms, fixed
        self._controller = Controller(self.widths, target_ms=target_ms)
        self._recent: dict[float, deque[float]] = {width: deque(maxlen=_RECENT_OF_WIDTH) for width in self.widths}
        self._costs: dict[float, float] = {}  # milliseconds by width, as measured before the first request
        self._loads: deque[float] = deque(maxlen=_RECENT)  # what requests took, as multiples of these costs
        self._load = 1.0
        self._lock = threading.Lock()

    @property
    def width(self) -> float:
        """What a request gets now that names nothing and did not wait."""
        return self._controller.width if self.fixed is None else self.fixed

    def start_from(self, milliseconds: Mapping[float, Iterable[float]]) -> None:
        """Take what every width took before the first request as the costs that the controller starts from."""
        with self._lock:
            for width, values in milliseconds.items():
                self._recent[width].extend(values)
            self._costs = {width: float(np.median(self._recent[width])) for width in self.widths}
            self._controller = Controller(self.widths, target_ms=self.target_ms, costs=self._costs)

    def choose(self, request: WidthRequest, *, waited_ms: float, crowded: bool) -> float:
        """The width of a request that waited so long in the queue; `crowded`: whether the queue is half full."""
        if request.width is not None:
            return request.width
        if self.fixed is not None and request.budget_ms is None:
            return self.fixed
        if crowded:
            return self.widths[-1]
        limit, widest = self.target_ms, self.width
        if request.budget_ms is not None:
            limit, widest = request.budget_ms, self.widths[0]
        fitting = (w for w in self.widths if w <= widest and waited_ms + self._costs.get(w, 0.0) * self._load <= limit)
        return next(fitting, self.widths[-1])

    def observe(self, request: WidthRequest, width: float, *, waited_ms: float, work_ms: float) -> None:
        """Take note of an answered request."""
        with self._lock:
            self._recent[width].append(work_ms)
            if self._costs:
                self._loads.append(work_ms / self._costs[width])
                self._load = float(np.percentile(self._loads, 95))
            if request == WidthRequest() and self.fixed is None:
                # Where the queue forced another width, the controller gets what the present one would have taken:
                # it would otherwise see that all is in time, and leave the queue long.
                present = self._controller.width
                relative = self._costs[present] / self._costs[width] if self._costs else 1.0
                self._controller.observe(waited_ms + relative * work_ms)

    def timing(self, width: float) -> WidthTiming | None:
        """What a width took lately; None before it was measured."""
        with self._lock:
            values = np.array(self._recent[width])
        if not len(values):
            return None
        p50, p95 = np.percentile(values, [50, 95])
        return WidthTiming(float(p50), float(p95), len(values))
