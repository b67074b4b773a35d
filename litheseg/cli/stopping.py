"""An orderly end of commands on SIGTERM.

Batch systems and containers send SIGTERM: it ends a command like Ctrl-C, with its own exit status.

Usage:
    >>> try:
    ...     with sigterm_stops():
    ...         result = pseudo_label("model.safetensors", "photos", "labelled")
    ... except KeyboardInterrupt as stop:
    ...     status = stopped(stop, "; the same command goes on")
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from litheseg.cli.printing import complain

__all__ = ["Terminated", "sigterm_stops", "stopped"]


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
