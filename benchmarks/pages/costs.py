"""What does training cost, do fits keep promises, how good are tiles, and corrupted images? From small reports.

Usage:
    >>> sections = [*cost_sections(), *promise_sections()]
"""

from __future__ import annotations

from typing import Any

from records import report, results

from litheseg.report.robustness_tables import robustness_table as card_table
from pages.writer import Section, Target, source, table

__all__ = ["cost_sections", "promise_sections", "robustness_table", "tiles_table"]

# Results, heading, what the rows' deciding number is called, what it says.
_COSTS = (
    ("data_path", "The data path", "fraction", "the data path's share of a training step (draw, transfer, augment)"),
    ("step_cost", "Four widths in one step", "ratio", "one four-width step over the sum of four single-width steps"),
    ("gradual_cost", "A gradual step", "ratio", "one gradual step over one step of the same network, dense"),
    ("mgd_cost", "An MGD step", "ratio", "one MGD step over the sum of its three networks' passes, each timed alone"),
)
_FITS = {  # results -> what the fits were asked for
    "fit_check": "All cores, half of them, one; image after image",
    "fit_check_one_thread": "One thread; image after image",
    "fit_check_paced": "30 images a second, as from a camera",
}


def cost_sections() -> list[Section]:
    """Of the reports that are there: a target, and a line per row."""
    sections = []
    for name, heading, key, meaning in _COSTS:
        if content := report(results(name)):
            rows, limit = content["rows"], content["target"]
            target = Target(f"{meaning} is at most {_number(key, limit)}", all(row[key] <= limit for row in rows))
            head = [column.replace("_ms", ", ms").replace("_", " ") for column in rows[0]]
            lines = [[_number(column, value) for column, value in row.items()] for row in rows]
            sections.append(Section(heading, [table(head, lines), source(content)], [target]))
    return sections


def _number(name: str, value: Any) -> str:
    if "fraction" in name:
        return f"{value:.1%}"
    return f"{value:.{1 if name.endswith('_ms') else 3}f}" if isinstance(value, float) else str(value)


def promise_sections() -> list[Section]:
    """Of the reports that are there: whether the p95 that a fit promised was found again."""
    return [_promises(title, content) for name, title in _FITS.items() if (content := report(results(name)))]


def _promises(title: str, content: dict[str, Any]) -> Section:
    rows, wanted = content["rows"], content["target"]
    target = Target(
        f"promised p95 within {content['tolerance']:.0%} of the one timed again in {wanted} of 10 fits, "
        f"{title[0].lower()}{title[1:]}",
        content["kept"] >= wanted * len(rows) / 10,
        f"{content['kept']} of {len(rows)} kept; the machine repeats itself in {content['repeated']}",
    )
    lines = []
    for row in rows:
        promise, again, once_more = row["promise"], row["again"], row["once_more"]
        threads = f"{promise['threads']} thread{'s' * (promise['threads'] > 1)}"
        size = "x".join(map(str, promise["size"]))
        chosen = f"width {promise['width']:g} at {size}, {promise['runtime']}, {threads}"
        times = (f"{entry['milliseconds']:.2f}" for entry in (promise, again, once_more))
        kept = "yes" if row["kept"] else f"{row['ratios']['kept']:.2f}x"
        lines.append([f"{row['budget_ms']:.2f}", chosen, f"{100 * promise['miou']:.1f}", *times, kept])
    head = ["budget, ms", "chosen", "mIoU", "promised p95, ms", "again", "once more", "kept"]
    return Section(title, [table(head, lines, left=(1,)), source(content)], [target])


def tiles_table() -> str:
    """How far labels made in tiles are from those of the whole image, for docs/runtime.md."""
    names = ("agreement", "agreement_in_overlaps", "worst_change", "worst_change_whole")
    lines = [
        [row["model"], row["pictures"], f"{row['tile']}, {row['overlap']}", *(f"{row[name]:.1%}" for name in names)]
        for row in report(results("tiles"))["rows"]
    ]
    head = ["network", "pictures", "tile, overlap", "agree", "agree in overlaps", "worst line", "worst line, whole"]
    return table(head, lines, left=(0, 1, 2))


def robustness_table() -> str:
    """Networks on corrupted images, and what their confidence is worth, for docs/evaluation.md."""
    content = report(results("robustness"))
    rows = {f"width {row['width']:g}, {row['precision']}": row for row in content["rows"]}
    shown = card_table(rows)
    cost = content["cost"]
    took = f"{cost['ms_per_picture_and_network']:.0f} ms for each picture and network"
    words = f"{content['rows'][0]['model']}, {cost['on']}; {took}, one thread of a busy machine."
    return f"{table(shown.head, shown.rows)}\n\n{words}"
