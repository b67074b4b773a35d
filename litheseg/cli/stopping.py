"""SIGTERM, as batch systems and containers send it, ends a command in order: like Ctrl-C, and with a status of its own.

Usage:
    >>> try:
    ...     with sigterm_stops():
    ...         work()
    ... except KeyboardInterrupt as stop:
    ...     status = complain(f"stopped by {stopped_by(stop)}", stop_status(stop))
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "sigterm_stops", "stop_status", "stopped_by"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever tidies up after Ctrl-C does so now."""

    def __init__(self) -> None:
        super().__init__("SIGTERM")


@contextmanager
def sigterm_stops() -> Iterator[threading.Event]:
    """Within it SIGTERM raises `Terminated`, and a second one ends the process at once; yields whether it came."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are not its business
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


def stopped_by(stop: KeyboardInterrupt) -> str:
    """What to call it."""
    return str(stop) or "Ctrl-C"


def stop_status(stop: KeyboardInterrupt) -> int:
    """The exit status, as shells count: 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
