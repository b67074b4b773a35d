"""The few-labels part of docs/results.md, from the committed results file.

For each protocol and student: targets, computed; a picture; every method at every labelled share; one network of four
widths beside networks of one; what each part of MGD adds; and which rows are missing. It trains and measures nothing.

Usage:
    >>> sections, plots = mgd_pages(Path("."))
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import yaml
from bars import bars
from page_parts import NONE, Draw, cell, frontier_plot, markdown, provenance
from protocols import read_protocols

from litheseg.data.splits import partition
from litheseg.report.plots import FrontierPoint

__all__ = ["mgd_block", "mgd_pages"]

WIDTHS = ("1", "0.75", "0.5", "0.25")
BASELINE, MGD, LITHE, SLIM, CPS = "labels alone", "MGD", "lithe", "SlimSeg", "CPS"
PARTS = ("+ pixel level, labelled images", "+ pixel level, unlabelled images", "+ image level")
TEACHERS = {"deep": "MGD, deep teacher only", "wide": "MGD, wide teacher only", "both": MGD}
DISTILLERS = ("KD", "CWD", "pairwise similarity", "intra-class variation")
DRAWN = (BASELINE, "mean teacher", CPS, "UniMatch", "KD", MGD, LITHE)
JUDGED = "1/16"  # the share that the targets are about
LITHE_GAIN = 8.0  # mIoU points over labels alone, where lithe is not above MGD
HEAD = "Few labels"

Scores = dict[int, float]  # by seed
K = TypeVar("K", bound=Hashable)

_METRIC = f"**mIoU**, percent, at full width; in brackets the gain over {BASELINE} with the same seeds"


@dataclass(frozen=True)
class Study:
    """The rows of one protocol and student, finished or not.

    Attributes:
        protocol: a key of protocols.yaml.
        student: a key of the table's students.
        table: the table, as in its YAML.
        records: the student's finished rows and its teachers', as in the results file.
        seen: mIoU on the training images that were used without their masks, percent by a row's key and width.
    """

    protocol: str
    student: str
    table: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    seen: Mapping[tuple[str, str], float]

    @property
    def name(self) -> str:
        """Fit for a file name."""
        return f"mgd-{self.protocol}-{self.student}"

    @property
    def pair(self) -> Mapping[str, Any]:
        """The student's teachers, as in the table."""
        pair: Mapping[str, Any] = self.table["teachers"][self.table["students"][self.student]["teachers"]]
        return pair

    @property
    def shares(self) -> list[str]:
        """Those that have a finished row, fewest labels first."""
        return [share for share in self.table["shares"] if any(r["labelled"] == share for r in self.records)]

    def of(self, label: str, share: str) -> list[Mapping[str, Any]]:
        """The finished rows of a method; those of several widths may be several."""
        return [record for record in self.records if (record["label"], record["labelled"]) == (label, share)]

    def labels(self) -> list[str]:
        """The methods that have a finished row, in the table's order."""
        done = {record["label"] for record in self.records}
        labels = dict.fromkeys(row["label"].format(by=self.pair["by"]) for row in self.table["rows"])
        return [label for label in labels if label in done]

    def scores(self, label: str, share: str, width: str = "1", metric: str = "miou") -> Scores:
        """Percent by seed; empty where nothing was measured."""
        measured = [(r["seed"], r["metrics"].get(width, {}).get(metric)) for r in self.of(label, share)]
        return {seed: 100 * value for seed, value in sorted(pair for pair in measured if pair[1] is not None)}

    def gains(self, label: str, share: str, width: str = "1", metric: str = "miou", *, over: str = BASELINE) -> Scores:
        """Points above another method by seed, of the seeds that both have; empty for the method itself."""
        if label == over:
            return {}
        own, other = (self.scores(name, share, width, metric) for name in (label, over))
        return {seed: own[seed] - other[seed] for seed in own if seed in other}

    def missing(self, share: str) -> list[str]:
        """Ids of the rows without a result, of any seed."""
        done = {record["id"] for record in self.records if record["labelled"] == share}
        rows = [row for row in self.table["rows"] if share != "all" or row.get("labels_only")]
        return [row["id"] for row in rows if row["id"] not in done]

    def images(self, share: str) -> int:
        """Labelled images."""
        every = self.table["images"]
        return every if share == "all" else len(partition(map(str, range(every)), ratio=share).labelled)


