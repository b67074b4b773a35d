"""The doctor's report as rich tables.

Usage:
    >>> rich.print(render(report))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from litheseg.errors import printable

if TYPE_CHECKING:
    from litheseg.data.doctor import Report

__all__ = ["render"]

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_FILES_SHOWN = 3
_VALUES_SHOWN = 16


def render(report: Report) -> Group:
    """A line of judgement, the findings, and the classes by split."""
    parts: list[RenderableType] = [_judgement(report)]
    if report.findings:
        parts.append(_findings(report))
    if report.splits:
        parts.append(_classes(report) if report.classes else _values(report))
    return Group(*parts)


def _judgement(report: Report) -> Text:
    looked = ", ".join(f"{name} {summary.samples}" for name, summary in report.splits.items())
    if report.ok:
        return Text(f"{printable(report.source)} ({looked}): ready for training", style="bold green")
    count = sum(item.severity == "error" for item in report.findings)
    what = f"{count} kind{'s' if count > 1 else ''} of errors"
    return Text(
        f"{printable(report.source)} ({looked or 'not opened'}): {what}; training cannot go on", style="bold red"
    )


def _findings(report: Report) -> Table:
    table = Table(title="findings", title_justify="left", show_lines=True)
    for name, justify in (("finding", "left"), ("files", "right"), ("what and where", "left"), ("remedy", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for item in report.findings:
        files = "\n".join(map(printable, item.files[:_FILES_SHOWN]))
        more = f"\nand {item.count - _FILES_SHOWN} more" if item.count > _FILES_SHOWN else ""
        # Text, not str: brackets in file names are no markup.
        table.add_row(
            Text(f"{item.severity}\n{item.code}", style=_STYLES[item.severity]),
            str(item.count) if item.count else "",
            Text(printable(item.message)).append(f"\n{files}{more}" if files else "", style="dim"),
            Text(item.remedy),
        )
    return table


def _classes(report: Report) -> Table:
    table = Table(title="share of the labelled pixels", title_justify="left")
    table.add_column("class")
    for name in report.splits:
        table.add_column(name, justify="right")
    for index, label in enumerate(report.classes):
        shares = [_share(s.histogram[index], sum(s.histogram)) for s in report.splits.values()]
        table.add_row(Text(printable(label)), *shares)
    ignored = [_share(s.ignored, s.ignored + sum(s.histogram)) for s in report.splits.values()]
    table.add_row(Text("(ignored, of all)", style="dim"), *ignored)
    return table


def _values(report: Report) -> Table:
    """Without a class list: what the masks hold."""
    table = Table(title="values in the masks", title_justify="left")
    for name in ("split", "value", "pixels"):
        table.add_column(name, justify="right")
    for split, summary in report.splits.items():
        for value, count in list(summary.values.items())[:_VALUES_SHOWN]:
            table.add_row(split, value, str(count))
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
