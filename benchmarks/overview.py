r"""All targets in one table: what each section of docs/results.md says of its own, gathered.

It reads the sections' Markdown, so that no verdict is computed twice, and knows none of their tables.

Usage:
    >>> overview(["## A step\n\nTarget: it is at most 1.05: **met**."])
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from page_parts import markdown

__all__ = ["overview"]

_HEADING = re.compile(r"## (.+)")
_TARGET = re.compile(r"(?:- |Target: )(.+?): \*\*(.+?)\*\*")


def overview(sections: Iterable[str]) -> str:
    """A row per target: in which sections it is met, missed or open, with links; empty where there are none."""
    found: dict[str, dict[str, None]] = {}
    for place, target, state in itertools.chain.from_iterable(map(_targets, sections)):
        found.setdefault(target, {})[f"**{state}**: [{place}](#{_anchor(place)})"] = None
    if not found:
        return ""
    lines = [["target", "state"], ["---", "---"], *([target, "<br>".join(told)] for target, told in found.items())]
    return f"## Every target\n\n{markdown(lines)}"


def _targets(section: str) -> Iterator[tuple[str, str, str]]:
    """Heading, target and state."""
    place = ""
    for line in section.splitlines():
        if heading := _HEADING.fullmatch(line):
            place = heading[1]
        elif target := _TARGET.match(line):
            yield place, target[1], target[2]


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
