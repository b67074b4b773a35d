"""What is going on, how far it is and how long it takes: one display, on standard error, for all that takes time.

Functions say what they do with `stage`, `work`, `track` and `say`; nothing of it is visible until a command, or a
notebook, asks for it with `shown`. A terminal has a bar; a pipe or file has the same words as lines: one after two
seconds, then one every ten seconds (of long work less often), and one at the end. Work of less than two seconds is not
worth a line.

Usage:
    >>> with shown():
    ...     with stage(2, 7, "training", after=120.0):
    ...         with work("steps", 400) as steps:
    ...             for step in range(400):
    ...                 steps.advance(1, f"loss {1 / (step + 1):.3f}")
    ...         for name in track(["a.png", "b.png"], "images"):
    ...             say(f"{name} has no road")
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from litheseg.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = ["Work", "duration", "say", "shown", "stage", "track", "work"]

_FIRST = 2.0  # seconds; what takes less has no line
_EVERY = 10.0  # seconds between lines of the same work
_SHARE = 30  # of long work: lines until now, about
_DRAW = 0.2  # seconds between two looks at it
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Variables in which launchers of distributed runs say which process this is."""
_T = TypeVar("_T")


class Work:
    """Something that takes time; made by `work`.

    Attributes:
        label: what is done.
        done: units of it that are done.
        total: all units; None while unknown.
        state: further words, such as the loss.
        still: whether the display moves only when this says how far it is; see `work`.
    """

    def __init__(self, label: str, total: int | None, after: float | None = None, *, still: bool = False) -> None:
        self.label, self.total, self.done, self.state, self.still = label, total, 0, "", still
        self.begun = time.monotonic()
        self._after, self._free = after, 0

    def advance(self, by: int = 1, *state: str) -> None:
        """So much more is done; `state` replaces the words of before, and empty ones are left out."""
        self.show(self.done + by, self.total, *state, free=self._free)

    def show(self, done: int, total: int | None, *state: str, free: int = 0) -> None:
        """So much is done of so much.

        Args:
            done: units, with those that were done before.
            total: all units; None while unknown.
            *state: further words; empty ones are left out.
            free: of those done, how many took no time, because they were done before.
        """
        self.done, self.total, self._free = done, total, free
        self.state = ", ".join(filter(None, state)) or self.state
        if self.still and _display is not None:
            _display.refresh()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begun

    @property
    def left(self) -> float | None:
        """Seconds until it is done, at the speed of until now; None while nobody knows."""
        paid = self.done - self._free
        return None if self.total is None or paid <= 0 else self.seconds / paid * (self.total - self.done)

    def __str__(self) -> str:
        """As on a line: "steps 120/400, loss 0.31, 3:20 left, 5:20 with all stages"."""
        left = self.left
        words = [self._count(), self.state]
        if left is not None:
            words.append(f"{duration(left)} left")
            words.append("" if self._after is None else f"{duration(left + self._after)} with all stages")
        elif self.seconds >= _EVERY:
            words.append(f"{duration(self.seconds)} so far")
        return ", ".join(filter(None, words))

    def summary(self, ended: str) -> str:
        """As at its end: "steps 400/400, loss 0.27, done in 4:53"."""
        return ", ".join(filter(None, (self._count(), self.state, f"{ended} {duration(self.seconds)}")))

    def _count(self) -> str:
        many = f" {self.done}" if self.done or self.total else ""
        return printable(self.label) + (f"{many}/{self.total}" if self.total else many)


