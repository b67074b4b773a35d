"""A progress line for commands, and an orderly end on SIGTERM.

Batch systems and containers send SIGTERM: it ends a command like Ctrl-C, with its own exit status.

Usage:
    >>> try:
    ...     with ProgressLine() as line, sigterm_stops():
    ...         work(progress=lambda done, total: line.show(done, total, f"{done} images"))
    ... except KeyboardInterrupt as stop:
    ...     status = stopped(stop, f"with {line.done} images done; the same command goes on")
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich import progress
from rich.console import Console

from litheseg.cli.printing import complain

__all__ = ["ProgressLine", "Terminated", "sigterm_stops", "stopped"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came; it is handled like Ctrl-C."""


@contextmanager
def sigterm_stops() -> Iterator[threading.Event]:
    """Within it SIGTERM raises `Terminated`, and a second one ends the process at once; yields whether it came."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield came
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        came.set()
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


def stopped(stop: KeyboardInterrupt, how_far: str) -> int:
    """Say that the work was stopped; the exit status, as shells count: 128 and the number of the signal."""
    name, number = ("SIGTERM", signal.SIGTERM) if isinstance(stop, Terminated) else ("Ctrl-C", signal.SIGINT)
    return complain(f"stopped by {name}{how_far}", 128 + number)


class ProgressLine:
    """A progress line on standard error, if that is a terminal.

    Attributes:
        done: units of work done.
        total: all units of work; None while unknown.
    """

    def __init__(self) -> None:
        self.done, self.total = 0, None  # type: tuple[int, int | None]
        self._bar = progress.Progress(
            progress.TextColumn("labelling"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[state]}"),
            progress.TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not sys.stderr.isatty(),
            redirect_stdout=False,
        )
        self._task = self._bar.add_task("", total=None, state="loading")

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int | None, *state: str) -> None:
        """Update and show the line with further words; empty ones are left out."""
        self.done, self.total = done, total
        words = ", ".join(filter(None, (f"{done}/{total}" if total else f"{done}", *state)))
        self._bar.update(self._task, completed=done, total=total, state=words)
