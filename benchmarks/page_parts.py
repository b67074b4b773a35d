"""Small parts of the pages that are made from results files: a table, a folded block, where numbers come from.

It knows Markdown and nothing of what is shown.

Usage:
    >>> markdown([["a", "b"], ["---", "---:"], ["x", "1"]])
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["NONE", "details", "markdown", "origin", "provenance"]

NONE = "–"  # in place of what was not measured


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of cells; the second line holds the alignments."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(title: str, text: str) -> str:
    """Text folded away behind its title."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def origin(content: Mapping[str, Any], shown: Sequence[str]) -> str:
    """All of a results file but the entries in `shown`, one a line, folded away."""
    rest = {name: value for name, value in content.items() if name not in shown}
    told = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in rest.items()}
    return details("Where the numbers come from", "\n".join(f"- {name}: `{value}`" for name, value in told.items()))


def provenance(records: Iterable[Mapping[str, Any]]) -> str:
    """Commit, hardware, versions and command of every row, folded away."""
    lines = []
    for record in sorted(records, key=lambda record: record["key"]):
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        lines.append(
            f"- **{record['key']}**, {record['date']}, {record['minutes']:g} minutes on {record['hardware']}, "
            f"commit {record['commit'][:12]}{'-dirty' * record['commit'].endswith('-dirty')}, {versions}\n"
            f"  `{record['command']}`"
        )
    return details("Where the numbers come from", "\n".join(lines))
