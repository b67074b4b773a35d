"""Choose the width of the next frame so that a percentile of the latencies stays below a target.

The controller takes milliseconds and returns a width; its caller (a video loop, a server) measures them. The model is
time = load x cost: the load is what else the machine does and is common to all widths; the cost ratio of two widths is
measured at each change between them.

* It narrows when a window of frames can no longer hold the percentile: with 95% of 80 frames, at the fifth one over the
  target. Three frames in a row far over it are enough. It goes to the widest width that should fit.
* It widens, one step, when half a window at this width, times what the step costs, leaves a margin.
* A width that proved too slow is not tried again for some windows, twice as many after each failure, unless the load
  has dropped since. A measured cost decays slowly, so that a wrong measurement does not last.

It is not thread-safe.

Usage:
    >>> controller = Controller(predictor.widths, target_ms=20)
    >>> predictor.set_width(controller.observe(milliseconds))  # after every frame
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median

from litheseg.errors import LithesegError, WidthError
from litheseg.values import check_width

__all__ = ["Controller", "Decision"]

_log = logging.getLogger(__name__)

_LEAST_WINDOW = 20  # frames
_SPARED = 4  # frames of a window that may be over the target
_HEAVY = 1.5  # times the target
_IN_A_ROW = 3  # heavy frames that are enough
_SAMPLE = 8  # frames from which the cost of a width is known
_BACK_OFF = 2  # windows, after a first failure
_MAX_BACK_OFF = 256  # windows
_PROVED = 4  # windows after which a width's failures are forgotten
_FORGET = 64  # windows until half of what a measured cost exceeds a hopeful guess by is forgotten
_RELIEF = 0.7  # of the load at which a width failed: below it, it may be tried at once
_KEPT = 1000  # decisions


@dataclass(frozen=True)
class Decision:
    """One change of width.

    Attributes:
        frame: frames observed until then, that one included.
        when: `now` as `observe` was given it.
        before: the width left.
        after: the width chosen.
        why: in words, with the numbers that decided.
    """

    frame: int
    when: float | None
    before: float
    after: float
    why: str


@dataclass
class _Step:
    """How much slower a width is than the next narrower one.

    The ratio lies between 1 and the square of the widths' ratio: what is measured beyond that was the load.
    """

    extent: float  # wider / narrower width, > 1
    ratio: float | None = None  # of the milliseconds; None while not measured
    alone: bool = False  # whether this step was measured, and not only several at once
    frame: int = 0  # when

    def likely(self) -> float:
        """As measured, or in proportion to the width."""
        return self.extent if self.ratio is None else self.ratio

    def hopeful(self, remembered: float) -> float:
        """Optimistic ratio, so that widening is tried; `remembered` in [0, 1] is the weight of the measured one."""
        least = min(self.likely(), math.sqrt(self.extent))
        return float(least * (self.likely() / least) ** remembered) if self.alone else least

    def learn(self, ratio: float, alone: bool, frame: int) -> None:
        """Average a measured ratio with what was measured before."""
        ratio = min(max(ratio, 1.0), self.extent**2)
        self.ratio = ratio if self.ratio is None or alone > self.alone else math.sqrt(self.ratio * ratio)
        self.alone, self.frame = self.alone or alone, frame


@dataclass
class _Failures:
    """Failures of a width: how many in a row, the frame until which it is not tried, the load at the last one."""

    count: int = 0
    retry: int = 0
    load: float = 0.0


class Controller:
    """Holds a latency or a frame rate by moving the width.

    Args:
        widths: to choose from.
        target_ms: what the percentile of the latencies is to stay below, in milliseconds.
        target_fps: the same as frames per second; give one of the two.
        percentile: in [50, 100).
        window: frames that are looked at; None for as many as let the percentile spare four, 20 at least (80 for 95).
        margin: share of the target that must be left over before it widens, in [0, 1).
        start: the first width; None for the widest, or the widest that fits by `costs`.
        costs: milliseconds of every width, measured beforehand; without them they are learned as widths come into use.

    Raises:
        LithesegError: not exactly one target, or a value out of range.
        WidthError: no widths, one outside (0, 1], or a start that is not among them.
    """

    def __init__(
        self,
        widths: Iterable[float],
        *,
        target_ms: float | None = None,
        target_fps: float | None = None,
        percentile: float = 95,
        window: int | None = None,
        margin: float = 0.1,
        start: float | None = None,
        costs: Mapping[float, float] | None = None,
    ) -> None:
        self.widths = tuple(sorted({check_width(width) for width in widths}, reverse=True))
        if not self.widths:
            raise WidthError("no widths to choose from; give at least one")
        self.target_ms = _target(target_ms, target_fps)
        _check(percentile, window, margin)
        self._window = window or max(_LEAST_WINDOW, math.ceil(round(_SPARED / (1 - percentile / 100), 6)))
        self._spared = self._window - math.ceil(round(percentile / 100 * self._window, 6))
        self._fitting = (1 - margin) * self.target_ms
        self._failures = {width: _Failures() for width in self.widths}
        self._steps = _steps(self.widths, costs)
        self._width = self._start(start, costs)
        self._recent: deque[float] = deque(maxlen=self._window)
        self._decisions: deque[Decision] = deque(maxlen=_KEPT)
        self._frame = self._since = 0  # frames in all, and since the last change
        self._before: tuple[float, float] | None = None  # the width left, and what a frame took then

    @property
    def width(self) -> float:
        """The width for the next frame."""
        return self._width

    @property
    def decisions(self) -> Sequence[Decision]:
        """The latest 1000 changes, oldest first."""
        return tuple(self._decisions)

    @property
    def latency_ms(self) -> float | None:
        """The percentile over the frames since the last change, at most a window of them; None before the first."""
        if not self._recent:
            return None
        spared = self._spared * len(self._recent) // self._window
        return sorted(self._recent)[len(self._recent) - 1 - spared]

    @property
    def overloaded(self) -> bool:
        """Whether even the narrowest width is too slow."""
        return self._width == self.widths[-1] and self._too_slow() is not None

    def observe(self, milliseconds: float, now: float | None = None, *, width: float | None = None) -> float:
        """Record a frame's time and choose the next width.

        Args:
            milliseconds: that it took.
            now: time of it, for `decisions` only; any unit.
            width: that it ran at, where several frames are under way at once: one of another width than the present
                one is left out. None for the present one.

        Returns:
            The width for the next frame.

        Raises:
            LithesegError: a time that is negative or not finite.
        """
        if not (math.isfinite(milliseconds) and milliseconds >= 0):
            raise LithesegError(f"a frame of {milliseconds} ms; give a time that is finite and not negative")
        self._frame += 1
        if width is not None and width != self._width:
            return self._width
        self._since += 1
        if self._since == 1:  # it fills caches, and what it takes says nothing about the next one
            return self._width
        self._recent.append(milliseconds)
        if len(self._recent) == _SAMPLE:
            self._learn()
        if (why := self._too_slow()) is not None:
            self._narrow(why, now)
        elif 2 * len(self._recent) >= self._window:
            self._widen(now)
        return self._width

    def _too_slow(self) -> str | None:
        """Why this width is; None if it is not, or not yet known to be."""
        if self._heavy():
            least = min(self._latest(_IN_A_ROW))
            return f"{_IN_A_ROW} frames in a row of {least:.1f} ms or more, target {self.target_ms:.1f}"
        overs = sum(value > self.target_ms for value in self._recent)
        if overs > self._spared:
            return f"{overs} of {len(self._recent)} frames took more than {self.target_ms:.1f} ms"
        return None

    def _narrow(self, why: str, now: float | None) -> None:
        self._learn()
        narrower = [width for width in self.widths if width < self._width]
        if not narrower:
            return
        load, failures = self._load(), self._failures[self._width]
        failures.count = 1 if load < _RELIEF * failures.load else failures.count + 1
        failures.load = load
        failures.retry = self._frame + self._window * min(_BACK_OFF << (failures.count - 1), _MAX_BACK_OFF)
        # What the latest frames ask for: rare slow ones alone are a reason for one step only.
        load = max(load, median(self._latest(_SAMPLE)) / self._cost(self._width))
        self._change(next((w for w in narrower if load * self._cost(w) <= self._fitting), narrower[-1]), why, now)

    def _widen(self, now: float | None) -> None:
        if self._since >= _PROVED * self._window:
            self._failures[self._width].count = 0
        wider = [width for width in self.widths if width > self._width]
        if not wider or self.latency_ms is None:
            return
        width, step, failures = wider[-1], self._steps[wider[-1]], self._failures[wider[-1]]
        expected = self.latency_ms * step.hopeful(0.5 ** ((self._frame - step.frame) / (_FORGET * self._window)))
        eased = self._frame >= failures.retry or self._load() < _RELIEF * failures.load
        if expected <= self._fitting and (eased or not failures.count):
            why = f"{self.latency_ms:.1f} ms should become {expected:.1f}, target {self.target_ms:.1f}"
            self._change(width, why, now)

    def _change(self, width: float, why: str, now: float | None) -> None:
        decision = Decision(self._frame, now, self._width, width, why)
        _log.info("frame %d: width %g -> %g: %s", decision.frame, decision.before, width, why)
        self._decisions.append(decision)
        self._before = (self._width, self._typical())
        self._width, self._since = width, 0
        self._recent.clear()

    def _learn(self) -> None:
        """Compare this width to the one before, once per change, with what was seen so far."""
        if self._before is None or not self._recent:
            return
        (other, then), self._before = self._before, None
        now, wide, narrow = self._typical(), max(other, self._width), min(other, self._width)
        ratio = max(now, 1e-9) / max(then, 1e-9) if self._width > other else max(then, 1e-9) / max(now, 1e-9)
        crossed = [width for width in self.widths if narrow < width <= wide]
        # Of a change by several steps only the product is known: each is corrected alike.
        correction = (ratio * self._cost(narrow) / self._cost(wide)) ** (1 / len(crossed))
        for width in crossed:
            self._steps[width].learn(self._steps[width].likely() * correction, len(crossed) == 1, self._frame)

    def _cost(self, width: float) -> float:
        """What a frame takes at a width, as a multiple of the narrowest one's time."""
        return math.prod(step.likely() for wider, step in self._steps.items() if wider <= width)

    def _load(self) -> float:
        return self._typical() / self._cost(self._width)

    def _typical(self) -> float:
        """What a frame takes now: the median, or the latest frames where the load has just risen."""
        return min(self._latest(_IN_A_ROW)) if self._heavy() else median(self._recent)

    def _heavy(self) -> bool:
        return len(self._recent) >= _IN_A_ROW and min(self._latest(_IN_A_ROW)) > _HEAVY * self.target_ms

    def _latest(self, count: int) -> list[float]:
        return list(islice(reversed(self._recent), count))

    def _start(self, start: float | None, costs: Mapping[float, float] | None) -> float:
        if start is not None and start not in self.widths:
            raise WidthError(f"no width {start:g} to start with; available: {', '.join(f'{w:g}' for w in self.widths)}")
        fitting = (width for width in self.widths if not costs or costs[width] <= self._fitting)
        return start if start is not None else next(fitting, self.widths[-1])


