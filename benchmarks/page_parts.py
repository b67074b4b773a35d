"""Small parts of the pages that are made from results files: a table, its cells, a plot, where numbers come from.

It knows Markdown and nothing of what is shown.

Usage:
    >>> markdown([["a", "b"], ["---", "---:"], ["x", "1"]])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from litheseg.report.plots import FrontierPoint, frontier

__all__ = ["NONE", "Draw", "cell", "details", "frontier_plot", "markdown", "origin", "provenance"]

NONE = "–"  # in place of what was not measured

Draw = Callable[[Path], None]  # writes a figure


def cell(scores: Mapping[int, float], gains: Mapping[int, float]) -> str:
    """Mean and deviation of scores by seed, and the mean gain in brackets, of those that there are."""
    if not scores:
        return NONE
    text = f"{mean(scores.values()):.2f}"
    if len(scores) > 1:
        text += f" ± {stdev(scores.values()):.2f}"
    return text + (f" ({mean(gains.values()):+.2f})" if gains else "")


def frontier_plot(curves: Mapping[str, Sequence[FrontierPoint]], title: str, cost: str = "MACs") -> Draw:
    """A picture of mIoU against what it costs, on a logarithmic axis."""
    return partial(frontier, curves=curves, cost_label=cost, score_label="mIoU, %", title=title, log_x=True)


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
