"""Write docs/results.md, its plots and the README's table from the committed results files.

Nothing in these pages is typed by hand: numbers come from `benchmarks/results/`, rows and their order from the tables'
YAML, and what was learnt from them, in words, from `benchmarks/slimseg.md` if it exists. It trains and measures
nothing; see `benchmarks/run.py`.

Usage:
    python benchmarks/tables.py            # write
    python benchmarks/tables.py --check    # fail when the pages are not what the files give
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from fold_tables import fold_sections
from grouping_tables import grouping_block, grouping_pages
from latency_tables import latency_section
from mgd_tables import mgd_block, mgd_pages
from overview import overview
from page_parts import NONE, Draw, cell, frontier_plot, markdown, origin, provenance
from peers_tables import peers_block, peers_section
from promises_tables import promises_section
from protocols import read_protocols

from litheseg.files import atomic_path
from litheseg.report.plots import FrontierPoint

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = ("1", "0.75", "0.5", "0.25")
METRICS = {
    "miou": "**mIoU**, percent",
    "boundary_iou": "**Boundary IoU**, percent",
    "band_miou": "**mIoU within 3 pixels of a label border**, percent",
    "train_ce": "**Cross entropy on the training views** in the last epoch, x 100: how well the labels were fitted",
}
BASELINE, GOAL = "(a)", "(e)"  # how the labels of the rows begin that the target compares
AVERAGE_GAIN = 1.0  # mIoU points that the goal must win on average
ACCURACY = ("camvid", "ddrnet", 68.0)  # protocol, model, mIoU at width 1
DRAWN = ("(a)", "(b)", "(e)")  # the forms in the plot; all six would hide each other
_LINK = "All tables, boundary scores, costs and the command behind every row: [docs/results.md](docs/results.md)."
BEGIN, END = "<!-- results: written by benchmarks/tables.py -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Study:
    """The rows of one table for one protocol and model, finished or not.

    Attributes:
        protocol: a key of protocols.yaml.
        model: a model's name.
        rows: the table's rows, as in its YAML.
        records: the finished ones, as in the results file.
    """

    protocol: str
    model: str
    rows: Sequence[Mapping[str, Any]]
    records: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Fit for a file name."""
        return f"slimseg-{self.protocol}-{self.model}"

    @property
    def forms(self) -> list[str]:
        """The labels: what the table compares; several single-width rows may make up one form."""
        return sorted({row["label"] for row in [*self.rows, *self.records]})

    def of(self, form: str) -> list[Mapping[str, Any]]:
        """The finished rows of a form."""
        return [record for record in self.records if record["label"] == form]

    def scores(self, form: str, width: str, metric: str = "miou") -> dict[int, float]:
        """Percent by seed; empty where nothing was measured."""
        measured = [(record["seed"], record["metrics"].get(width, {}).get(metric)) for record in self.of(form)]
        return {seed: 100 * value for seed, value in sorted(pair for pair in measured if pair[1] is not None)}

    def averages(self, form: str, metric: str = "miou") -> dict[int, float]:
        """The mean over all widths by seed, of the seeds that have every width."""
        columns = [self.scores(form, width, metric) for width in WIDTHS]
        seeds = set.intersection(*(set(column) for column in columns))
        return {seed: mean(column[seed] for column in columns) for seed in sorted(seeds)}

    def gains(self, form: str, width: str | None, metric: str = "miou") -> dict[int, float]:
        """Points above the baseline by seed, of the seeds that both have; over all widths where `width` is None."""
        base = next((label for label in self.forms if label.startswith(BASELINE)), None)
        if base is None or base == form:
            return {}
        own, other = (
            self.averages(label, metric) if width is None else self.scores(label, width, metric)
            for label in (form, base)
        )
        return {seed: own[seed] - other[seed] for seed in own if seed in other}

    def minutes(self, form: str) -> dict[int, float]:
        """Training minutes by seed, summed over the form's rows; of the seeds that have all of them."""
        wanted = {row["id"] for row in self.rows if row["label"] == form}
        found: dict[int, dict[str, float]] = {}
        for record in self.of(form):
            found.setdefault(record["seed"], {})[record["id"]] = record["minutes"]
        return {seed: sum(parts.values()) for seed, parts in sorted(found.items()) if wanted <= set(parts)}

    def state(self, form: str) -> str:
        """The seeds that are done, or what is missing."""
        done, complete = self.of(form), self.minutes(form)
        if not done:
            return "not run yet"
        if complete:
            return ", ".join(str(seed) for seed in complete)
        return f"{len(done)} of {sum(row['label'] == form for row in self.rows)} runs"

    def cost(self, width: str, name: str) -> int | None:
        """Parameters or MACs of a width, from the newest row that has it."""
        found = [record["metrics"][width][name] for record in self.records if name in record["metrics"].get(width, {})]
        return found[-1] if found else None


