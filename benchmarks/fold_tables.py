"""The part of docs/results.md about protocols with folds: every row trained once per sequence that is left out.

Of each table, protocol and network: how often targets are met, the score on every left-out sequence and their mean,
published val beside it, and differences to the table's baseline, paired by fold and seed, with intervals of 95 percent
(Student's t). It trains and measures nothing.

Usage:
    >>> sections = fold_sections(Path("."))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import yaml
from page_parts import NONE, details, markdown, provenance
from protocols import read_protocols
from scipy.stats import t as student

__all__ = ["Difference", "Folds", "difference", "fold_sections", "read_folds"]

# Of each table: how the label of the rows begins that all others are held against.
BASELINES = {"slimseg": "(a)", "ablation": "our recipe", "mgd": "labels alone", "grouping": "from scratch"}
JUDGED = {"slimseg": ("(e)", "(f)")}  # how the labels begin that a target is about
AVERAGE_GAIN = 1.0  # mIoU points that these must win on average
LEVEL = 0.95

Pair = tuple[str, int]  # fold and seed


class Difference(NamedTuple):
    """A mean of paired differences.

    Attributes:
        mean: in mIoU points.
        half: half the interval's length; None for a single pair, which tells nothing of the spread.
        pairs: how many.
    """

    mean: float
    half: float | None
    pairs: int

    def __str__(self) -> str:
        """With its interval."""
        if self.half is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.mean - self.half:+.2f}, {self.mean + self.half:+.2f}]"


def difference(values: Sequence[float]) -> Difference | None:
    """The mean of paired differences and its interval by Student's t; None without a pair."""
    if not values:
        return None
    count = len(values)
    if count == 1:
        return Difference(values[0], None, 1)
    quantile = float(student.ppf(0.5 + LEVEL / 2, count - 1))
    return Difference(mean(values), quantile * stdev(values) / count**0.5, count)


@dataclass(frozen=True)
class Folds:
    """The finished rows of one table, protocol, network and labelled share.

    Attributes:
        table: its name.
        protocol: a key of protocols.yaml.
        network: a model, or a student of a table of students.
        labelled: the share of the training images that are; None where all are.
        folds: all of the protocol's.
        order: the table's labels, in its order.
        records: the rows, as in the results file.
    """

    table: str
    protocol: str
    network: str
    labelled: str | None
    folds: tuple[str, ...]
    order: Sequence[str]
    records: Sequence[Mapping[str, Any]]

    @property
    def forms(self) -> list[str]:
        """The labels that have a finished row: by their letters, where they have such, else in the table's order."""
        done = dict.fromkeys(record["label"] for record in self.records)
        known = [label for label in dict.fromkeys([*self.order, *done]) if label in done]
        return sorted(known, key=lambda label: label if label.startswith("(") else "")

    @property
    def widths(self) -> list[str]:
        """All that were scored, widest first."""
        return sorted({width for record in self.records for width in record["metrics"]}, key=float, reverse=True)

    @property
    def baseline(self) -> str | None:
        """The label that others are held against; None where it has no finished row."""
        return next((form for form in self.forms if form.startswith(BASELINES[self.table])), None)

    def scores(self, form: str, width: str | None, metric: str = "miou") -> dict[Pair, float]:
        """Percent by fold and seed; for no width the mean over all, of the pairs that have all."""
        if width is None:
            columns = [self.scores(form, each, metric) for each in self.widths]
            pairs = set.intersection(*(set(column) for column in columns))
            return {pair: mean(column[pair] for column in columns) for pair in sorted(pairs)}
        found = {}
        for record in self.records:
            value = record["metrics"].get(width, {}).get(metric)
            if record["label"] == form and value is not None:
                found[record["fold"], record["seed"]] = 100 * value
        return found

    def of_fold(self, form: str, width: str | None, fold: str) -> float | None:
        """Percent on a left-out sequence, the mean over its seeds."""
        found = [score for (where, _), score in self.scores(form, width).items() if where == fold]
        return mean(found) if found else None

    def average(self, form: str, width: str | None) -> float | None:
        """The mean over the folds; None unless all are there."""
        found = [self.of_fold(form, width, fold) for fold in self.folds]
        return None if None in found else mean(score for score in found if score is not None)

    def published(self, form: str, width: str | None) -> float | None:
        """Percent on published val, the mean over all folds and seeds that were trained."""
        found = self.scores(form, width, "published_val")
        return mean(found.values()) if found else None

    def gain(self, form: str, width: str | None) -> Difference | None:
        """Points above the baseline, over the folds and seeds that both have."""
        base = self.baseline
        if base is None or base == form:
            return None
        own, other = self.scores(form, width), self.scores(base, width)
        return difference([own[pair] - other[pair] for pair in own if pair in other])

    def complete(self, form: str) -> bool:
        """Whether form and baseline share every fold at every width."""
        if self.baseline is None:
            return False
        shared = set(self.scores(form, None)) & set(self.scores(self.baseline, None))
        return {fold for fold, _ in shared} == set(self.folds)


