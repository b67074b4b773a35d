"""What a robustness card says in tables and words, of what was just measured or of a model file's header.

Usage:
    >>> card = measure_robustness({"street": "model.safetensors"}, "data/street")
    >>> robustness_table(card_rows(card)).head[:3]
    ('network', 'mIoU (%)', 'worst class (%)')
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from litheseg.bundle.header import BundleHeader
from litheseg.tables import Table, filled_table, percent

if TYPE_CHECKING:
    from litheseg.evaluation.robustness import RobustnessCard

__all__ = [
    "Rows",
    "card_rows",
    "corruption_table",
    "measured_part",
    "recorded_robustness",
    "robustness_blocks",
    "robustness_table",
]

Rows = Mapping[str, Mapping[str, Any]]
"""By the name of a network what `NetworkRobustness.to_dict` gives."""

_MEANING = (
    "Corruptions after ImageNet-C (Hendrycks and Dietterich, 2019), with parameters of our own; scores are means over "
    "all of them and their strengths, and the worst class is that of the lowest mean IoU. ECE is the mean distance "
    "between confidence and share of right pixels, on the images as they are and on corrupted ones of middle strength. "
    "Errors found: the share of all errors that lie among the 10 % least confident pixels (10 % would be chance)."
)


def card_rows(card: RobustnessCard) -> dict[str, dict[str, Any]]:
    """What tables and figures take, of a card; what names have in common is left out where there is more than one."""
    parts = [(network.model, f"width {network.width:g}", network.precision) for network in card.networks]
    differing = [at for at in range(3) if at == 1 or len({part[at] for part in parts}) > 1]
    return {
        ", ".join(part[at] for at in differing): network.to_dict()
        for part, network in zip(parts, card.networks, strict=True)
    }


def recorded_robustness(header: BundleHeader) -> dict[str, dict[str, Any]]:
    """What a model file's header has of `header_robustness`, the widest first; what is no such entry is left out."""
    found = {}
    for width, entry in sorted(header.metrics.items(), key=lambda item: -float(item[0])):
        entries = entry.get("robustness") if isinstance(entry, Mapping) else None
        for precision, values in (entries if isinstance(entries, Mapping) else {}).items():
            if isinstance(values, Mapping) and _is_whole(values):
                found[f"width {float(width):g}, {precision}"] = dict(values)
    return found


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether an entry of a header, which may come from elsewhere, has the numbers that figures take."""
    try:
        scores = [
            score
            for entry in row["corruptions"].values()
            for score in (*entry["miou"], *entry["worst_iou"])
            if score is not None
        ]
        lengths = {len(entry[name]) for entry in row["corruptions"].values() for name in ("miou", "worst_iou")}
        parts = [row[name] for name in ("confidence", "shifted") if row[name] is not None]
        numbers = [number for part in parts for point in part["reliability"] + part["risk"] for number in point]
        pairs = all(len(point) == 2 for part in parts for point in part["risk"])
        triples = all(len(point) == 3 for part in parts for point in part["reliability"])
        sure = all(part["risk"] and part["reliability"] for part in parts)
        known = [row["clean_miou"], *(() if row["miou"] is None else (row["miou"],)), *scores, *numbers]
        return pairs and triples and sure and lengths <= {len(row["strengths"])} and all(map(math.isfinite, known))
    except (KeyError, TypeError, AttributeError):
        return False


def robustness_table(rows: Rows) -> Table:
    """One row a network, in percent; columns without values are left out."""
    columns = {
        "mIoU (%)": [percent(row.get("clean_miou")) for row in rows.values()],
        "worst class (%)": [_worst(row.get("clean_worst")) for row in rows.values()],
        "corrupted mIoU (%)": [percent(row.get("miou")) for row in rows.values()],
        "corrupted worst (%)": [_worst(row.get("worst")) for row in rows.values()],
        "ECE (%)": [percent(measured_part(row, "confidence", "ece")) for row in rows.values()],
        "corrupted ECE (%)": [percent(measured_part(row, "shifted", "ece")) for row in rows.values()],
        "errors found (%)": [percent(measured_part(row, "confidence", "caught_10")) for row in rows.values()],
        "corrupted errors found (%)": [percent(measured_part(row, "shifted", "caught_10")) for row in rows.values()],
        "AURC (%)": [percent(measured_part(row, "confidence", "aurc"), 2) for row in rows.values()],
    }
    return filled_table("network", rows, columns)


def corruption_table(rows: Rows) -> Table:
    """One row a corruption: of each network the mIoU over its strengths, and the worst class."""
    names = dict.fromkeys(name for row in rows.values() for name in row.get("corruptions") or {})
    body = []
    for name in names:
        entries = [(row.get("corruptions") or {}).get(name, {}) for row in rows.values()]
        cells = (f"{percent(_mean(entry.get('miou')))} ({_worst(entry.get('worst'))})" for entry in entries)
        body.append((name, *cells))
    return Table(("mIoU and worst class (%)", *rows), tuple(body))


def robustness_blocks(rows: Rows, on: str = "") -> tuple[str | Table, ...]:
    """What a model card or a page says of it.

    Args:
        rows: of `card_rows` or `recorded_robustness`; at least one.
        on: what was measured on; empty for what the rows say.
    """
    where = on or next((str(row["on"]) for row in rows.values() if row.get("on")), "")
    blocks = (f"Measured on {where}. {_MEANING}" if where else _MEANING, robustness_table(rows))
    table = corruption_table(rows)
    return (*blocks, table) if table.rows else blocks


def measured_part(row: Mapping[str, Any], part: str, name: str) -> float | None:
    """A number of a row's confidence; None where there is none.

    Args:
        row: of a network.
        part: "confidence" or "shifted".
        name: such as "ece".
    """
    values = row.get(part)
    value = values.get(name) if isinstance(values, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _mean(values: Any) -> float | None:
    known = [value for value in values or () if isinstance(value, float)]
    return sum(known) / len(known) if known else None


def _worst(worst: Any) -> str:
    return f"{worst[0]} {percent(worst[1])}" if isinstance(worst, (list, tuple)) and len(worst) == 2 else "–"
