"""The accuracy part of gradual grouping for docs/results.md, from the committed results file.

One table per protocol: a row for each way to a light network, a column for each network; the targets, computed; a
picture of accuracy against MACs; and widths with and without grouping. It trains and measures nothing.

Usage:
    >>> sections, plots = grouping_pages(Path("."))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from page_parts import NONE, Draw, frontier_plot, markdown, provenance
from protocols import read_protocols

from litheseg.report.plots import FrontierPoint

__all__ = ["grouping_block", "grouping_pages"]

NETWORKS = {
    "erfnet": "ERFNet",
    "erfnet-d": "D",
    "erfnet-d*": "D*",
    "erfnet-dg2*": "DG2*",
    "erfnet-dg4*": "DG4*",
    "erfnet-dg8*": "DG8*",
}
COMPARED = ("erfnet-d*", "erfnet-dg2*", "erfnet-dg4*")
BASELINE, DENSE, SLIM, SLIM_GRADUAL = "from scratch", "dense", "slimmable", "slimmable + gradual"
GAIN = 1.0  # mIoU points over training from scratch, on average over COMPARED
LOSSES = {"erfnet-d*": 2.0, "erfnet-dg4*": 5.0}  # mIoU points below the dense network, at most
GRADUAL = "gradual (cosine)"
DRAWN = (BASELINE, "one-shot", GRADUAL, f"{GRADUAL} + assignment")
HEAD = "Gradual grouping: accuracy"

Curves = dict[str, list[FrontierPoint]]


@dataclass(frozen=True)
class Outcomes:
    """The finished rows of one protocol."""

    protocol: str
    records: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Fit for a file name."""
        return f"grouping-{self.protocol}"

    def labels(self) -> list[str]:
        """Ways to a light network, in the order of the table."""
        return list(dict.fromkeys(r["label"] for r in self.records if r["label"] not in (DENSE, SLIM, SLIM_GRADUAL)))

    def of(self, label: str, model: str) -> list[Mapping[str, Any]]:
        """All seeds of one row."""
        return [record for record in self.records if (record["label"], record["model"]) == (label, model)]

    def score(self, label: str, model: str, width: str = "1") -> float | None:
        """Mean mIoU over the seeds, in percent; None where nothing was measured."""
        found = [100 * record["metrics"][width]["miou"] for record in self.of(label, model)]
        return mean(found) if found else None

    def gain(self, label: str, model: str) -> float | None:
        """Points above training from scratch, over the seeds that both have."""
        pairs = {r["seed"]: r["metrics"]["1"]["miou"] for r in self.of(BASELINE, model)}
        found = [
            100 * (r["metrics"]["1"]["miou"] - pairs[r["seed"]]) for r in self.of(label, model) if r["seed"] in pairs
        ]
        return mean(found) if found else None

    def average_gain(self, label: str) -> float | None:
        """Over the compared networks; None unless all of them are there."""
        gains = [self.gain(label, model) for model in COMPARED]
        return None if None in gains else mean(gain for gain in gains if gain is not None)


def grouping_pages(root: Path) -> tuple[list[str], dict[Path, Draw]]:
    """Sections in Markdown, and plots: path -> what draws it."""
    sections: list[str] = []
    plots: dict[Path, Draw] = {}
    for outcomes in _read(root):
        picture = ""
        if curves := _curves(outcomes):
            path = root / f"docs/images/{outcomes.name}.png"
            plots[path] = frontier_plot(curves, f"ERFNet's family, protocol {outcomes.protocol}, validation")
            picture = f"![mIoU against MACs, by the way of training](images/{outcomes.name}.png)"
        heading = f"## {HEAD}, protocol `{outcomes.protocol}`"
        blocks = [
            heading,
            _verdicts(outcomes),
            picture,
            _method_table(outcomes),
            _slim_table(outcomes),
            provenance(outcomes.records),
        ]
        sections.append("\n\n".join(block for block in blocks if block))
    notes = root / "benchmarks/grouping.md"
    if sections and notes.exists():
        sections.append(notes.read_text().strip())
    return sections, plots


def grouping_block(root: Path) -> str:
    """The most telling protocol in short, for the README; empty where nothing was run."""
    found = _read(root)
    if not found:
        return ""
    best = _most_telling(found)
    title = (
        f"Gradual grouping on ERFNet's family, protocol `{best.protocol}`, gain over training from scratch in brackets:"
    )
    return "\n\n".join((title, _method_table(best), _verdicts(best)))


def _most_telling(found: Sequence[Outcomes]) -> Outcomes:
    """The first, which is the longest, that has gradual beside from scratch for all networks; else the fullest."""
    compared = [outcomes for outcomes in found if outcomes.average_gain(GRADUAL) is not None]
    return compared[0] if compared else max(found, key=lambda outcomes: len(outcomes.records))


def _read(root: Path) -> list[Outcomes]:
    path = root / "benchmarks/results/grouping.jsonl"
    if not path.exists():
        return []
    order = [row["id"] for row in yaml.safe_load((root / "benchmarks/grouping.yaml").read_text())["rows"]]
    records = {record["key"]: record for record in map(json.loads, filter(None, path.read_text().splitlines()))}
    listed = sorted(records.values(), key=lambda record: order.index(record["id"]))
    protocols = read_protocols(root / "benchmarks/protocols.yaml")
    found = [Outcomes(protocol, [r for r in listed if r["protocol"] == protocol]) for protocol in protocols]
    # Those with folds have a table of their own.
    return [outcomes for outcomes in found if outcomes.records and not protocols[outcomes.protocol].folds]


