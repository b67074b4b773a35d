"""How pages are written: tables, targets, sections, pictures, and where numbers come from. It knows no benchmark.

Usage:
    >>> print(table(["", "mIoU"], [["MGD", "41.50"]]))
    |  | mIoU |
    | --- | ---: |
    | MGD | 41.50 |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from litheseg.report.canvas import GREY, add_axes, line_color, save_figure
from litheseg.report.plots import FrontierPoint, frontier

__all__ = [
    "NONE",
    "Draw",
    "Section",
    "Target",
    "bars",
    "cell",
    "curve_plot",
    "details",
    "intervals",
    "replaced",
    "source",
    "table",
]

NONE = "–"  # in place of what was not measured

Draw = Callable[[Path], None]  # writes a figure


class Target(NamedTuple):
    """What was to be reached, and whether it was.

    Attributes:
        text: the target.
        reached: None where it cannot be said yet.
        detail: the numbers.
    """

    text: str
    reached: bool | None
    detail: str = ""

    @property
    def state(self) -> str:
        """In one word."""
        return {True: "met", False: "missed", None: "open"}[self.reached]

    def __str__(self) -> str:
        """As it stands on a page."""
        return f"{self.text}: **{self.state}**" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Section:
    """A part of a page.

    Attributes:
        heading: its title.
        blocks: Markdown; empty ones are left out.
        targets: shown first.
        plots: name of a picture in docs/images -> its alternative text and what draws it; shown after the targets.
    """

    heading: str
    blocks: Sequence[str] = ()
    targets: Sequence[Target] = ()
    plots: Mapping[str, tuple[str, Draw]] = field(default_factory=dict)

    def __str__(self) -> str:
        """As Markdown."""
        targets = "Targets:\n\n" + "\n".join(f"- {target}" for target in self.targets) if self.targets else ""
        pictures = [f"![{text}](../images/{name}.png)" for name, (text, _) in self.plots.items()]
        return "\n\n".join(filter(None, [f"## {self.heading}", targets, *pictures, *self.blocks]))


# --- text ------------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A table in Markdown; columns are set right but for those in `left`."""
    marks = ["---" if column in left else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, marks, *lines])


def cell(scores: Mapping[Any, float], gains: Mapping[Any, float] | None = None) -> str:
    """Mean and deviation of scores by seed, and the mean gain in brackets, of those that there are."""
    if not scores:
        return NONE
    text = f"{mean(scores.values()):.2f}"
    if len(scores) > 1:
        text += f" ± {stdev(scores.values()):.2f}"
    return text + (f" ({mean(gains.values()):+.2f})" if gains else "")


def details(title: str, text: str) -> str:
    """Text folded away behind its title."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def source(records: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> str:
    """Where numbers come from, folded away: of trained rows, or of a report as `records.report` gives it."""
    title = "Where the numbers come from"
    if isinstance(records, Mapping):
        rows = [name for name, value in records.items() if isinstance(value, list) and isinstance((*value, 0)[0], dict)]
        facts = {name: value for name, value in records.items() if name not in (*rows, "target", "notes")}
        shown = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in facts.items()}
        return details(title, "\n".join(f"- {name}: `{value}`" for name, value in shown.items()))
    lines = []
    for record in sorted(records, key=lambda record: record["key"]):
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        commit = record["commit"][:12] + "-dirty" * record["commit"].endswith("-dirty")
        lines.append(
            f"- **{record['key']}**, {record['date']}, {record['minutes']:g} minutes on {record['hardware']}, "
            f"commit {commit}, {versions}\n  `{record['command']}`"
        )
    return details(title, "\n".join(lines))


def replaced(path: Path, name: str, block: str, text: str | None = None) -> str:
    """A page (`text`, or else what is in the file) with another block between its markers of that name.

    Raises:
        SystemExit: the page lacks the markers.
    """
    begin, end = f"<!-- {name}: written by benchmarks/tables.py -->", f"<!-- end of {name} -->"
    now = text if text is not None else path.read_text() if path.exists() else ""
    before, found, rest = now.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{path} lacks the markers '{begin}' and '{end}'; put them where the tables belong")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


# --- pictures --------------------------------------------------------------------------------------------------------


def curve_plot(curves: Mapping[str, Sequence[FrontierPoint]], title: str, cost: str = "MACs") -> Draw:
    """A picture of mIoU against what it costs, on a logarithmic axis."""
    return partial(frontier, curves=curves, cost_label=cost, score_label="mIoU, %", title=title, log_x=True)


def bars(path: Path, values: Mapping[str, float], label: str, title: str) -> None:
    """Draw a horizontal bar per name, from top to bottom, with a line at the first one's value.

    Args:
        path: the figure, .png.
        values: by name; at least one.
        label: what they are, with the unit.
        title: above the figure.
    """
    figure = Figure(figsize=(7, 0.9 + 0.32 * len(values)), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")  # longer than the axes are wide
    axes = add_axes(figure, "", label, "")
    colors = [GREY, *[line_color(0)] * (len(values) - 1)]
    drawn = axes.barh(list(values), list(values.values()), color=colors, height=0.65)
    axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=9, color=GREY)
    axes.axvline(next(iter(values.values())), color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    save_figure(figure, path)


def intervals(path: Path, values: Mapping[str, tuple[Any, float | None]], label: str) -> None:
    """Draw differences with their intervals, from top to bottom.

    Args:
        path: the figure, .png.
        values: by name; a `pages.folds.Difference`, and what was claimed or None. At least one.
        label: what they are, with the unit.
    """
    figure = Figure(figsize=(12, 0.9 + 0.25 * len(values)), layout="constrained")
    axes = add_axes(figure, "", "", "")
    axes.set_xlabel(label, color=GREY, loc="right")  # longer than the axes are wide
    for name, (found, claimed) in values.items():
        own = {"color": line_color(0), "markerfacecolor": line_color(0) if found.half else "white"}
        axes.errorbar(found.mean, name, xerr=found.half, fmt="o", capsize=3, **own)
        if claimed is not None:
            axes.plot(claimed, name, "D", color=line_color(1), markersize=6, zorder=1)
    axes.axvline(0, color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.invert_yaxis()
    axes.margins(y=0.02)
    save_figure(figure, path)