@dataclass
class Pages:
    """What is to be written.

    Attributes:
        texts: path -> text.
        plots: path -> what draws it.
    """

    texts: dict[Path, str] = field(default_factory=dict)
    plots: dict[Path, Draw] = field(default_factory=dict)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_studies(root: Path) -> list[Study]:
    """Every protocol x model of the SlimSeg table, protocols in their file's order."""
    table = yaml.safe_load((root / "benchmarks/slimseg.yaml").read_text())
    protocols = read_protocols(root / "benchmarks/protocols.yaml")
    path = root / "benchmarks/results/slimseg.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = {record["key"]: record for record in map(json.loads, filter(None, lines))}  # a key's last line counts
    return [
        Study(
            protocol,
            model,
            table["rows"],
            [r for r in records.values() if (r["protocol"], r["model"]) == (protocol, model)],
        )
        for protocol, content in protocols.items()
        for model in table["models"]
        # Those are of other tables, or of `fold_tables`.
        if "-few" not in protocol and not protocol.endswith("-short") and not content.folds
    ]


def build(root: Path = ROOT) -> Pages:
    """All pages and plots that the committed files give."""
    studies = read_studies(root)
    pages = Pages()
    sections: list[str] = []
    for study in studies:
        sections.append(study_section(study, "images"))
        if lines := curves(study):
            title = f"{study.model}, protocol {study.protocol}, validation"
            pages.plots[root / f"docs/images/{study.name}.png"] = frontier_plot(lines, title)
    notes = root / "benchmarks/slimseg.md"
    if notes.exists():
        sections.append(notes.read_text().strip())
    sections += fold_sections(root)
    ways, pictures = grouping_pages(root)
    few, more = mgd_pages(root)
    sections += [*ways, latency_section(root), *few, peers_section(root), promises_section(root)]
    pages.plots |= pictures | more
    sections += [cost_section(root, *entry) for entry in _COSTS]
    page = [_introduction(), overview(sections), *sections]
    pages.texts[root / "docs/results.md"] = "\n\n".join(section for section in page if section) + "\n"
    readme = root / "README.md"
    if readme.exists():
        blocks = (readme_block(studies), grouping_block(root), mgd_block(root), peers_block(root), _LINK)
        pages.texts[readme] = _with_block(readme, "\n\n".join(block for block in blocks if block))
    return pages


# --- the SlimSeg table -----------------------------------------------------------------------------------------------


def study_section(study: Study, images: str) -> str:
    """Heading, verdicts, plot, tables and provenance of one protocol and model."""
    heading = f"## SlimSeg table: `{study.model}`, protocol `{study.protocol}`"
    if not study.records:
        return f"{heading}\n\nNot run yet."
    blocks = [heading, verdicts(study), _picture(study, images)]
    for metric, name in METRICS.items():
        blocks += [name, metric_table(study, metric, with_minutes=metric == "miou")]
    blocks += ["**Cost** of the extracted networks", cost_table(study), provenance(study.records)]
    return "\n\n".join(block for block in blocks if block)