class _Display:
    """Where everything is shown: a terminal's bars, or lines."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.stages: list[float | None] = []  # seconds after each, outermost first
        self._lock, self._over, self._due = threading.RLock(), threading.Event(), 0.0
        self._bars = _bars() if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") else None
        self._drawn, self._stream = 0.0, sys.stderr  # libraries are kept quiet by putting another in its place
        self._tasks: dict[Work, Any] = {}
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    def close(self) -> None:
        self._over.set()
        self._ticker.join()
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        with self._lock:
            line = "  " * len(self.stages) + line
            if self._bars is not None and self.works:
                self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=self._stream, flush=True)

    def begin(self, job: Work) -> None:
        with self._lock:
            self.works.append(job)
            self._due = max(self._due, job.begun + _FIRST)
            if self._bars is not None:
                self._tasks[job] = self._bars.add_task(printable(job.label), work=job, total=None)
                self._bars.start()
                self._bars.refresh()

    def end(self, job: Work, ended: str) -> None:
        with self._lock:
            self.works.remove(job)
            if self._bars is not None:
                self._bars.remove_task(self._tasks.pop(job))
                if not self.works:
                    self._bars.stop()
            if job.seconds >= _FIRST:
                self.say(job.summary(ended))

    def refresh(self) -> None:
        """Draw the bars; or write a line when one is due."""
        with self._lock:
            now = time.monotonic()
            if self._bars is not None:
                if now >= self._drawn + _DRAW:
                    for job, task in self._tasks.items():
                        self._bars.update(task, completed=job.done, total=job.total)
                    self._bars.refresh()
                    self._drawn = time.monotonic()
            elif self.works and now >= self._due:
                self.say(" > ".join(map(str, self.works)))
                self._due = now + max(_EVERY, self.works[0].seconds / _SHARE)

    def _tick(self) -> None:
        while not self._over.wait(_DRAW):
            if self.works and not self.works[-1].still:
                self.refresh()


_display: _Display | None = None


def _forget() -> None:
    """A process that was forked has no ticker, and perhaps a lock that nobody gives back."""
    global _display
    _display = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def shown() -> Iterator[None]:
    """Within it, what functions say is visible, of processes that train together in the first alone.

    Where it is visible already, nothing changes.
    """
    global _display
    if _display is not None or any(os.environ.get(name, "0") != "0" for name in _RANKS):
        yield
        return
    _display = _Display()
    try:
        yield
    finally:
        display, _display = _display, None
        if display is not None:
            display.close()


@contextmanager
def stage(number: int, of: int, name: str, after: float | None = None) -> Iterator[None]:
    """A heading, such as "stage 2 of 7: training", over what happens within it.

    Args:
        number: from 1.
        of: how many stages there are.
        name: what is done.
        after: seconds that the stages after it will take, where that is known.
    """
    heading = f"stage {number} of {of}: {printable(name)}"
    display, begun, ended = _display, time.monotonic(), "stopped after"
    say(heading)
    if display is not None:
        display.stages.append(after)
    try:
        yield
        ended = "done in"
    finally:
        if display is not None:
            display.stages.pop()
            if time.monotonic() - begun >= _FIRST:
                display.say(f"{heading}, {ended} {duration(time.monotonic() - begun)}")


@contextmanager
def work(label: str, total: int | None = None, *, still: bool = False) -> Iterator[Work]:
    """Something that takes time; tell what is yielded how far it is.

    Args:
        label: what is done, in a word or two.
        total: units of it; None while unknown.
        still: the display moves only when it is told something: no thread wakes while things are timed.
    """
    display, after = _display, None
    if display is not None and not display.works and display.stages:
        after = display.stages[-1]
    job, ended = Work(label, total, after, still=still), "stopped after"
    if display is not None:
        display.begin(job)
    try:
        yield job
        ended = "done in"
    finally:
        if display is not None:
            display.end(job, ended)


def track(items: Iterable[_T], label: str, total: int | None = None) -> Iterator[_T]:
    """The items, one after the other; each is done when the next is asked for.

    Args:
        items: what is worked on.
        label: what is done with them.
        total: how many there are; by default their length, if they have one.
    """
    with work(label, len(items) if total is None and isinstance(items, Sized) else total) as job:
        for item in items:
            yield item
            job.advance()


def say(line: str) -> None:
    """A fact, on a line of its own; what a terminal would obey in it is escaped."""
    if _display is not None:
        _display.say(printable(line))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 200 -> "3:20", 3723 -> "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bars() -> Bars:
    """Rich's bars; standard output is left alone, since it may be a result on its way to a file."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        """What lines would say."""

        def render(self, task: Task) -> Text:
            return Text(str(task.fields["work"]))

    words = Words(Column(no_wrap=True, overflow="ellipsis"))
    console = Console(file=sys.stderr)
    return Progress(BarColumn(24), words, console=console, transient=True, auto_refresh=False, redirect_stdout=False)
