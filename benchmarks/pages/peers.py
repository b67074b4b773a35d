"""How do our widths compare with light networks of other libraries? From peers_time.jsonl and peers_scores.jsonl.

Accuracies are of the networks as deployed, by left-out sequence; a mean is over those sequences on which every network
was scored that was scored at all.

Usage:
    >>> sections = peers_sections()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from records import newest, report, results

from litheseg.report.plots import FrontierPoint, frontier
from pages.writer import NONE, Draw, Section, Target, source, table

__all__ = ["PICTURE", "TARGETS", "headline", "peers_sections", "peers_tables"]

TARGETS = {"share": 1 / 3, "narrow int8": 0.15}
"""At most this share of a peer's time for at least its mIoU; at most this share of LR-ASPP's time."""

PICTURE = "peers"
"""Of both frontiers, in docs/images."""

_LRASPP = "LR-ASPP"
_TITLES = {
    "scored": "As trained and scored: 360x480 images in, networks at 180x240, 360x480 masks out",
    "full": "Networks at 384x480, nothing resized (mIoU as scored above)",
}
Row = Mapping[str, Any]
Scores = Mapping[tuple[str, float], Mapping[str, float]]
"""By network and width: percent of mIoU by runtime and precision."""


@dataclass(frozen=True)
class Point:
    """A network in one precision, in the runtime that is fastest for it.

    Attributes:
        row: the network, as measured.
        runtime: the fastest.
        precision: fp32 or int8.
        ms: of CPU time, end to end, median.
        wall: milliseconds on the wall's clock, likewise.
        miou: percent; None where it was not scored.
    """

    row: Row
    runtime: str
    precision: str
    ms: float
    wall: float
    miou: float | None

    @property
    def name(self) -> str:
        """Ours with their width."""
        return f"{self.row['network']}, width {self.row['width']:g}" if self.row["ours"] else self.row["network"]


# --- what was measured -----------------------------------------------------------------------------------------------


def scores_of(records: Sequence[Row]) -> tuple[Scores, list[str]]:
    """Means over the sequences that all scored networks share, and these sequences."""
    by_fold: dict[tuple[str, float], dict[str, Mapping[str, float]]] = {}
    for found in (record["metrics"] for record in records):
        by_fold.setdefault((found["network"], found["width"]), {})[found["fold"]] = found["miou"]
    folds = sorted(set.intersection(*(set(own) for own in by_fold.values()))) if by_fold else []
    if not folds:
        return {}, []
    return {
        key: {choice: 100 * mean(own[fold][choice] for fold in folds) for choice in own[folds[0]]}
        for key, own in by_fold.items()
    }, folds


def points(rows: Sequence[Row], scores: Scores) -> list[Point]:
    """Every network in each precision, fastest first."""
    return sorted((point for row in rows for point in _points(row, scores)), key=lambda point: point.ms)


def _points(row: Row, scores: Scores) -> Iterator[Point]:
    scored = scores.get((row["network"], row["width"]), {})
    for precision in dict.fromkeys(choice.split()[1] for choice in row["times"]):
        own = {choice: times for choice, times in row["times"].items() if choice.endswith(precision)}
        choice = min(own, key=lambda name: own[name]["cpu"])
        fp32 = next((value for name, value in scored.items() if name.endswith("fp32")), None)
        miou = fp32 if precision == "fp32" else scored.get(choice)  # float32 is the same in all runtimes
        yield Point(row, choice.split()[0], precision, own[choice]["cpu"], own[choice]["p50"], miou)


# --- sections --------------------------------------------------------------------------------------------------------


def peers_sections() -> list[Section]:
    """A section per setting; none without the file."""
    content = report(results("peers_time"))
    if not content:
        return []
    scores, folds = scores_of(newest(results("peers_scores")))
    text = (
        "From image to mask, batch 1, one thread, medians in turns: each network through the fastest runtime for it, "
        "in float32 and in int8. What counts is CPU time; on the wall's clock other programs take their share. Ours in "
        f"bold; {_accuracy(content, folds)}"
    )
    sections = []
    for name, title in _TITLES.items():
        found = points(content[name], scores)
        section = Section(title, [text, _table(found), _refused(content[name])], _targets(found))
        if name == "scored" and (draw := _picture(found)):
            section.plots = {PICTURE: ("mIoU against time, ours and the peers", draw)}
        sections.append(section)
    return [*sections, Section("Origin of both tables", [source(content)])]


def headline() -> str:
    """Scored networks, each in its faster precision, fastest first; what is missing, without any."""
    content = report(results("peers_time"))
    scores, folds = scores_of(newest(results("peers_scores")))
    if not content or not folds:
        return "Accuracies beside those of other libraries are not measured yet: their rows are not trained."
    text = (
        "One training at four widths beside light networks of other libraries: from a 360x480 image to its mask, "
        f"CPU time of one thread, on {content['hardware']}, commit {content['commit'][:12]}. Ours in bold; "
        f"{_accuracy(content, folds)}"
    )
    return f"{text}\n\n{_table(points(content['scored'], scores), short=True)}"


def peers_tables(settings: Mapping[str, Sequence[Row]], records: Sequence[Row]) -> str:
    """The tables and targets of settings, for the console."""
    scores, _ = scores_of(records)
    found = {name: points(rows, scores) for name, rows in settings.items()}
    return "\n\n".join(str(Section(_TITLES[name], [_table(own)], _targets(own))) for name, own in found.items())


def _accuracy(content: Mapping[str, Any], folds: Sequence[str]) -> str:
    if not folds:
        return "nothing is trained by this protocol yet, so there is no mIoU."
    return (
        f"mIoU as deployed, of networks trained by protocol `{content['protocol']}`, each without the sequence that it "
        f"is scored on ({', '.join(folds)})."
    )


def _table(found: Sequence[Point], short: bool = False) -> str:
    """Fastest first; in short: scored networks only, the faster precision of each, and fewer columns."""
    head = ["network", "precision", "runtime", "CPU ms", "mIoU", "params, M", "MACs, G", "wall ms"]
    shown = len(head) - short
    lines, seen = [], set()
    for point in found:
        if short and (point.miou is None or point.name in seen):
            continue
        seen.add(point.name)
        name = f"**{point.name}**" if point.row["ours"] else point.name
        miou = NONE if point.miou is None else f"{point.miou:.2f}"
        cost = [f"{point.row['params'] / 1e6:.2f}", f"{point.row['macs'] / 1e9:.2f}", f"{point.wall:.2f}"]
        lines.append([name, point.precision, point.runtime, f"{point.ms:.2f}", miou, *cost][:shown])
    return table(head[:shown], lines, left=(0, 1, 2))


def _refused(rows: Sequence[Row]) -> str:
    """What could not run, with the reason."""
    lines = [
        f"- {row['network']}, width {row['width']:g}, {choice}: {reason.splitlines()[0]}"
        for row in rows
        for choice, reason in row["refused"].items()
    ]
    return "Left out:\n\n" + "\n".join(lines) if lines else ""


# --- targets ---------------------------------------------------------------------------------------------------------


def _targets(found: Sequence[Point]) -> list[Target]:
    return [_ahead(found), _faster(found), _narrow(found)]


def _ahead(found: Sequence[Point]) -> Target:
    text = "our most accurate network above the most accurate peer"
    best = {
        ours: max((point.miou for point in found if point.miou is not None and point.row["ours"] == ours), default=None)
        for ours in (True, False)
    }
    if best[True] is None or best[False] is None:
        return Target(text, None, "rows are not trained")
    return Target(text, best[True] > best[False], f"{best[True]:.2f} and {best[False]:.2f}")


def _faster(found: Sequence[Point]) -> Target:
    """Of every peer, as fast as it goes: the fastest of ours that is at least as accurate."""
    text = "for every peer one of ours with at least its mIoU in at most a third of its time"
    shares, details = [], []
    for name in dict.fromkeys(point.name for point in found if not point.row["ours"] and point.miou is not None):
        peer = next(point for point in found if point.name == name and point.miou is not None)
        rivals = [p for p in found if p.row["ours"] and p.miou is not None and p.miou >= (peer.miou or 0)]
        shares.append(rivals[0].ms / peer.ms if rivals else None)
        how = (
            f"{shares[-1]:.2f} by {rivals[0].name}, {rivals[0].precision}" if rivals else "none of ours is as accurate"
        )
        details.append(f"{name}: {how}")
    if not details or not any(point.row["ours"] and point.miou is not None for point in found):
        return Target(text, None, "rows are not trained")
    return Target(text, all(share is not None and share <= TARGETS["share"] for share in shares), "; ".join(details))


def _narrow(found: Sequence[Point]) -> Target:
    limit = TARGETS["narrow int8"]
    text = f"width 0.25 in int8 at most {limit:g} of LR-ASPP's time"
    peer = min((point.ms for point in found if point.name.startswith(_LRASPP)), default=None)
    narrow = [point for point in found if point.row["ours"] and point.row["width"] == 0.25]
    own = next((point for point in narrow if point.precision == "int8"), None)
    if peer is None or own is None:
        return Target(text, None, "not measured")
    return Target(text, own.ms / peer <= limit, f"{own.ms / peer:.2f} by {own.row['network']}")


# --- picture ---------------------------------------------------------------------------------------------------------


def _picture(found: Sequence[Point]) -> Draw | None:
    """Each family of ours as a line over its widths, the peers as one frontier; None unless both are scored."""
    curves: dict[str, list[FrontierPoint]] = {}
    seen = set()
    for point in found:
        if point.miou is None or point.name in seen:
            continue
        seen.add(point.name)
        ours = point.row["ours"]
        label = "" if ours else point.row["network"].partition(" (")[0]
        place = FrontierPoint(point.row["width"], point.ms, point.miou / 100, label)
        curves.setdefault(point.row["network"] if ours else "other libraries", []).append(place)
    if len(curves) < 2 or "other libraries" not in curves:
        return None
    ordered = {name: curves[name] for name in sorted(curves, key="other libraries".__eq__)}
    return partial(
        frontier,
        curves=ordered,
        cost_label="milliseconds of CPU time from image to mask",
        score_label="mIoU, %",
        title="Accuracy against time, on the same machine in turns",
        log_x=True,
    )