def read_folds(root: Path) -> list[Folds]:
    """What is finished, in the order of the tables and protocols."""
    protocols = read_protocols(root / "benchmarks/protocols.yaml")
    found = []
    for table in BASELINES:
        path = root / f"benchmarks/results/{table}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = {record["key"]: record for record in map(json.loads, filter(None, lines))}  # a key's last line counts
        groups: dict[tuple[str, str, str | None], list[Mapping[str, Any]]] = {}
        for record in records.values():
            if "fold" in record:
                network = record.get("network") or record["model"]
                groups.setdefault((record["protocol"], network, record.get("labelled")), []).append(record)
        rows = yaml.safe_load((root / f"benchmarks/{table}.yaml").read_text())["rows"] if groups else []
        order = [row["label"] for row in rows]
        listed = sorted(groups.items(), key=lambda item: list(protocols).index(item[0][0]))
        found += [Folds(table, *key, protocols[key[0]].folds, order, rows) for key, rows in listed]
    return found


def fold_sections(root: Path) -> list[str]:
    """One section for each of `read_folds`."""
    return [_section(folds) for folds in read_folds(root)]


def _section(folds: Folds) -> str:
    share = f", {folds.labelled} labelled" if folds.labelled else ""
    heading = f"## Left-out sequences: {folds.table}, `{folds.network}`{share}, protocol `{folds.protocol}`"
    scores = score_table(folds)
    # Every form at every width is a long table: the averages are what a reader compares first.
    if len(folds.widths) > 1:
        scores += "\n\n" + details("Every width", score_table(folds, every_width=True))
    differences = ""
    if any(folds.gain(form, width) for form in folds.forms for width in folds.widths):
        text = f"**Difference to {folds.baseline}**, mIoU points, paired by fold and seed, with 95 % intervals"
        differences = f"{text}\n\n{difference_table(folds)}\n\n{_CAUTION}"
    blocks = [heading, _verdicts(folds), _METHOD, scores, differences, provenance(folds.records)]
    return "\n\n".join(block for block in blocks if block)


_METHOD = (
    "**mIoU**, percent, of networks trained without the sequence that they are scored on, and the mean over the "
    "sequences. *Published val* is beside it for comparison with other tables only: 101 neighbouring frames of one "
    "sequence, 0016E5, on which two of the three trainings have trained."
)
_CAUTION = (
    "n is the number of pairs. The intervals take pairs as independent; seeds of one fold share their images, so with "
    "several seeds the intervals are narrower than they should be, and three folds are few."
)


def score_table(folds: Folds, *, every_width: bool = False) -> str:
    """A line per form (and width): each fold, their mean, published val, seeds."""
    several = len(folds.widths) > 1
    places: list[str | None] = [*folds.widths] if every_width else [None]
    what = ["width"] if every_width else ["widths"] if several else []
    head = ["", *what, *folds.folds, "mean", "published val", "seeds"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for form in folds.forms:
        for width in places:
            scores = folds.scores(form, width)
            if every_width and not scores:
                continue
            each = [folds.of_fold(form, width, fold) for fold in folds.folds]
            numbers = [*each, folds.average(form, width), folds.published(form, width)]
            seeds = ", ".join(str(seed) for seed in sorted({seed for _, seed in scores}))
            place = [width or ("average" if several else "")] if what else []
            lines.append([form, *place, *(NONE if n is None else f"{n:.2f}" for n in numbers), seeds or "incomplete"])
    return markdown(lines)


def difference_table(folds: Folds) -> str:
    """A line per form other than the baseline, a column per width and one for their average."""
    several = len(folds.widths) > 1
    places: list[str | None] = [*folds.widths, *([None] if several else [])]
    head = ["", *(f"width {width}" if width else "average" for width in places), "n"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for form in folds.forms:
        gains = [folds.gain(form, width) for width in places]
        known = [gain for gain in gains if gain is not None]
        if known:
            count = "/".join(str(n) for n in dict.fromkeys(gain.pairs for gain in known))
            lines.append([form, *(NONE if gain is None else str(gain) for gain in gains), count])
    return markdown(lines)


def _verdicts(folds: Folds) -> str:
    judged = [form for form in folds.forms if form.startswith(JUDGED.get(folds.table, ()))]
    return "Targets:\n\n" + "\n".join(f"- {_verdict(folds, form)}" for form in judged) if judged else ""


def _verdict(folds: Folds, form: str) -> str:
    target = f"{form}: at or above (a) at every width, and at least {AVERAGE_GAIN:+.1f} mIoU on average"
    if not folds.complete(form):
        return f"{target}: **open** (rows are missing)"
    gains = {f"width {width}": folds.gain(form, width) for width in folds.widths} | {"average": folds.gain(form, None)}
    # As printed: what reads +0.00 is not below, and what reads +1.00 is enough.
    rounded = {place: round(gain.mean, 2) for place, gain in gains.items() if gain is not None}
    met = rounded["average"] >= AVERAGE_GAIN and all(gain >= 0 for gain in rounded.values())
    shown = ", ".join(f"{place} {gain:+.2f}" for place, gain in rounded.items())
    return f"{target}: **{'met' if met else 'missed'}** ({shown}; average {gains['average']}, n = {_pairs(gains)})"


def _pairs(gains: Mapping[str, Difference | None]) -> int:
    return min(gain.pairs for gain in gains.values() if gain is not None)
