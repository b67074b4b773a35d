"""Write the generated parts of docs/results.md, docs/results/*.md and the README, and the pictures, from the records.

Every number on these pages comes from `benchmarks/results/`, rows and their order from the tables' YAML; prose around
the markers is written by hand. Nothing is trained or measured here; see `benchmarks/run.py` and `benchmarks/measure`.

Usage:
    python benchmarks/tables.py            # write
    python benchmarks/tables.py --check    # fail when the pages are not what the records give
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pages.claims import claim_sections
from pages.costs import cost_sections, promise_sections, robustness_table, tiles_table
from pages.few_labels import few_labels_sections
from pages.folds import fold_sections
from pages.grouping import grouping_sections
from pages.latency import latency_sections
from pages.pairs import pairs_sections
from pages.peers import PICTURE, headline, peers_sections
from pages.slimmable import slimmable_sections
from pages.targets import target_sections
from pages.writer import Draw, Section, replaced, table
from records import newest, results

from litheseg.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
PAGES: dict[str, Callable[[], list[Section]]] = {  # page in docs/results -> its sections
    "claims": claim_sections,
    "slimmable-widths": lambda: [*slimmable_sections(), *fold_sections("slimseg"), *fold_sections("ablation")],
    "gradual-grouping": lambda: [*grouping_sections(), *fold_sections("grouping"), *latency_sections()],
    "few-labels": lambda: [*few_labels_sections(), *fold_sections("mgd")],
    "encoders-and-decoders": pairs_sections,
    "other-libraries": peers_sections,
    "latency-promises": promise_sections,
    "targets": target_sections,
    "training-cost": cost_sections,
}


@dataclass
class Pages:
    """What is to be written.

    Attributes:
        texts: path -> text.
        plots: path -> what draws it.
    """

    texts: dict[Path, str] = field(default_factory=dict)
    plots: dict[Path, Draw] = field(default_factory=dict)


def build(root: Path = ROOT) -> Pages:
    """All pages and plots that the committed records give."""
    pages, sections = Pages(), {name: sections() for name, sections in PAGES.items()}
    docs = root / "docs"
    for name, own in sections.items():
        path = docs / f"results/{name}.md"
        pages.texts[path] = replaced(path, "results", "\n\n".join(map(str, own)) or "Not run yet.")
        pages.plots |= {docs / f"images/{plot}.png": draw for part in own for plot, (_, draw) in part.plots.items()}
    summary = docs / "results.md"
    targets = "\n\n".join(filter(None, [trained_rows(), overview(sections)])) or "No table has been run yet."
    pages.texts[summary] = replaced(summary, "targets", targets)
    drawn = docs / f"images/{PICTURE}.png" in pages.plots
    for path, images in ((summary, "images"), (root / "README.md", "docs/images")):
        picture = f"{images}/{PICTURE}.png" if drawn else None
        pages.texts[path] = _with_headline(path, pages.texts.get(path), picture)
    if results("tiles").exists():
        pages.texts[docs / "runtime.md"] = replaced(docs / "runtime.md", "tiles", tiles_table())
    if results("robustness").exists():
        pages.texts[docs / "evaluation.md"] = replaced(docs / "evaluation.md", "robustness", robustness_table())
    return pages


def trained_rows() -> str:
    """How many rows were trained, when, and on what; empty without any."""
    rows = [
        row for table in ("slimseg", "ablation", "grouping", "mgd", "pairs", "peers") for row in newest(results(table))
    ]
    if not rows:
        return ""
    dates, machines = sorted(row["date"] for row in rows), sorted({row["hardware"] for row in rows})
    return f"{len(rows)} trained rows, from {dates[0]} to {dates[-1]}, on {', '.join(machines)}."


def overview(pages: dict[str, Sequence[Section]]) -> str:
    """A line per target: where it is met, missed or open, with links; and how many of each there are."""
    found: dict[str, dict[str, None]] = {}
    states: dict[str, int] = {}
    for name, sections in pages.items():
        for section in sections:
            for target in section.targets:
                link = f"results/{name}.md#{_anchor(section.heading)}"
                found.setdefault(target.text, {})[f"**{target.state}**: [{section.heading}]({link})"] = None
                states[target.state] = states.get(target.state, 0) + 1
    if not found:
        return ""
    counts = ", ".join(f"{states.get(state, 0)} {state}" for state in ("met", "missed", "open"))
    lines = [[text, "<br>".join(places)] for text, places in found.items()]
    return f"Over all protocols and networks: {counts}.\n\n{table(['target', 'state'], lines, left=(0, 1))}"


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _with_headline(path: Path, text: str | None, picture: str | None) -> str:
    """A page with the small table and its picture; `text` is what the page is to be otherwise."""
    block = headline()
    if picture is not None:
        block = f"![mIoU against time, ours and other libraries]({picture})\n\n{block}"
    return replaced(path, "headline", block, text)


def write(pages: Pages) -> None:
    """Write texts and plots."""
    for path, text in pages.texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for path, draw in pages.plots.items():
        draw(path)


def check(pages: Pages) -> list[str]:
    """What differs between the pages on disk and `pages`, in lines.

    Plots must exist; their pixels are not compared, because they depend on the drawing library's version.
    """
    found = [f"missing: {path}" for path in pages.plots if not path.exists()]
    for path, text in pages.texts.items():
        now = path.read_text(encoding="utf-8") if path.exists() else ""
        found += difflib.unified_diff(now.splitlines(), text.splitlines(), str(path), "generated", lineterm="")
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is out of date")
    arguments = parser.parse_args()
    pages = build()
    if not arguments.check:
        write(pages)
    elif found := check(pages):
        print("\n".join(found[:60]))
        sys.exit("out of date: run `python benchmarks/tables.py` and commit what it writes")


if __name__ == "__main__":
    main()
