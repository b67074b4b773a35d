"""Share one budget among several cameras: each gets the widest width with which all of them together hold it.

The budget is that of a round, one frame of every camera. What cameras may get is a ladder of allocations, from the
narrowest width for all to the widest for all; each rung widens one camera by one step: the one whose next width,
divided by its priority, is the smallest (of equals the one of higher priority, then the first). So nobody is widened
while another, as important, is further behind (max-min fairness), and a camera of priority 2 runs about twice as wide
as one of priority 1 until it has all. The `Controller` that moves the width of one camera moves along the ladder, with
all that it knows of load, costs and failures; it sees the time of whole rounds.

Cameras whose frames cost more than others' are not given less for it: fairness is in widths, not in time.

Usage:
    >>> shared = SharedController(predictor.widths, 3, target_ms=100, priorities=(2, 1, 1))
    >>> shared.widths
    (1.0, 1.0, 1.0)
    >>> shared.observe({0: 41.0, 1: 38.5, 2: 40.2})  # milliseconds of each camera's frame in a round
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from litheseg.errors import LithesegError, WidthError
from litheseg.runtime.controller import Controller, Decision
from litheseg.values import check_width

__all__ = ["SharedController", "allocations"]


def allocations(widths: Iterable[float], priorities: Sequence[float]) -> list[tuple[float, ...]]:
    """The ladder: widths of all cameras, from the narrowest for all to the widest for all.

    Args:
        widths: to choose from.
        priorities: of each camera, above 0.

    Raises:
        WidthError: no widths, or one outside (0, 1].
        LithesegError: no cameras, or a priority that is not above 0.
    """
    steps = sorted({check_width(width) for width in widths})
    if not steps:
        raise WidthError("no widths to choose from; give at least one")
    if not priorities or not all(math.isfinite(priority) and priority > 0 for priority in priorities):
        raise LithesegError(f"priorities {tuple(priorities)}: give a number above 0 for each camera")
    taken = [0] * len(priorities)
    ladder = [tuple(steps[step] for step in taken)]
    while below := [camera for camera, step in enumerate(taken) if step + 1 < len(steps)]:
        camera = min(below, key=lambda one: (steps[taken[one] + 1] / priorities[one], -priorities[one], one))
        taken[camera] += 1
        ladder.append(tuple(steps[step] for step in taken))
    return ladder


class SharedController:
    """Holds a latency or a frame rate of several cameras by moving their widths; of one, as `Controller`.

    Args:
        widths: to choose from.
        cameras: how many there are.
        priorities: of each; None for all alike.
        start: the width that none exceeds at first; None for the widest.
        **target: of `Controller`: `target_ms` of a round, or `target_fps` of every camera; `percentile`, `window`, ....

    Attributes:
        target_ms: of a round.

    Raises:
        LithesegError: as `Controller`, or another number of priorities than of cameras.
        WidthError: likewise, or a start below the narrowest width.
    """

    def __init__(
        self,
        widths: Iterable[float],
        cameras: int,
        *,
        priorities: Sequence[float] | None = None,
        start: float | None = None,
        **target: Any,
    ) -> None:
        self._offered, self._target = tuple(widths), target
        self._priorities = tuple(priorities) if priorities is not None else (1.0,) * cameras
        if len(self._priorities) != cameras:
            raise LithesegError(f"{len(self._priorities)} priorities for {cameras} cameras; give one for each")
        self._active, self._ended = tuple(range(cameras)), list[Decision]()
        self._times: dict[int, float] = {}
        self._narrowest = min(self._offered, default=0.0)
        first = max(self._offered, default=1.0) if start is None else start
        self._open((first,) * cameras)
        self.target_ms = self._controller.target_ms

    @property
    def widths(self) -> tuple[float, ...]:
        """The width of each camera's next frame; of one that has ended the narrowest."""
        current = dict(zip(self._active, self._rungs[self._controller.width], strict=True))
        return tuple(current.get(camera, self._narrowest) for camera in range(len(self._priorities)))

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The latest changes, oldest first; of several cameras, widths are means over them."""
        return (*self._ended, *self._controller.decisions)

    @property
    def overloaded(self) -> bool:
        """Whether even the narrowest width for all is too slow."""
        return self._controller.overloaded

    def observe(self, times: Mapping[int, float], now: float | None = None) -> tuple[float, ...]:
        """Record a round and choose the widths of the next one.

        Args:
            times: milliseconds of the cameras' frames, by camera. One that had no frame is taken to need what its last
                one took: it may have another at any time.
            now: time of it, for `decisions` only; any unit.

        Returns:
            The width of each camera's next frame.

        Raises:
            LithesegError: a time that is negative or not finite.
        """
        self._times.update((camera, took) for camera, took in times.items() if camera in self._active)
        if self._times:
            self._controller.observe(self.round_ms, now)
        return self.widths

    @property
    def round_ms(self) -> float:
        """Milliseconds of the latest round: what the latest frame of each camera took, together."""
        return sum(self._times.values())

    def end(self, camera: int) -> None:
        """Leave out a camera that gives no more frames; the others share what it had."""
        if camera not in self._active or len(self._active) == 1:
            return
        before = self.widths
        self._ended += self._controller.decisions
        self._active = tuple(other for other in self._active if other != camera)
        self._times.pop(camera, None)
        self._open(tuple(before[other] for other in self._active))

    def _open(self, most: Sequence[float]) -> None:
        """Begin at the highest rung on which no camera is wider than given."""
        ladder = allocations(self._offered, [self._priorities[camera] for camera in self._active])
        self._rungs = {sum(rung) / len(rung): rung for rung in ladder}
        fitting = [mean for mean, rung in self._rungs.items() if all(w <= m for w, m in zip(rung, most, strict=True))]
        if not fitting:
            raise WidthError(f"no width {most[0]:g} to start with; the narrowest is {self._narrowest:g}")
        self._controller = Controller(self._rungs, start=max(fitting), **self._target)
