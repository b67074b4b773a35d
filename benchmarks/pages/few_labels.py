"""What does a light network learn from few labels, many unlabelled images and teachers? From the few-labels table.

For each protocol and student: the targets; a picture; every method at every labelled share; one network of four widths
beside networks of one; what each part of MGD adds; and which rows are missing.

Usage:
    >>> sections = few_labels_sections()
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import records
from rows import read_protocols

from litheseg.data.sources.splits import partition
from litheseg.report.plots import FrontierPoint
from pages.studies import WIDTHS, Scores, Study, read_table, rounded
from pages.writer import NONE, Draw, Section, Target, bars, cell, curve_plot, source, table

__all__ = ["few_labels_sections"]

BASELINE, MGD, LITHE, SLIM, CPS = "labels alone", "MGD", "lithe", "SlimSeg", "CPS"
PARTS = ("+ pixel level, labelled images", "+ pixel level, unlabelled images", "+ image level")
DISTILLERS = ("KD", "CWD", "pairwise similarity", "intra-class variation")
DRAWN = (BASELINE, "mean teacher", CPS, "UniMatch", "KD", MGD, LITHE)
JUDGED = "1/16"  # the share that the targets are about
LITHE_GAIN = 8.0  # mIoU points over labels alone, where lithe is not above MGD
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Student(Study):
    """The rows of a protocol and student and of its teachers, at all labelled shares.

    Attributes:
        seen: mIoU on the training images that were used without their masks, percent by a row's key and width.
    """

    seen: Mapping[tuple[str, str], float] | None = None

    @property
    def content(self) -> Mapping[str, Any]:
        """The table."""
        assert self.table is not None
        return self.table

    @property
    def shares(self) -> list[str]:
        """Those that have a finished row, fewest labels first."""
        return [share for share in self.content["shares"] if any(r["labelled"] == share for r in self.records)]

    def methods(self) -> list[str]:
        """Those that have a finished row, in the table's order."""
        done = {record["label"] for record in self.records}
        by = self.content["teachers"][self.content["students"][self.network]["teachers"]]["by"]
        return [label for label in dict.fromkeys(row["label"].format(by=by) for row in self.rows) if label in done]

    def at(self, share: str) -> str:
        """A share, with its number of labelled images."""
        return f"{share} ({self.images(share)})"

    def images(self, share: str) -> int:
        """Labelled images."""
        every = self.content["images"]
        return every if share == "all" else len(partition(map(str, range(every)), ratio=share).labelled)

    def cell(self, label: str, share: str, width: str = "1", metric: str = "miou") -> str:
        """Score, and gain over labels alone."""
        own = self.where(labelled=share)
        return cell(own.scores(label, width, metric), own.gains(label, BASELINE, width, metric))


def few_labels_sections() -> list[Section]:
    """A section per protocol and student with a finished row, and the students without one."""
    studies = few_labels_studies()
    sections = [_section(study) for study in studies if study.records]
    waiting = [f"- `{study.network}`, protocol `{study.protocol}`" for study in studies if not study.records]
    return [*sections, *([Section("Students without a finished row", ["\n".join(waiting)])] if waiting else [])]


def few_labels_studies() -> list[Student]:
    """Every protocol without folds and every student of the table."""
    content = read_table("mgd")
    seen = _on_unlabelled_images(records.RESULTS.glob("mgd_diagnosis*.jsonl"))
    teaching = {row["id"] for row in content["rows"] if "teacher" in row}
    rows, studies, protocols = records.newest(records.results("mgd")), [], read_protocols()
    for protocol in (name for name in content["steps"] if not protocols[name].folds):
        mine = [row for row in rows if row["protocol"] == protocol and row["id"] not in teaching]
        by = content["teachers_by"].get(protocol, protocol)
        teachers = [row for row in rows if row["protocol"] == by and row["id"] in teaching]
        for student, entry in content["students"].items():
            own = [row for row in mine if row["network"] == student]
            pair = [row for row in teachers if own and row["network"] == entry["teachers"]]
            studies.append(Student(protocol, student, [*own, *pair], table=content, seen=seen))
    return studies


def _on_unlabelled_images(diagnoses: Iterable[Path]) -> dict[tuple[str, str], float]:
    """Percent by a row's key and width, of what `measure/mgd_diagnosis.py` has scored; a row's key is its folder."""
    seen = {}
    for report in map(records.report, diagnoses):
        keys = {"student": report["run"]}
        keys |= {name: Path(report["options"][name]).parent.name for name in ("deep", "wide")}
        for labeller, labels in report.get("labels", {}).items():
            name, _, width = labeller.partition("@")
            seen[keys.get(name, name), width or "1"] = 100 * labels["miou"]
    return seen


