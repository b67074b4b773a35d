"""Tables of text: for the terminal, for model cards and for reports.

It prints nothing: `terminal_table` returns what `rich` prints.

Usage:
    >>> rich.print(terminal_table(Table(("width", "mIoU (%)"), (("1", "54.2"), ("0.5", "53.1")))))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["Table", "terminal_table"]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def terminal_table(table: Table, title: str | None = None) -> RichTable:
    """A table of text: the first column to the left, the others to the right."""
    from rich import box
    from rich.table import Table as RichTable

    result = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(table.head):
        result.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in table.rows:
        result.add_row(*row)
    return result