def mgd_pages(root: Path) -> tuple[list[str], dict[Path, Draw]]:
    """Sections in Markdown, and plots: path -> what draws it."""
    studies = _read(root)
    if not studies:
        return [], {}
    sections = [_section(study) for study in studies if study.records]
    plots: dict[Path, Draw] = {}
    for study in studies:
        plots |= {root / f"docs/images/{name}.png": draw for name, (_, draw) in _pictures(study).items()}
    waiting = [f"- `{study.student}`, protocol `{study.protocol}`" for study in studies if not study.records]
    if waiting:
        sections.append(f"## {HEAD}: not begun\n\nStudents without a finished row:\n\n" + "\n".join(waiting))
    notes = root / "benchmarks/mgd.md"
    if notes.exists():
        sections.append(notes.read_text().strip())
    return sections, plots


def mgd_block(root: Path) -> str:
    """In short, for the README: of the studies that train longest the one with most rows; empty without rows."""
    begun = [study for study in _read(root) if study.records]
    if not begun:
        return ""
    study = max(begun, key=lambda study: (max(record["steps"] for record in study.records), len(study.records)))
    return "\n\n".join([_title(study), _method_table(study, short=True), _verdicts(study)])


def _title(study: Study) -> str:
    return (
        f"Few labels, student `{study.student}`, protocol `{study.protocol}`: mIoU by the share of the training images "
        "that are labelled, in brackets the gain over labels alone with the same seeds:"
    )


def _read(root: Path) -> list[Study]:
    """Every protocol x student of the table; none without the table."""
    path, results = root / "benchmarks/mgd.yaml", root / "benchmarks/results/mgd.jsonl"
    if not path.exists():
        return []
    table = yaml.safe_load(path.read_text())
    lines = results.read_text().splitlines() if results.exists() else []
    seen = _on_unlabelled_images((root / "benchmarks/results").glob("mgd_diagnosis*.json"))
    records = {record["key"]: record for record in map(json.loads, filter(None, lines))}  # a key's last line counts
    studies = []
    protocols = read_protocols(root / "benchmarks/protocols.yaml")
    for protocol in (name for name in table["steps"] if not protocols[name].folds):
        mine = [record for record in records.values() if record["protocol"] == protocol]
        by = table["teachers_by"].get(protocol, protocol)
        tutors = [record for record in records.values() if record["protocol"] == by and _teaches(record, table)]
        for student, entry in table["students"].items():
            own = [record for record in mine if record["network"] == student and not _teaches(record, table)]
            taught = [record for record in tutors if own and record["network"] == entry["teachers"]]
            studies.append(Study(protocol, student, table, [*own, *taught], seen))
    return studies


def _on_unlabelled_images(diagnoses: Iterable[Path]) -> dict[tuple[str, str], float]:
    """Percent by a row's key and width, of what `mgd_diagnosis.py` has scored; a row's key is its folder's name."""
    seen = {}
    for diagnosis in diagnoses:
        report = json.loads(diagnosis.read_text())
        keys = {"student": report["run"]}
        keys |= {name: Path(report["options"][name]).parent.name for name in ("deep", "wide")}
        for labeller, labels in report.get("labels", {}).items():
            name, _, width = labeller.partition("@")
            seen[keys.get(name, name), width or "1"] = 100 * labels["miou"]
    return seen