def _section(study: Student) -> Section:
    text = f"**mIoU**, percent, at full width; in brackets the gain over {BASELINE} with the same seeds"
    blocks = [text, method_table(study)]
    for share in study.shares:
        blocks += [part(study, share) for part in (width_table, part_table, seen_table)]
    blocks += [missing(study), source(study.records)]
    heading = f"Student `{study.network}`, protocol `{study.protocol}`"
    return Section(heading, blocks, targets(study), pictures(study))


# --- tables ----------------------------------------------------------------------------------------------------------


def method_table(study: Student) -> str:
    """A line per method, a column per share; what has tables of its own, or other widths only, is left out."""
    shares, lines = study.shares, []
    for label in study.methods():
        cells = [study.cell(label, share) for share in shares]
        if label in PARTS or set(cells) == {NONE}:
            continue
        rows = [row for row in study.of(label) if "1" in row["metrics"]]
        steps, seeds = (", ".join(sorted({str(row[name]) for row in rows})) for name in ("steps", "seed"))
        lines.append([label, *cells, steps, f"{mean(row['minutes'] for row in rows):.0f}", seeds])
    return table(["", *map(study.at, shares), "steps", "minutes", "seeds"], lines)


def width_table(study: Student, share: str) -> str:
    """Networks of one width beside one network of four; empty without such a network."""
    own = study.where(labelled=share)
    compared = [label for label in (BASELINE, SLIM, MGD, LITHE) if own.of(label)]
    if not {SLIM, LITHE} & set(compared):
        return ""
    lines = [
        [f"{label}: {name}", *(study.cell(label, share, width, metric) for width in WIDTHS)]
        for metric, name in (("miou", "mIoU"), ("boundary_iou", "boundary IoU"))
        for label in compared
    ]
    for over in (SLIM, MGD):
        gains = [rounded(own.gains(LITHE, over, width)) for width in WIDTHS]
        if any(gain is not None for gain in gains):
            lines.append([f"{LITHE} over {over}: mIoU", *(NONE if gain is None else f"{gain:+.2f}" for gain in gains)])
    title = f"**Every width** at {study.at(share)}: {LITHE} and {SLIM} are one network, the others one per width"
    return f"{title}\n\n{table(['', *(f'width {width}' for width in WIDTHS)], lines)}"


def part_table(study: Student, share: str) -> str:
    """What each part of MGD adds to those above it; empty where none was run."""
    own = study.where(labelled=share)
    if not any(own.of(label) for label in PARTS):
        return ""
    steps, lines = (BASELINE, *PARTS, MGD), []
    for before, label in zip((BASELINE, *steps), steps, strict=False):
        added = rounded(own.gains(label, before))
        shown = "+ region level (MGD)" if label == MGD else label
        lines.append([shown, study.cell(label, share), NONE if added is None else f"{added:+.2f}"])
    return f"**What each part adds** at {study.at(share)}\n\n{table(['', 'mIoU', 'step'], lines)}"


def seen_table(study: Student, share: str) -> str:
    """Scores on the unlabelled training images beside those on val; empty where none was measured."""
    seen, found = study.seen or {}, []
    for label in study.methods():
        for row in study.where(labelled=share).of(label):
            for width, scores in row["metrics"].items():
                if (key := (row["key"], width)) in seen:
                    shown = label if width == "1" else f"{label}, width {width}"
                    found.append((seen[key], 100 * scores["miou"], shown))
    if not found:
        return ""
    lines = [[label, f"{own:.2f}", f"{val:.2f}"] for own, val, label in sorted(found, reverse=True)]
    title = f"**On unlabelled images** at {study.at(share)}: mIoU on training images whose masks none of these has used"
    return f"{title}\n\n{table(['', 'unlabelled images', 'val'], lines)}"


def missing(study: Student) -> str:
    """Which rows have no result, of any seed."""
    lines = []
    for share in study.content["shares"]:
        done = {row["id"] for row in study.where(labelled=share).records}
        rows = [row["id"] for row in study.rows if share != "all" or row.get("labels_only")]
        if not done:
            lines.append(f"- {share}: none of its rows has been run")
        elif waiting := [f"`{row}`" for row in rows if row not in done]:
            lines.append(f"- {share}: {', '.join(waiting)}")
    return "Not run yet:\n\n" + "\n".join(lines) if lines else ""


# --- targets ---------------------------------------------------------------------------------------------------------


def targets(study: Student) -> list[Target]:
    """At the judged share: the paper's gain where it has one, MGD beside its rivals, lithe at every width."""
    at = f" at {study.at(JUDGED)} labels"
    return [*gain_target(study, at), rival_target(study, at), width_target(study, at)]


def _all(reached: Iterable[bool | None]) -> bool | None:
    """None is what cannot be said yet."""
    found = list(reached)
    return False if False in found else None if None in found else True


