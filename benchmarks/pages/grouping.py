"""Does gradual grouping pay in accuracy? A section per protocol, from the grouping table.

A line per method, a column per network; the targets; a picture of accuracy against MACs; widths with and without
grouping.

Usage:
    >>> sections = grouping_sections()
"""

from __future__ import annotations

from statistics import mean

import numpy as np
from records import newest, results
from rows import read_protocols

from litheseg.report.plots import FrontierPoint
from pages.studies import Scores, Study, read_table, rounded
from pages.writer import NONE, Section, Target, cell, curve_plot, source, table

__all__ = ["grouping_sections"]

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
DRAWN = (DENSE, BASELINE, "one-shot", GRADUAL, f"{GRADUAL} + assignment")


def grouping_sections() -> list[Section]:
    """Of each protocol without folds that has a finished row."""
    return [_section(study) for study in grouping_studies()]


def grouping_studies() -> list[Study]:
    """All networks of a protocol together, rows in the order of the table."""
    content = read_table("grouping")
    order = [row["id"] for row in content["rows"]]
    records = sorted(newest(results("grouping")), key=lambda record: order.index(record["id"]))
    found = [
        Study(name, "", [record for record in records if record["protocol"] == name], table=content)
        for name, protocol in read_protocols().items()
        if not protocol.folds
    ]
    return [study for study in found if study.records]


def _section(study: Study) -> Section:
    blocks = [method_table(study), _slim_table(study), source(study.records)]
    draw = curve_plot(curves := _curves(study), f"ERFNet's family, protocol {study.protocol}, validation")
    plots = {f"grouping-{study.protocol}": ("mIoU against MACs, by the method of training", draw)}
    return Section(f"Accuracy, protocol `{study.protocol}`", blocks, targets(study), plots if curves else {})


def methods(study: Study) -> list[str]:
    """To a light network, in the order of the table."""
    labels = dict.fromkeys(record["label"] for record in study.records)
    return [label for label in labels if label not in (DENSE, SLIM, SLIM_GRADUAL)]


def average_gain(study: Study, label: str) -> float | None:
    """Points above training from scratch, over the compared networks; None unless all of them are there."""
    gains: list[Scores] = [study.where(model=model).gains(label, BASELINE) for model in COMPARED]
    return mean(mean(gain.values()) for gain in gains) if all(gains) else None


def method_table(study: Study) -> str:
    """A line per method, a column per network, gains over training from scratch in brackets."""
    models = [model for model in NETWORKS if any(record["model"] == model for record in study.records)]
    costs = [_cost(study, model) for model in models]
    lines = [["parameters, M", *(f"{params / 1e6:.3f}" for params, _ in costs), ""]]
    lines.append(["MACs at the training size, G", *(f"{macs / 1e9:.3f}" for _, macs in costs), ""])
    for label in [DENSE, *methods(study)]:
        average = average_gain(study, label)
        own = [study.where(model=model) for model in models]
        cells = [cell(part.scores(label), part.gains(label, BASELINE)) for part in own]
        lines.append([label, *cells, NONE if average is None else f"{average:+.2f}"])
    return table(["", *(NETWORKS[model] for model in models), "average gain"], lines)


def _cost(study: Study, model: str) -> tuple[int, int]:
    """Parameters and MACs of the network as it ends."""
    own = study.where(model=model).records
    plain = [record for record in own if record["label"] in (BASELINE, DENSE)]
    metrics = (plain or own)[0]["metrics"]["1"]
    return metrics["params"], metrics["macs"]


def targets(study: Study) -> list[Target]:
    """Of gradual over from scratch, of light networks beside the dense one, and of widths with groups."""
    found, gradual = [], [label for label in methods(study) if label.startswith("gradual")]
    for label in gradual:
        if (average := average_gain(study, label)) is not None:
            text = f"{label}: at least {GAIN:+.1f} mIoU over from scratch on average"
            found.append(Target(text, round(average, 2) >= GAIN, f"{average:+.2f}"))
    dense = rounded(study.where(model="erfnet").scores(DENSE))
    for model, allowed in LOSSES.items():
        text = f"{NETWORKS[model]} within {allowed:g} mIoU of dense ERFNet"
        scores = {label: mean(own.values()) for label in gradual if (own := study.where(model=model).scores(label))}
        if dense is None or not scores:
            found.append(Target(text, None, "rows are missing"))
            continue
        best = max(scores, key=lambda label: scores[label])
        loss = mean(study.where(model="erfnet").scores(DENSE).values()) - scores[best]
        found.append(Target(text, round(loss, 2) <= allowed, f"{-loss:+.2f} by {best}"))
    if gains := slim_gains(study):
        shown = ", ".join(f"width {width} {gain:+.2f}" for width, gain in gains.items())
        text = "gradual + slimmable at or above slimmable alone at equal MACs"
        found.append(Target(text, all(round(gain, 2) >= 0 for gain in gains.values()), shown))
    return found


# --- widths and groups together --------------------------------------------------------------------------------------


def _slim_points(study: Study, label: str) -> dict[str, tuple[int, float]]:
    """Width -> MACs and mIoU in percent, of the first seed's row."""
    metrics = next((record["metrics"] for record in study.of(label)), {})
    return {width: (values["macs"], 100 * values["miou"]) for width, values in metrics.items()}


def slim_gains(study: Study) -> dict[str, float]:
    """Points above the slimmable network's curve, read at the same MACs between its widths (linear in log MACs).

    Widths whose MACs lie below the curve's end are compared with its end. Empty where either was not run.
    """
    alone, grouped = (_slim_points(study, label) for label in (SLIM, SLIM_GRADUAL))
    if not alone or not grouped:
        return {}
    macs, scores = zip(*sorted(alone.values()), strict=True)
    return {w: score - float(np.interp(np.log(m), np.log(macs), scores)) for w, (m, score) in grouped.items()}


def _slim_table(study: Study) -> str:
    tables = {label: points for label in (SLIM, SLIM_GRADUAL) if (points := _slim_points(study, label))}
    if not tables:
        return ""
    widths = sorted(next(iter(tables.values())), key=float, reverse=True)
    lines = []
    for label, points in tables.items():
        lines.append([f"{label}: mIoU", *(f"{points[width][1]:.2f}" for width in widths)])
        lines.append([f"{label}: MACs, G", *(f"{points[width][0] / 1e9:.3f}" for width in widths)])
    return table(["`ddrnet`", *(f"width {width}" for width in widths)], lines)


def _curves(study: Study) -> dict[str, list[FrontierPoint]]:
    curves: dict[str, list[FrontierPoint]] = {}
    for label in DRAWN:
        for model, name in NETWORKS.items():
            if scores := study.where(model=model).scores(label):
                point = FrontierPoint(1.0, _cost(study, model)[1], mean(scores.values()) / 100, name)
                curves.setdefault(label, []).append(point)
    return curves