def metric_table(study: Study, metric: str = "miou", *, with_minutes: bool = True) -> str:
    """One row per form, one column per width, gains over the baseline in brackets."""
    head = ["", *(f"width {width}" for width in WIDTHS), "average", *(["minutes"] if with_minutes else []), "seeds"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for form in study.forms:
        cells = [cell(study.scores(form, width, metric), study.gains(form, width, metric)) for width in WIDTHS]
        cells.append(cell(study.averages(form, metric), study.gains(form, None, metric)))
        if with_minutes:
            minutes = study.minutes(form)
            cells.append(f"{mean(minutes.values()):.0f}" if minutes else NONE)
        lines.append([form, *cells, study.state(form)])
    return markdown(lines)


def cost_table(study: Study) -> str:
    """Parameters and MACs per width."""
    lines = [["", *(f"width {width}" for width in WIDTHS)], ["---", *["---:"] * len(WIDTHS)]]
    for name, label, unit in (("params", "parameters, M", 1e6), ("macs", "MACs at the training size, G", 1e9)):
        costs = [study.cost(width, name) for width in WIDTHS]
        lines.append([label, *(NONE if cost is None else f"{cost / unit:.3f}" for cost in costs)])
    return markdown(lines)


def verdicts(study: Study) -> str:
    """Each target, and whether it is met, computed."""
    lines = [f"- {_gain_verdict(study, form)}" for form in study.forms if form.startswith(GOAL)]
    protocol, model, wanted = ACCURACY
    if (study.protocol, study.model) == (protocol, model):
        means = {form: mean(found.values()) for form in study.forms if (found := study.scores(form, "1"))}
        best = max(means, key=lambda form: means[form], default=None)
        reached = "not run yet" if best is None else f"{means[best]:.2f} by {best}"
        state = "open" if best is None else "met" if means[best] >= wanted else "missed"
        lines.append(f"- at least {wanted:g} mIoU at width 1: **{state}** ({reached})")
    return "Targets:\n\n" + "\n".join(lines)


def _gain_verdict(study: Study, form: str) -> str:
    target = f"{form}: at or above (a) at every width, and at least {AVERAGE_GAIN:+.1f} mIoU on average"
    found = {f"width {width}": study.gains(form, width) for width in WIDTHS} | {"average": study.gains(form, None)}
    if not all(found.values()):
        return f"{target}: **open** (rows are missing)"
    gains = {place: mean(values.values()) for place, values in found.items()}
    # As printed: what reads +0.00 is not below, and what reads +1.00 is enough.
    rounded = {place: round(gain, 2) for place, gain in gains.items()}
    met = rounded["average"] >= AVERAGE_GAIN and all(gain >= 0 for gain in rounded.values())
    shown = ", ".join(f"{place} {gain:+.2f}" for place, gain in rounded.items())
    return f"{target}: **{'met' if met else 'missed'}** ({shown})"


def curves(study: Study) -> dict[str, list[FrontierPoint]]:
    """Mean score against MACs, by form."""
    found: dict[str, list[FrontierPoint]] = {}
    for form in study.forms:
        for width in WIDTHS:
            scores, macs = study.scores(form, width), study.cost(width, "macs")
            if form.startswith(DRAWN) and scores and macs is not None:
                found.setdefault(form, []).append(FrontierPoint(float(width), macs, mean(scores.values()) / 100))
    return found


# --- costs of training -----------------------------------------------------------------------------------------------

# File, heading, what the rows' deciding number is called, what it says.
_COSTS = (
    ("data_path", "The data path", "fraction", "the data path's share of a training step (draw, transfer, augment)"),
    ("step_cost", "Four widths in one step", "ratio", "one four-width step over the sum of four single-width steps"),
    ("gradual_cost", "A gradual step", "ratio", "one gradual step over one step of the same network, dense"),
    ("mgd_cost", "An MGD step", "ratio", "one MGD step over the sum of its three networks' passes, each timed alone"),
)


def cost_section(root: Path, stem: str, heading: str, key: str, meaning: str) -> str:
    """The section of one JSON file: a target, rows, and where they come from; empty without the file."""
    path = root / f"benchmarks/results/{stem}.json"
    if not path.exists():
        return ""
    content = json.loads(path.read_text())
    rows, target = content["rows"], content["target"]
    met = all(row[key] <= target for row in rows)
    shown = f"Target: {meaning} is at most {_number(key, target)}: **{'met' if met else 'missed'}**."
    columns = list(rows[0])
    lines = [[name.replace("_ms", ", ms").replace("_", " ") for name in columns], ["---:"] * len(columns)]
    lines += [[_number(name, row[name]) for name in columns] for row in rows]
    return "\n\n".join([f"## {heading}", shown, markdown(lines), origin(content, ("rows", "target"))])


def _number(name: str, value: Any) -> str:
    if "fraction" in name:
        return f"{value:.1%}"
    return f"{value:.{1 if name.endswith('_ms') else 3}f}" if isinstance(value, float) else str(value)


# --- the README ------------------------------------------------------------------------------------------------------


def readme_block(studies: Sequence[Study]) -> str:
    """The fullest study, in short."""
    best = max(studies, key=lambda study: len(study.records))  # the first of equals
    if not best.records:
        return "No table has been run yet; `python benchmarks/run.py --help` says how to."
    reference = f"`{best.model}`, protocol `{best.protocol}`, validation mIoU in percent, gain over (a) in brackets"
    blocks = [_picture(best, "docs/images"), f"{reference}:", metric_table(best), verdicts(best)]
    return "\n\n".join(block for block in blocks if block)


def _with_block(readme: Path, block: str) -> str:
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme} lacks the markers '{BEGIN}' and '{END}'; put them where the table belongs")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


# --- small parts -----------------------------------------------------------------------------------------------------


def _introduction() -> str:
    return (
        "# Results\n\n"
        "<!-- Written by `python benchmarks/tables.py` from benchmarks/results/; do not edit. -->\n\n"
        "Every number is measured on the published validation split (seven seconds of a video that is trained on, "
        "too) or, under *left-out sequences*, on videos that were not, at the labels' own resolution, after the last "
        "epoch. A form "
        "with several seeds shows mean ± standard deviation; in brackets the gain over (a), over the seeds that both "
        "have. (a) is four networks, each trained alone at its width for as many epochs; (b) to (e) are one network "
        "each. What the protocols fix and how to run a row: [benchmarks](benchmarks.md); what the scores mean: "
        "[evaluation](evaluation.md)."
    )


def _picture(study: Study, images: str) -> str:
    return f"![mIoU against MACs at four widths]({images}/{study.name}.png)" if curves(study) else ""


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
