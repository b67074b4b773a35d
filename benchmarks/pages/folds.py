"""Protocols with folds: every row is trained once per fold (a sequence, or a part of the images), and scored on it.

Of each table, protocol and network: whether targets are met, the score on every fold and their mean, published val
beside it where there is one, and differences to the table's baseline, paired by fold and seed, with intervals of 95
percent (Student's t). The same of boundary IoU, folded away.

Usage:
    >>> sections = fold_sections("slimseg")
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t as student

from pages.slimmable import gain_target, names_of
from pages.studies import Study, read_studies
from pages.writer import NONE, Section, Target, details, source, table

__all__ = ["Difference", "difference", "fold_sections"]

# Of each table: the label of the rows that all others are compared with.
BASELINES = {
    "slimseg": "(a) independent",
    "ablation": "our recipe",
    "mgd": "labels alone",
    "grouping": "from scratch",
}
JUDGED = ("(e)", "(f)")  # how the labels begin that a target of the SlimSeg table is about
LEVEL = 0.95
_METHOD = "**mIoU**, percent, of networks trained without the images that they are scored on, by fold, and the mean."
_PUBLISHED = (
    "*Published val* is beside it for comparison with other tables only: 101 neighbouring frames of one sequence, "
    "0016E5, on which two of the three trainings have trained."
)
_CAUTION = (
    "n is the number of pairs. The intervals take pairs as independent; seeds of one fold share their images, so with "
    "several seeds the intervals are narrower than they should be, and three folds are few."
)


class Difference(NamedTuple):
    """A mean of paired differences.

    Attributes:
        mean: in mIoU points.
        half: half the interval's length; None for a single pair, which says nothing of the spread.
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
    if len(values) < 2:
        return Difference(values[0], None, 1) if values else None
    quantile = float(student.ppf(0.5 + LEVEL / 2, len(values) - 1))
    return Difference(mean(values), quantile * stdev(values) / len(values) ** 0.5, len(values))


def fold_sections(name: str) -> list[Section]:
    """A section per protocol with folds, network and labelled share of a table."""
    return [fold_section(name, study) for study in read_studies(name) if study.folds]


def fold_section(name: str, study: Study) -> Section:
    """Scores and differences of a study."""
    share, baseline = f", {study.labelled} labelled" if study.labelled else "", BASELINES[name]
    blocks = [f"{_METHOD} {_PUBLISHED}" if _published(study) else _METHOD, score_table(study)]
    # Every form at every width is a long table: the averages are what a reader compares first.
    if len(study.widths) > 1:
        blocks.append(details("Every width", score_table(study, every_width=True)))
    if any(gain(study, baseline, label, width) for label in study.labels for width in study.widths):
        shown = names_of(study).get(baseline, baseline)
        text = f"**Difference to {shown}**, mIoU points, paired by fold and seed, with 95 % intervals"
        blocks += [text, difference_table(study, baseline), _CAUTION]
    borders = [score_table(study, metric="boundary_iou"), difference_table(study, baseline, "boundary_iou")]
    if any(study.scores(label, None, "boundary_iou") for label in study.labels):
        blocks.append(details("Boundary IoU, and the differences in it", "\n\n".join(borders)))
    judged = [label for label in study.labels if name == "slimseg" and label.startswith(JUDGED)]
    heading = f"By fold: {name}, `{study.network}`{share}, protocol `{study.protocol}`"
    targets = [target(study, baseline, label) for label in judged]
    return Section(heading, [*blocks, source(study.records)], targets)


def _published(study: Study) -> bool:
    return any("published_val" in values for record in study.records for values in record["metrics"].values())


def of_fold(study: Study, label: str, width: str | None, fold: str, metric: str = "miou") -> float | None:
    """Percent on a fold, the mean over its seeds."""
    found = [score for (where, _), score in study.scores(label, width, metric).items() if where == fold]
    return mean(found) if found else None


def average(study: Study, label: str, width: str | None, metric: str = "miou") -> float | None:
    """The mean over the folds; None unless all are there."""
    found = [of_fold(study, label, width, fold, metric) for fold in study.folds]
    return None if None in found else mean(score for score in found if score is not None)


def gain(study: Study, baseline: str, label: str, width: str | None, metric: str = "miou") -> Difference | None:
    """Points above the baseline, over the folds and seeds that both have."""
    return difference(list(study.gains(label, baseline, width, metric).values()))


def score_table(study: Study, *, every_width: bool = False, metric: str = "miou") -> str:
    """A line per label (and width): each fold, their mean, published val if there is such of the metric, seeds."""
    several = len(study.widths) > 1
    beside = metric == "miou" and _published(study)
    places: list[str | None] = [*study.widths] if every_width else [None]
    what = ["width"] if every_width else ["widths"] if several else []
    lines = []
    for label in study.labels:
        for width in places:
            scores = study.scores(label, width, metric)
            if every_width and not scores:
                continue
            numbers = [of_fold(study, label, width, fold, metric) for fold in study.folds]
            numbers.append(average(study, label, width, metric))
            if beside:
                published = study.scores(label, width, "published_val").values()
                numbers.append(mean(published) if published else None)
            seeds = ", ".join(map(str, sorted({seed for _, seed in scores})))
            place = [width or ("average" if several else "")] if what else []
            shown = [NONE if number is None else f"{number:.2f}" for number in numbers]
            lines.append([names_of(study).get(label, label), *place, *shown, seeds or "incomplete"])
    return table(["", *what, *study.folds, "mean", *["published val"] * beside, "seeds"], lines)


def difference_table(study: Study, baseline: str, metric: str = "miou") -> str:
    """A line per label other than the baseline, a column per width and one for their average."""
    places: list[str | None] = [*study.widths, *([None] if len(study.widths) > 1 else [])]
    lines = []
    for label in study.labels:
        gains = [gain(study, baseline, label, width, metric) for width in places]
        pairs = dict.fromkeys(found.pairs for found in gains if found is not None)
        if pairs:
            shown = [NONE if found is None else str(found) for found in gains]
            lines.append([names_of(study).get(label, label), *shown, "/".join(map(str, pairs))])
    return table(["", *(f"width {width}" if width else "average" for width in places), "n"], lines)


def target(study: Study, baseline: str, label: str) -> Target:
    """Of a label of the SlimSeg table; open unless it shares every fold at every width with the baseline."""
    shared = set(study.scores(label, None)) & set(study.scores(baseline, None))
    gains = {f"width {width}": gain(study, baseline, label, width) for width in study.widths}
    gains["average"] = gain(study, baseline, label, None)
    means = {place: None if found is None else round(found.mean, 2) for place, found in gains.items()}
    if {fold for fold, _ in shared} != set(study.folds):
        means["average"] = None
    pairs = min((found.pairs for found in gains.values() if found is not None), default=0)
    name = names_of(study).get(label, label)
    return gain_target(name, means, f"; average {gains['average']}, n = {pairs}")
