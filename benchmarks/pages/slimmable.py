"""Is one network at four widths as good as four networks? A section per protocol and model, from the SlimSeg table.

Usage:
    >>> sections = slimmable_sections()
"""

from __future__ import annotations

from statistics import mean

from rows import read_protocols

from litheseg.report.plots import FrontierPoint
from pages.studies import WIDTHS, Scores, Study, read_studies, read_table, rounded
from pages.writer import NONE, Section, Target, cell, curve_plot, source, table

__all__ = ["AVERAGE_GAIN", "GOALS", "gain_target", "names_of", "slimmable_sections", "slimmable_studies"]

METRICS = {
    "miou": "**mIoU**, percent; in brackets the gain over the separate networks, of the same seeds",
    "boundary_iou": "**Boundary IoU**, percent",
    "band_miou": "**mIoU within 3 pixels of a label border**, percent",
    "train_ce": "**Cross entropy on the training views** in the last epoch, x 100: how well the labels were fitted",
}
BASELINE = "(a) independent"
GOALS = ("(e) + boundary band", "(e) + boundary head")
AVERAGE_GAIN = 1.0  # mIoU points that these must win on average
ACCURACY = ("camvid", "ddrnet", 68.0)  # protocol, model, mIoU at width 1
DRAWN = (BASELINE, "(b) slimmable", *GOALS)  # all would hide each other


def names_of(study: Study) -> dict[str, str]:
    """What the labels of a table's records are called on pages."""
    return dict((study.table or {}).get("names", {}))


def slimmable_studies() -> list[Study]:
    """Every protocol without folds and every model of the table, finished or not."""
    content = read_table("slimseg")
    found = {(study.protocol, study.network): study for study in read_studies("slimseg")}
    wanted = [name for name, protocol in read_protocols().items() if not protocol.folds and "-few" not in name]
    return [
        found.get((name, model), Study(name, model, [], table=content))
        for name in wanted
        for model in content["models"]
        if not name.endswith("-short") or (name, model) in found
    ]


def slimmable_sections() -> list[Section]:
    """Of what has a finished row; what has none is listed at the end."""
    studies = slimmable_studies()
    sections = [_section(study) for study in studies if study.records]
    waiting = [f"- `{study.network}`, protocol `{study.protocol}`" for study in studies if not study.records]
    return [*sections, *([Section("Not run yet", ["\n".join(waiting)])] if waiting else [])]


def _section(study: Study) -> Section:
    blocks = []
    for metric, text in METRICS.items():
        blocks += [text, metric_table(study, metric, with_minutes=metric == "miou")]
    blocks += ["**Cost** of the extracted networks", cost_table(study), source(study.records)]
    curves = _curves(study)
    title = f"{study.network}, protocol {study.protocol}, validation"
    plots = {
        f"slimseg-{study.protocol}-{study.network}": ("mIoU against MACs at four widths", curve_plot(curves, title))
    }
    heading = f"One network beside four: `{study.network}`, protocol `{study.protocol}`"
    return Section(heading, blocks, targets(study), plots if curves else {})


def all_labels(study: Study) -> list[str]:
    """Of the table's rows, finished or not."""
    return sorted({row["label"] for row in [*study.rows, *study.records]})


def metric_table(study: Study, metric: str = "miou", *, with_minutes: bool = True) -> str:
    """A line per form of training, a column per width, gains over the separate networks in brackets."""
    head = ["", *(f"width {width}" for width in WIDTHS), "average", *(["minutes"] if with_minutes else []), "seeds"]
    names, lines = names_of(study), []
    for label in all_labels(study):
        cells = [cell(*_pair(study, label, width, metric)) for width in (*WIDTHS, None)]
        complete = _minutes(study, label)
        if with_minutes:
            cells.append(f"{mean(complete.values()):.0f}" if complete else NONE)
        lines.append([names.get(label, label), *cells, _state(study, label, complete)])
    return table(head, lines)


