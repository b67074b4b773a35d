r"""Texts from elsewhere inside Markdown: names, licences and notes must show as they are, and not as markup.

Usage:
    >>> escaped("road <img src=x> [click](https://example.org)")
    'road &lt;img src=x&gt; \\[click\\](https://example.org)'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["escaped", "fenced", "table"]

_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# What changes how a line looks: anywhere (an underscore inside a word does not), or where it begins.
_MARKUP = re.compile(
    r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^#(?=#{0,5}(?:\s|$))|^[-+](?=\s|$)|^[-=](?=[-=\s]*$)|^\d+(?=[.)](?:\s|$))"
)


def escaped(text: str) -> str:
    """A text as one line of Markdown that shows just that text."""
    line = " ".join(text.split()).translate(_HTML)
    return _MARKUP.sub(lambda match: _marked(match[0]), line)


def fenced(text: str, language: str = "") -> str:
    """A text as a block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: Sequence[str] = ()) -> str:
    """A table of cells that are Markdown already.

    Args:
        head: one cell per column.
        rows: likewise.
        rule: how columns are aligned, ``---:`` for numbers; all to the left by default.
    """
    lines = [head, rule or ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _marked(found: str) -> str:
    return f"{found}\\" if found[-1].isdigit() else f"{found[:-1]}\\{found[-1]}"
