"""The page of `fit_check.py`: do fits keep their word? Made from `results/fit_check*.json`.

It says whether the target is met; it times nothing.

Usage:
    >>> section = promises_section(Path("."))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from page_parts import markdown, origin

__all__ = ["promises_section"]

_WAYS = {  # file -> what the fits were asked for
    "fit_check": "All cores, half of them, one; image after image",
    "fit_check_one_thread": "One thread; image after image",
    "fit_check_paced": "30 images a second, as from a camera",
}


def promises_section(root: Path) -> str:
    """Heading, and a table for each of the files that are there; empty without any."""
    paths = {root / f"benchmarks/results/{name}.json": title for name, title in _WAYS.items()}
    parts = [_part(title, json.loads(path.read_text())) for path, title in paths.items() if path.exists()]
    heading = (
        "## Do fits keep their promises?\n\n"
        "Budgets spread over what the model can do; what each fit promised was timed again in a process of its own, "
        "twice, for 20 s or more. A promise is kept if the second p95 is within 10 % of the first. The machine repeats "
        "itself where the third is within 10 % of the second: no promise can be better kept than that."
    )
    return "\n\n".join([heading, *parts]) if parts else ""


def _part(title: str, report: Mapping[str, Any]) -> str:
    rows, tolerance = report["rows"], f"{report['tolerance']:.0%}"
    met = report["kept"] >= report["target"] * len(rows) / 10
    target = (
        f"Target: promised p95 within {tolerance} of the one timed again in {report['target']} of 10 fits, "
        f"{title[0].lower()}{title[1:]}: **{'met' if met else 'missed'}** ({report['kept']} of {len(rows)} kept; the "
        f"machine repeats itself in {report['repeated']})."
    )
    head = ["budget, ms", "chosen", "mIoU", "promised p95, ms", "again", "once more", "kept"]
    lines = [head, ["---:", "---", *["---:"] * 5]]
    for row in rows:
        promise, again, once_more = row["promise"], row["again"], row["once_more"]
        size = "x".join(map(str, promise["size"]))
        threads = f"{promise['threads']} thread{'s' * (promise['threads'] > 1)}"
        chosen = f"width {promise['width']:g} at {size}, {promise['runtime']}, {threads}"
        times = (f"{entry['milliseconds']:.2f}" for entry in (promise, again, once_more))
        kept = "yes" if row["kept"] else f"{row['ratios']['kept']:.2f}x"
        lines.append([f"{row['budget_ms']:.2f}", chosen, f"{100 * promise['miou']:.1f}", *times, kept])
    shown = ("rows", "tolerance", "target", "kept", "repeated", "steady")
    return "\n\n".join([f"### {title}", target, markdown(lines), origin(report, shown)])