def _pair(study: Study, label: str, width: str | None, metric: str) -> tuple[Scores, Scores]:
    own, other = (study.scores(name, width, metric, WIDTHS) for name in (label, BASELINE))
    return own, {} if label == BASELINE else {pair: own[pair] - other[pair] for pair in own if pair in other}


def _minutes(study: Study, label: str) -> dict[int, float]:
    """Training minutes by seed, summed over the label's rows; of the seeds that have all of them."""
    wanted = {row["id"] for row in study.rows if row["label"] == label}
    found: dict[int, dict[str, float]] = {}
    for record in study.of(label):
        found.setdefault(record["seed"], {})[record["id"]] = record["minutes"]
    return {seed: sum(parts.values()) for seed, parts in sorted(found.items()) if wanted <= set(parts)}


def _state(study: Study, label: str, complete: dict[int, float]) -> str:
    """The seeds that are done, or what is missing."""
    done = len(study.of(label))
    if complete or not done:
        return ", ".join(map(str, complete)) or "not run yet"
    return f"{done} of {sum(row['label'] == label for row in study.rows)} runs"


def _cost(study: Study, width: str, name: str) -> int | None:
    """Parameters or MACs of a width, from the newest row that has it."""
    found = [record["metrics"][width][name] for record in study.records if name in record["metrics"].get(width, {})]
    return found[-1] if found else None


def cost_table(study: Study) -> str:
    """Parameters and MACs per width."""
    lines = []
    for name, label, unit in (("params", "parameters, M", 1e6), ("macs", "MACs at the training size, G", 1e9)):
        costs = [_cost(study, width, name) for width in WIDTHS]
        lines.append([label, *(NONE if cost is None else f"{cost / unit:.3f}" for cost in costs)])
    return table(["", *(f"width {width}" for width in WIDTHS)], lines)


def _curves(study: Study) -> dict[str, list[FrontierPoint]]:
    """Mean score against MACs, by form of training."""
    curves: dict[str, list[FrontierPoint]] = {}
    for label in (label for label in DRAWN if study.of(label)):
        for width in WIDTHS:
            scores, macs = study.scores(label, width), _cost(study, width, "macs")
            if scores and macs is not None:
                point = FrontierPoint(float(width), macs, mean(scores.values()) / 100)
                curves.setdefault(names_of(study).get(label, label), []).append(point)
    return curves


# --- targets ---------------------------------------------------------------------------------------------------------


def targets(study: Study) -> list[Target]:
    """Of the forms with a boundary term; and the accuracy that the full protocol is to reach."""
    found = []
    for label in GOALS:
        gains = {f"width {width}": rounded(_pair(study, label, width, "miou")[1]) for width in WIDTHS}
        gains["average"] = rounded(_pair(study, label, None, "miou")[1])
        found.append(gain_target(names_of(study).get(label, label), gains))
    protocol, model, wanted = ACCURACY
    if (study.protocol, study.network) == (protocol, model):
        means = {label: mean(scores.values()) for label in study.labels if (scores := study.scores(label))}
        best = max(means, key=lambda label: means[label], default=None)
        detail = "" if best is None else f"{means[best]:.2f} by {names_of(study).get(best, best)}"
        reached = None if best is None else means[best] >= wanted
        found.append(Target(f"at least {wanted:g} mIoU at width 1", reached, detail))
    return found


def gain_target(name: str, gains: dict[str, float | None], detail: str = "") -> Target:
    """At or above the separate networks at every width, and enough above them on average."""
    text = f"{name}: at or above separate networks at every width, and at least {AVERAGE_GAIN:+.1f} mIoU on average"
    known = {place: gain for place, gain in gains.items() if gain is not None}
    if len(known) < len(gains):
        return Target(text, None, "rows are missing")
    reached = known["average"] >= AVERAGE_GAIN and all(gain >= 0 for gain in known.values())
    return Target(text, reached, ", ".join(f"{place} {gain:+.2f}" for place, gain in known.items()) + detail)