def _teaches(record: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    return any(row["id"] == record["id"] and "teacher" in row for row in table["rows"])


def _section(study: Study) -> str:
    heading = f"## {HEAD}: `{study.student}`, protocol `{study.protocol}`"
    pictures = [f"![{text}](images/{name}.png)" for name, (text, _) in _pictures(study).items()]
    blocks = [heading, _verdicts(study), *pictures, _METRIC, _method_table(study)]
    for share in study.shares:
        blocks += [_width_table(study, share), _part_table(study, share), _teacher_table(study, share)]
        blocks += [_seen_table(study, share)]
    blocks += [_missing(study), provenance(study.records)]
    return "\n\n".join(block for block in blocks if block)


# --- tables ----------------------------------------------------------------------------------------------------------


def _share(study: Study, share: str) -> str:
    return f"{share} ({study.images(share)})"


def _method_table(study: Study, short: bool = False) -> str:
    """One row per method, one column per share; in short: teachers, and the methods that pictures show."""
    shares = study.shares
    head = ["", *(_share(study, share) for share in shares), "steps", "minutes", "seeds"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for label in study.labels():
        if short and label not in DRAWN and f"teacher ({study.pair['by']})" not in label:
            continue
        cells = [cell(study.scores(label, share), study.gains(label, share)) for share in shares]
        if label in PARTS or label in list(TEACHERS.values())[:2] or set(cells) == {NONE}:
            continue  # in tables of their own, or at other widths only
        records = [record for share in shares for record in study.of(label, share) if "1" in record["metrics"]]
        steps = ", ".join(sorted({str(record["steps"]) for record in records}))
        seeds = ", ".join(sorted({str(record["seed"]) for record in records}))
        lines.append([label, *cells, steps, f"{mean(record['minutes'] for record in records):.0f}", seeds])
    return markdown(lines)


def _width_table(study: Study, share: str) -> str:
    """Networks of one width beside one network of four; empty without such a network."""
    compared = [label for label in (BASELINE, SLIM, MGD, LITHE) if study.of(label, share)]
    if not {SLIM, LITHE} & set(compared):
        return ""
    lines = [["", *(f"width {width}" for width in WIDTHS)], ["---", *["---:"] * len(WIDTHS)]]
    for metric, name in (("miou", "mIoU"), ("boundary_iou", "boundary IoU")):
        for label in compared:
            pairs = [(study.scores(label, share, w, metric), study.gains(label, share, w, metric)) for w in WIDTHS]
            lines.append([f"{label}: {name}", *(cell(*pair) for pair in pairs)])
    for over in (SLIM, MGD):
        gains = [study.gains(LITHE, share, width, over=over) for width in WIDTHS]
        if any(gains):
            lines.append([f"{LITHE} over {over}: mIoU", *(f"{mean(g.values()):+.2f}" if g else NONE for g in gains)])
    title = f"**Every width** at {_share(study, share)}: {LITHE} and {SLIM} are one network, the others one per width"
    return f"{title}\n\n{markdown(lines)}"


def _part_table(study: Study, share: str) -> str:
    """What each part of MGD adds to those above it; empty where none was run."""
    if not any(study.of(label, share) for label in PARTS):
        return ""
    steps = [(BASELINE, BASELINE), *((label, label) for label in PARTS), (MGD, "+ region level (MGD)")]
    lines = [["", "mIoU", "step"], ["---", "---:", "---:"]]
    for (before, _), (label, shown) in zip([steps[0], *steps], steps, strict=False):
        step = study.gains(label, share, over=before)
        added = f"{mean(step.values()):+.2f}" if step else NONE
        lines.append([shown, cell(study.scores(label, share), study.gains(label, share)), added])
    return f"**What each part adds** at {_share(study, share)}\n\n{markdown(lines)}"


def _teacher_table(study: Study, share: str) -> str:
    """MGD with either teacher and with both; empty where neither was run alone."""
    if not any(study.of(label, share) for label in TEACHERS.values() if label != MGD):
        return ""
    lines = [["", *TEACHERS], ["---", *["---:"] * len(TEACHERS)]]
    cells = [cell(study.scores(label, share), study.gains(label, share)) for label in TEACHERS.values()]
    return f"**Teachers of MGD** at {_share(study, share)}\n\n{markdown([*lines, ['mIoU', *cells]])}"


def _seen_table(study: Study, share: str) -> str:
    """Scores on the unlabelled training images beside those on val; empty where none was measured."""
    found = [
        (study.seen[record["key"], width], 100 * scores["miou"], label if width == "1" else f"{label}, width {width}")
        for label in study.labels()
        for record in study.of(label, share)
        for width, scores in record["metrics"].items()
        if (record["key"], width) in study.seen
    ]
    if not found:
        return ""
    lines = [["", "unlabelled images", "val"], ["---", "---:", "---:"]]
    lines += [[label, f"{seen:.2f}", f"{val:.2f}"] for seen, val, label in sorted(found, reverse=True)]
    title = f"**A second judge** at {_share(study, share)}: mIoU on training images whose masks none of these has used"
    return f"{title}\n\n{markdown(lines)}"


def _missing(study: Study) -> str:
    """Which rows have no result."""
    lines = []
    for share in study.table["shares"]:
        missing = study.missing(share)
        if share not in study.shares:
            lines.append(f"- {share}: none of its rows has been run")
        elif missing:
            lines.append(f"- {share}: {', '.join(f'`{row}`' for row in missing)}")
    return "Not run yet:\n\n" + "\n".join(lines) if lines else ""


# --- targets ---------------------------------------------------------------------------------------------------------


def _verdicts(study: Study) -> str:
    """Each target, and whether it is met, computed."""
    lines = [_gain_verdict(study), _rival_verdict(study), _width_verdict(study)]
    return f"Targets, at {_share(study, JUDGED)}:\n\n" + "\n".join(f"- {line}" for line in lines if line)


def _state(reached: Sequence[bool | None]) -> str:
    """None is what cannot be told yet."""
    return "missed" if False in reached else "open" if None in reached else "met"


def _mean(gains: Scores) -> float | None:
    """As printed: what reads +0.00 is no gain, and what reads +11.50 is enough."""
    return round(mean(gains.values()), 2) if gains else None


def _shown(gains: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {'not run yet' if gain is None else f'{gain:+.2f}'}" for name, gain in gains.items())


def _gain_verdict(study: Study) -> str:
    wanted = study.table["students"][study.student].get("gain")
    if wanted is None:
        return ""
    gain = _mean(study.gains(MGD, JUDGED))
    reached = None if gain is None else gain >= wanted
    return f"{MGD} at least {wanted:+.1f} mIoU over {BASELINE}: **{_state([reached])}** ({_shown({MGD: gain})})"


def _rival_verdict(study: Study) -> str:
    gains = {f"over {rival}": _mean(study.gains(MGD, JUDGED, over=rival)) for rival in (*DISTILLERS, CPS)}
    reached = [None if gain is None else gain > 0 for gain in gains.values()]
    return f"{MGD} above every other distiller, and above {CPS}: **{_state(reached)}** ({_shown(gains)})"


def _width_verdict(study: Study) -> str:
    reached, shown = [], []
    for width in WIDTHS:
        above, gain = (_mean(study.gains(LITHE, JUDGED, width, over=over)) for over in (MGD, BASELINE))
        either = [None if above is None else above > 0, None if gain is None else gain >= LITHE_GAIN]
        reached.append(True if True in either else None if None in either else False)
        known = {f"over {MGD}": above, f"over {BASELINE}": gain}
        known = {name: value for name, value in known.items() if value is not None}
        shown.append(f"width {width}: {_shown(known) or 'not run yet'}")
    target = f"{LITHE} at every width above {MGD} at that width, or at least {LITHE_GAIN:+.1f} over {BASELINE}"
    return f"{target}: **{_state(reached)}** ({'; '.join(shown)})"


# --- pictures --------------------------------------------------------------------------------------------------------


def _pictures(study: Study) -> dict[str, tuple[str, Draw]]:
    """File name -> what it shows, and what draws it."""
    found: dict[str, tuple[str, Draw]] = {}
    where = f"{study.student}, protocol {study.protocol}, validation"
    curves = {label: points for label, points in _by_share(study).items() if points}
    if any(len(points) > 1 for points in curves.values()):
        draw = frontier_plot(curves, where, "labelled images")
        found[study.name] = "mIoU against the number of labelled images", draw
    elif study.shares and len(scores := _by_method(study, study.shares[0])) > 1:
        title = f"{where}, {_share(study, study.shares[0])} labelled, {_seeds(scores.values())}"
        values = {label: mean(own.values()) for label, own in scores.items()}
        found[study.name] = "mIoU of every method", partial(bars, values=values, label="mIoU, %", title=title)
    share = next((share for share in study.shares if study.of(LITHE, share)), None)
    if share and (curves := _by_width(study, share)):
        draw = frontier_plot(curves, f"{where}, {_share(study, share)} labelled")
        found[f"{study.name}-widths"] = "mIoU against MACs at four widths", draw
    return found


def _by_method(study: Study, share: str) -> dict[str, Scores]:
    shown = [label for label in study.labels() if label not in PARTS]
    return _paired({label: study.scores(label, share) for label in shown})


def _by_share(study: Study) -> dict[str, list[FrontierPoint]]:
    """Without names, which would stand beside every point of every method; the axis says it once."""
    curves: dict[str, list[FrontierPoint]] = {label: [] for label in DRAWN}
    for share in study.shares:
        for label, scores in _paired({label: study.scores(label, share) for label in DRAWN}).items():
            curves[label].append(FrontierPoint(1.0, study.images(share), mean(scores.values()) / 100, " "))
    return curves


def _by_width(study: Study, share: str) -> dict[str, list[FrontierPoint]]:
    curves: dict[str, list[FrontierPoint]] = {}
    pairs = itertools.product((BASELINE, SLIM, MGD, LITHE), WIDTHS)
    for (label, width), scores in _paired({pair: study.scores(pair[0], share, pair[1]) for pair in pairs}).items():
        macs = [r["metrics"][width]["macs"] for r in study.of(label, share) if width in r["metrics"]]
        point = FrontierPoint(float(width), macs[-1], mean(scores.values()) / 100)
        curves.setdefault(label, []).append(point)
    return curves


def _paired(scores: Mapping[K, Scores]) -> dict[K, Scores]:
    """Of the seeds that all have who have any: labels differ by seed, so others cannot be compared."""
    found = {name: own for name, own in scores.items() if own}
    seeds = set.intersection(*map(set, found.values())) if found else set()
    return {name: {seed: own[seed] for seed in sorted(seeds)} for name, own in found.items() if seeds}


def _seeds(scores: Iterable[Scores]) -> str:
    own = next(iter(scores))
    return f"seed{'s' * (len(own) > 1)} {', '.join(map(str, own))}"