def _shown(gains: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {'not run yet' if gain is None else f'{gain:+.2f}'}" for name, gain in gains.items())


def gain_target(study: Student, at: str = "") -> list[Target]:
    """None where the paper has no such student."""
    wanted = study.content["students"][study.network].get("gain")
    if wanted is None:
        return []
    gain = rounded(study.where(labelled=JUDGED).gains(MGD, BASELINE))
    reached = None if gain is None else gain >= wanted
    return [Target(f"{MGD} at least {wanted:+.1f} mIoU over {BASELINE}{at}", reached, _shown({MGD: gain}))]


def rival_target(study: Student, at: str = "") -> Target:
    """MGD above all that also distil, and CPS."""
    own = study.where(labelled=JUDGED)
    gains = {f"over {rival}": rounded(own.gains(MGD, rival)) for rival in (*DISTILLERS, CPS)}
    reached = _all(None if gain is None else gain > 0 for gain in gains.values())
    return Target(f"{MGD} above every other distiller, and above {CPS}{at}", reached, _shown(gains))


def width_target(study: Student, at: str = "") -> Target:
    """Lithe, at every width."""
    own, reached, shown = study.where(labelled=JUDGED), [], []
    for width in WIDTHS:
        above, gain = (rounded(own.gains(LITHE, over, width)) for over in (MGD, BASELINE))
        either = [None if above is None else above > 0, None if gain is None else gain >= LITHE_GAIN]
        reached.append(True if True in either else None if None in either else False)
        known = {
            name: value for name, value in ((f"over {MGD}", above), (f"over {BASELINE}", gain)) if value is not None
        }
        shown.append(f"width {width}: {_shown(known) or 'not run yet'}")
    text = f"{LITHE} at every width above {MGD} at that width, or at least {LITHE_GAIN:+.1f} over {BASELINE}{at}"
    return Target(text, _all(reached), "; ".join(shown))


# --- pictures --------------------------------------------------------------------------------------------------------


def pictures(study: Student) -> dict[str, tuple[str, Draw]]:
    """File name -> what it shows, and what draws it."""
    found: dict[str, tuple[str, Draw]] = {}
    name, where = f"mgd-{study.protocol}-{study.network}", f"{study.network}, protocol {study.protocol}, validation"
    curves = {label: points for label, points in by_share(study).items() if points}
    if any(len(points) > 1 for points in curves.values()):
        draw = curve_plot(curves, where, "labelled images")
        found[name] = "mIoU against the number of labelled images", draw
    elif study.shares and len(scores := by_method(study, study.shares[0])) > 1:
        seeds = [seed for _, seed in next(iter(scores.values()))]
        title = (
            f"{where}, {study.at(study.shares[0])} labelled, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        )
        values = {label: mean(own.values()) for label, own in scores.items()}
        found[name] = "mIoU of every method", partial(bars, values=values, label="mIoU, %", title=title)
    share = next((share for share in study.shares if study.where(labelled=share).of(LITHE)), None)
    if share and (curves := by_width(study, share)):
        draw = curve_plot(curves, f"{where}, {study.at(share)} labelled")
        found[f"{name}-widths"] = "mIoU against MACs at four widths", draw
    return found


def by_method(study: Student, share: str) -> dict[str, Scores]:
    """At full width, of the seeds that all have."""
    own = study.where(labelled=share)
    return _paired({label: own.scores(label) for label in study.methods() if label not in PARTS})


def by_share(study: Student) -> dict[str, list[FrontierPoint]]:
    """Without names, which would stand beside every point of every method; the axis says it once."""
    curves: dict[str, list[FrontierPoint]] = {label: [] for label in DRAWN}
    for share in study.shares:
        own = study.where(labelled=share)
        for label, scores in _paired({label: own.scores(label) for label in DRAWN}).items():
            curves[label].append(FrontierPoint(1.0, study.images(share), mean(scores.values()) / 100, " "))
    return curves


def by_width(study: Student, share: str) -> dict[str, list[FrontierPoint]]:
    """One network of four widths beside networks of one."""
    curves: dict[str, list[FrontierPoint]] = {}
    own = study.where(labelled=share)
    pairs = itertools.product((BASELINE, SLIM, MGD, LITHE), WIDTHS)
    for (label, width), scores in _paired({pair: own.scores(*pair) for pair in pairs}).items():
        macs = [row["metrics"][width]["macs"] for row in own.of(label) if width in row["metrics"]]
        point = FrontierPoint(float(width), macs[-1], mean(scores.values()) / 100)
        curves.setdefault(label, []).append(point)
    return curves


def _paired(scores: Mapping[K, Scores]) -> dict[K, Scores]:
    """Of the seeds that all have who have any: labels differ by seed, so others cannot be compared."""
    found = {name: own for name, own in scores.items() if own}
    seeds = set.intersection(*map(set, found.values())) if found else set()
    return {name: {seed: own[seed] for seed in sorted(seeds)} for name, own in found.items() if seeds}
