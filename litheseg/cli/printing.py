"""Output of commands: tables and JSON on standard output, errors in one line on standard error.

Output may hold names from untrusted files: control characters are escaped (`printable`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litheseg.errors import printable
from litheseg.tables import terminal_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "complain",
    "complain_of",
    "console",
    "print_json",
    "print_next",
    "print_table",
    "print_warnings",
    "show",
]

_WIDEST = 1000  # characters


def print_table(table: Any, title: str | None = None) -> None:
    """A table as wide as the terminal allows, and as it needs elsewhere: a file has the same numbers."""
    from rich.console import Console

    wide = Console() if sys.stdout.isatty() else Console(width=_WIDEST)
    wide.print(terminal_table(table, title))


def print_json(content: Any) -> None:
    """Indented, on standard output; ASCII, so that names that are no UTF-8 are escapes, which decode to the same."""
    print(json.dumps(content, indent=2))


def show(line: str) -> None:
    """A line of a command's result, on standard output."""
    print(printable(line))


def console() -> Console:
    """Wide enough for every table where the terminal's width is unknown."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=140)


def complain(message: str, status: int) -> int:
    """One line on standard error; returns `status`."""
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def complain_of(reasons: Sequence[str], rest: str = "", shown: int = 20, total: int | None = None) -> None:
    """The first reasons, and how many more there are."""
    for reason in reasons[:shown]:
        complain(reason, 1)
    more = (len(reasons) if total is None else total) - shown
    if more > 0:
        complain(f"{more} more{rest}", 1)


def print_warnings(sentences: Sequence[str]) -> None:
    """What a user must not overlook, below the result that it is about."""
    for sentence in sentences:
        show(f"warning: {sentence}")


def print_next(bundle: Path, report: Path, widths: Sequence[float]) -> None:
    """Where a trained model lies, and what to do with it."""
    narrowest = f" --width {min(widths):g}" if len(widths) > 1 else ""
    print(f"model   {bundle}\nreport  {report}\n\nnext:")
    print(f"  litheseg evaluate {bundle}")
    print(f"  litheseg profile {bundle}")
    print(f"  litheseg predict {bundle} PHOTOS --output labelled{narrowest} --kind both")