def _steps(widths: Sequence[float], costs: Mapping[float, float] | None) -> dict[float, _Step]:
    """By the wider of the two widths."""
    steps = {wide: _Step(wide / narrow) for wide, narrow in pairwise(widths)}
    if not costs:
        return steps
    if not all(width in costs and math.isfinite(costs[width]) and costs[width] > 0 for width in widths):
        raise LithesegError(f"costs {dict(costs)}: give a positive time for each of the widths {list(widths)}")
    for wide, narrow in pairwise(widths):
        steps[wide].learn(costs[wide] / costs[narrow], True, 0)
    return steps


def _target(target_ms: float | None, target_fps: float | None) -> float:
    if (target_ms is None) == (target_fps is None):
        raise LithesegError("give a target in milliseconds or in frames per second, and only one of them")
    value = target_ms if target_ms is not None else target_fps
    if value is None or not (math.isfinite(value) and value > 0):
        raise LithesegError(f"target {value} is not positive and finite")
    return value if target_ms is not None else 1000 / value


def _check(percentile: float, window: int | None, margin: float) -> None:
    if not 50 <= percentile < 100:
        raise LithesegError(f"percentile {percentile} is outside [50, 100); 95 is usual")
    if window is not None and window < _LEAST_WINDOW:
        raise LithesegError(f"a window of {window} frames says too little; give {_LEAST_WINDOW} or more")
    if not 0 <= margin < 1:
        raise LithesegError(f"margin {margin} is outside [0, 1); 0.1 is usual")