def _method_table(outcomes: Outcomes) -> str:
    models = [model for model in NETWORKS if any(record["model"] == model for record in outcomes.records)]
    lines = [["", *(NETWORKS[model] for model in models), "average gain"], ["---", *["---:"] * (len(models) + 1)]]
    costs = [_cost(outcomes, model) for model in models]
    lines.append(["parameters, M", *(f"{params / 1e6:.3f}" for params, _ in costs), ""])
    lines.append(["MACs at the training size, G", *(f"{macs / 1e9:.3f}" for _, macs in costs), ""])
    for label in [DENSE, *outcomes.labels()]:
        average = outcomes.average_gain(label) if label not in (DENSE, BASELINE) else None
        cells = [
            _cell(outcomes.score(label, model), outcomes.gain(label, model) if label != BASELINE else None)
            for model in models
        ]
        lines.append([label, *cells, NONE if average is None else f"{average:+.2f}"])
    return markdown(lines)


def _cost(outcomes: Outcomes, model: str) -> tuple[int, int]:
    """Parameters and MACs of the network as it ends."""
    own = [record for record in outcomes.records if record["model"] == model]
    plain = [record for record in own if record["label"] in (BASELINE, DENSE)]
    metrics = (plain or own)[0]["metrics"]["1"]
    return metrics["params"], metrics["macs"]


def _cell(score: float | None, gain: float | None) -> str:
    if score is None:
        return NONE
    return f"{score:.2f}" + (f" ({gain:+.2f})" if gain is not None else "")


def _verdicts(outcomes: Outcomes) -> str:
    lines = []
    for label in outcomes.labels():
        if label.startswith("gradual") and (average := outcomes.average_gain(label)) is not None:
            met = "met" if round(average, 2) >= GAIN else "missed"
            lines.append(
                f"- {label}: at least {GAIN:+.1f} mIoU over from scratch on average: **{met}** ({average:+.2f})"
            )
    dense = outcomes.score(DENSE, "erfnet")
    for model, allowed in LOSSES.items():
        found = {label: score for label in outcomes.labels() if (score := outcomes.score(label, model)) is not None}
        found = {label: score for label, score in found.items() if label.startswith("gradual")}
        if dense is None or not found:
            lines.append(f"- {NETWORKS[model]} within {allowed:g} mIoU of ERFNet: **open** (rows are missing)")
            continue
        best = max(found, key=lambda label: found[label])
        loss = dense - found[best]
        met = "met" if round(loss, 2) <= allowed else "missed"
        lines.append(f"- {NETWORKS[model]} within {allowed:g} mIoU of dense ERFNet: **{met}** ({-loss:+.2f} by {best})")
    if (gains := _slim_gains(outcomes)) is not None:
        met = "met" if all(round(gain, 2) >= 0 for gain in gains.values()) else "missed"
        shown = ", ".join(f"width {width} {gain:+.2f}" for width, gain in gains.items())
        lines.append(f"- gradual + slimmable at or above slimmable alone at equal MACs: **{met}** ({shown})")
    return "Targets:\n\n" + "\n".join(lines)


def _slim_points(outcomes: Outcomes, label: str) -> dict[str, tuple[int, float]]:
    """Width -> MACs and mIoU in percent, of the first seed's row."""
    found = next((record for record in outcomes.records if record["label"] == label), None)
    metrics = found["metrics"] if found else {}
    return {width: (values["macs"], 100 * values["miou"]) for width, values in metrics.items()}


def _slim_gains(outcomes: Outcomes) -> dict[str, float] | None:
    """Points above the slimmable network's curve, read at the same MACs between its widths (linear in log MACs).

    Widths whose MACs lie below the curve's end are compared with its end.
    """
    alone, grouped = (_slim_points(outcomes, label) for label in (SLIM, SLIM_GRADUAL))
    if not alone or not grouped:
        return None
    macs, scores = zip(*sorted(alone.values()), strict=True)
    return {w: score - float(np.interp(np.log(m), np.log(macs), scores)) for w, (m, score) in grouped.items()}


def _slim_table(outcomes: Outcomes) -> str:
    tables = {label: points for label in (SLIM, SLIM_GRADUAL) if (points := _slim_points(outcomes, label))}
    if not tables:
        return ""
    widths = sorted(next(iter(tables.values())), key=float, reverse=True)
    lines = [["`ddrnet`", *(f"width {width}" for width in widths)], ["---", *["---:"] * len(widths)]]
    for label, points in tables.items():
        lines.append([f"{label}: mIoU", *(f"{points[width][1]:.2f}" for width in widths)])
        lines.append([f"{label}: MACs, G", *(f"{points[width][0] / 1e9:.3f}" for width in widths)])
    return markdown(lines)


def _curves(outcomes: Outcomes) -> Curves:
    curves: Curves = {}
    for label in (DENSE, *DRAWN):
        for model in NETWORKS:
            score = outcomes.score(label, model)
            if score is not None:
                point = FrontierPoint(1.0, _cost(outcomes, model)[1], score / 100, NETWORKS[model])
                curves.setdefault(label, []).append(point)
    return curves
