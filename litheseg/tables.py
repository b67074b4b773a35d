r"""Tables and other text for the terminal, for Markdown and for HTML; texts from elsewhere are escaped.

It prints nothing: `terminal_table` returns what `rich` prints.

Usage:
    >>> rich.print(terminal_table(Table(("width", "mIoU (%)"), (("1", "54.2"), ("0.5", "53.1")))))
    >>> escaped("road <img src=x> [click](https://example.org)")
    'road &lt;img src=x&gt; \\[click\\](https://example.org)'
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = [
    "Table",
    "escaped",
    "fenced",
    "filled_table",
    "html_table",
    "markdown_table",
    "percent",
    "short_number",
    "terminal_table",
]

_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# What changes how a line looks: anywhere (an underscore inside a word does not), or where it begins.
_MARKUP = re.compile(
    r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^#(?=#{0,5}(?:\s|$))|^[-+](?=\s|$)|^[-=](?=[-=\s]*$)|^\d+(?=[.)](?:\s|$))"
)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def terminal_table(table: Table, title: str | None = None, left: Sequence[str] = ()) -> RichTable:
    """A table of text: the first column and those named in `left` to the left, the others to the right."""
    from rich import box
    from rich.table import Table as RichTable

    result = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(table.head):
        result.add_column(name, justify="left" if index == 0 or name in left else "right", overflow="fold")
    for row in table.rows:
        result.add_row(*row)
    return result


def filled_table(first: str, names: Iterable[str], columns: Mapping[str, Sequence[str]]) -> Table:
    """A table with a row for each name, without the columns in which no cell says anything.

    Args:
        first: the head of the names.
        names: of the rows.
        columns: by head, a cell for each name; "–" says nothing.
    """
    kept = {head: cells for head, cells in columns.items() if any(cell != "–" for cell in cells)}
    return Table((first, *kept), tuple(zip(names, *kept.values(), strict=True)))


def percent(share: object, digits: int = 1) -> str:
    """A share in percent, such as "54.2"; "–" for what is no finite number."""
    known = float(share) if isinstance(share, Real) else math.nan
    return f"{100 * known:.{digits}f}" if math.isfinite(known) else "–"


def escaped(text: str) -> str:
    """A text as one line of Markdown that shows just that text."""
    line = " ".join(text.split()).translate(_HTML)
    return _MARKUP.sub(_marked, line)


def _marked(found: re.Match[str]) -> str:
    """What would be markup behind a backslash; of a number that begins a list, its dot."""
    text = found[0]
    return f"{text}\\" if text[-1].isdigit() else f"{text[:-1]}\\{text[-1]}"


def fenced(text: str, language: str = "") -> str:
    """A text as a block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: Sequence[str] = ()) -> str:
    """A table of cells that are Markdown already.

    Args:
        head: one cell per column.
        rows: likewise.
        rule: how columns are aligned, ``---:`` for numbers; all to the left by default.
    """
    lines = [head, rule or ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def html_table(table: Table) -> str:
    """A table in HTML that shows just these texts; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = []
    for first, *others in table.rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return "\n".join((f"<table><thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody></table>"))


def short_number(value: float) -> str:
    """Three digits and a letter for the scale: 4.7e9 -> '4.7G'."""
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"
