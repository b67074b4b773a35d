"""The model card: what a bundle is, its training data, the accuracy and cost of each width, and its limits.

A card is built as `Section`s, so that the Markdown file and the HTML report agree. It holds only what the bundle's
header and the caller's costs give; what is missing is called "not recorded". No weights are loaded. After
"Model Cards for Model Reporting" (Mitchell et al., 2019, section 4).

Usage:
    >>> header = load_bundle("lithe.safetensors").header
    >>> write_text("lithe.md", to_markdown("lithe", card_sections(header, name="lithe", costs=costs)))
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from litheseg.bundle.cross_validation import MEANING, CrossValidated, cross_validated
from litheseg.bundle.verdicts import recorded_iou, verdicts, worst_class
from litheseg.report.robustness_tables import recorded_robustness, robustness_blocks
from litheseg.runtime.latency import Scope
from litheseg.runtime.profiling import Profile
from litheseg.tables import Table, escaped, fenced, filled_table, markdown_table, percent

if TYPE_CHECKING:
    from litheseg.cost.widths import WidthCost
    from litheseg.models.bundle import BundleHeader

__all__ = [
    "Bullets",
    "Code",
    "Section",
    "WidthRow",
    "card_sections",
    "show_worst",
    "to_markdown",
    "width_rows",
    "width_table",
]

_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Bullets:
    """A list of short statements."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Preformatted text; `language` is for Markdown's colouring."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a `str` is a paragraph."""

    heading: str
    blocks: tuple[str | Bullets | Code | Table, ...]


@dataclass(frozen=True)
class WidthRow:
    """One width's accuracy (fractions in [0, 1]) and cost (count, MACs, milliseconds); None: not measured.

    `labels_alone` is the mIoU of the same network without unlabelled images, `checked` what a cross-validation of the
    same training gave, `worst` the name and IoU of the class with
    the lowest one.
    """

    width: float
    miou: float | None = None
    worst: tuple[str, float] | None = None
    labels_alone: float | None = None
    checked: CrossValidated | None = None
    boundary_iou: float | None = None
    params: float | None = None
    macs: float | None = None
    p50_ms: float | None = None


def width_rows(header: BundleHeader, costs: Iterable[Profile | WidthCost] = ()) -> tuple[WidthRow, ...]:
    """Accuracy and cost of each width, the widest first; `costs` take precedence over the header.

    Args:
        header: its ``metrics`` may hold, per width, any of the fields of `WidthRow`.
        costs: counted, or measured on this machine.
    """
    recorded = {float(width): values for width, values in header.metrics.items()}
    measured, iou, checked = {cost.width: cost for cost in costs}, recorded_iou(header), cross_validated(header)
    fields = ("miou", "labels_alone", "boundary_iou", "params", "macs", "p50_ms")
    rows = []
    for width in sorted({*header.available_widths, *recorded, *measured}, reverse=True):
        values = {field: recorded.get(width, {}).get(field) for field in fields}
        if width in measured:
            values |= {field: cost for field, cost in _costs(measured[width]).items() if cost is not None}
        worst = worst_class(header.classes.names, iou[width]) if width in iou else None
        known = {field: _finite(value) for field, value in values.items()}
        rows.append(WidthRow(width, worst=worst, checked=checked.get(width), **known))
    return tuple(rows)


def _costs(cost: Profile | WidthCost) -> dict[str, float | None]:
    p50 = cost.latency[Scope.END_TO_END].percentile(50) if isinstance(cost, Profile) else None
    return {"params": cost.params, "macs": cost.macs, "p50_ms": p50}


def width_table(rows: Sequence[WidthRow]) -> Table:
    """The rows as text; columns without values are left out."""
    columns = [
        ("mIoU (%)", [percent(row.miou) for row in rows]),
        ("worst class (%)", [show_worst(row.worst) for row in rows]),
        ("from labels alone (%)", [percent(row.labels_alone) for row in rows]),
        ("cross-validated (%)", [_show_checked(row.checked) for row in rows]),
        ("boundary IoU (%)", [percent(row.boundary_iou) for row in rows]),
        _scaled("parameters", [row.params for row in rows], "M", "k"),
        _scaled("MACs", [row.macs for row in rows], "G", "M"),
        ("p50 end to end (ms)", [_show(row.p50_ms, 1, 1) for row in rows]),
    ]
    return filled_table("width", [f"{row.width:g}" for row in rows], dict(columns))


def card_sections(
    header: BundleHeader, *, name: str, file: str = "", costs: Iterable[Profile | WidthCost] = ()
) -> tuple[Section, ...]:
    """The card's sections after its title.

    Args:
        header: of the bundle.
        name: of the model, for people.
        file: path or file name of the bundle, for the example; empty: made from `name`.
        costs: counted, or measured on this machine.
    """
    rows = width_rows(header, costs)
    checked, measured = next((row.checked for row in rows if row.checked), None), recorded_robustness(header)
    expected = () if checked is None else (f"Width {rows[0].width:g}: {checked}. {MEANING}",)
    return (
        _what(header, name),
        _loading(header, file or f"{name}.safetensors"),
        Section("Accuracy and cost", (_measured_on(header), width_table(rows), *expected)),
        Section("Classes", (", ".join(header.classes.names),)),
        _data(header),
        Section("Limits", (Bullets(tuple(_limits(header, rows))),)),
        *((Section("Robustness", robustness_blocks(measured)),) if measured else ()),
        *_provenance(header),
    )


def to_markdown(title: str, sections: Iterable[Section]) -> str:
    """A Markdown document; all texts are escaped, so none becomes a heading, a link or HTML."""
    parts = [f"# {escaped(title)}"]
    for section in sections:
        parts += [f"## {escaped(section.heading)}", *(_markdown(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: str | Bullets | Code | Table) -> str:
    match block:
        case Bullets(items):
            return "\n".join(f"- {escaped(item)}" for item in items)
        case Code(text, language):
            return fenced(text, language)
        case Table(head, rows):
            cells = [[escaped(cell) for cell in line] for line in (head, *rows)]
            return markdown_table(cells[0], cells[1:], ["---", *("---:" for _ in head[1:])])
    return escaped(block)


def _what(header: BundleHeader, name: str) -> Section:
    widths = ", ".join(f"{width:g}" for width in header.widths)
    height, width = header.size
    text = (
        f"{name} labels every pixel of an RGB image with one of {header.num_classes} classes. It is a "
        f"{header.architecture['name']}, trained at {height} x {width} pixels; one set of weights runs at these widths "
        f"(fraction of the channels): {widths}."
    )
    extra = ", ".join(f"{width:g}" for width in header.calibrated_widths)
    more = f"Widths that were not trained but had their batch-norm statistics measured afterwards: {extra}."
    return Section("What it is", (text, more) if extra else (text,))


def _loading(header: BundleHeader, file: str) -> Section:
    width = min(header.widths)
    code = f"""from litheseg.runtime import Predictor

predict = Predictor({json.dumps(file)}, width={width:g})
mask = predict("image.jpg")  # uint8, the image's own height and width"""
    return Section("How to use it", (Code(code, "python"),))


def _measured_on(header: BundleHeader) -> str:
    split = header.provenance.get("eval_split", "the validation split")
    height, width = header.size
    hardware = header.provenance.get("hardware", _UNKNOWN)
    return (
        f"Accuracy on {split} ({header.provenance.get('data', _UNKNOWN)}). Parameters and MACs (multiply-accumulates "
        f"of one {height} x {width} image) are of the plain model extracted at that width. Latency is of one image; it "
        f"holds for one machine only (hardware: {hardware})."
    )


def _data(header: BundleHeader) -> Section:
    facts = header.provenance
    return Section(
        "Data",
        (
            Bullets(
                (
                    f"data: {facts.get('data', _UNKNOWN)}",
                    f"licence of the data: {facts.get('data_licence', _UNKNOWN)}",
                    f"citation: {facts.get('data_citation', _UNKNOWN)}",
                )
            ),
            "The data's licence may bind this model too; read it before you share or sell what the model predicts.",
        ),
    )


def _limits(header: BundleHeader, rows: Sequence[WidthRow]) -> list[str]:
    """What a user must not expect; the statements follow from the header."""
    height, width = header.size
    limits = [
        "It knows only the classes above: everything else is given one of them, with no warning.",
        f"It saw images of {height} x {width} pixels; other sizes and other cameras shift its accuracy.",
        "It must not be the only safeguard where people can come to harm.",
    ]
    blind = [f"{row.width:g}" for row in rows if row.miou is None]
    if blind:
        limits.append(f"No accuracy was measured at width {', '.join(blind)}.")
    limits += verdicts(header)
    if any(row.boundary_iou is not None for row in rows):
        limits.append("mIoU is ruled by large regions; see boundary IoU for thin objects and outlines.")
    return limits


def _provenance(header: BundleHeader) -> tuple[Section, Section]:
    facts: Mapping[str, Any] = header.provenance
    own = ("data", "data_licence", "data_citation", "class_shares", "class_images")
    items = tuple(f"{key}: {_plain(value)}" for key, value in sorted(facts.items()) if key not in own)
    recipe = yaml.safe_dump(dict(header.recipe), sort_keys=False, allow_unicode=True)
    return (
        Section("Provenance", (Bullets(items or (_UNKNOWN,)),)),
        Section("Recipe", (Code(recipe, "yaml") if header.recipe else _UNKNOWN,)),
    )


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in sorted(value.items()))
    return str(value)


_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def _scaled(name: str, values: Sequence[float | None], large: str, small: str) -> tuple[str, list[str]]:
    """A column in the large unit, or in the small one where two digits of the large one are too coarse."""
    known = [value for value in values if value]
    fine = bool(known) and min(known) < 0.1 * _UNITS[large]
    unit = small if fine else large
    return f"{name} ({unit})", [_show(value, 1 / _UNITS[unit], 1 if fine else 2) for value in values]


def show_worst(worst: tuple[str, float] | None) -> str:
    """Name and IoU in percent, for a table."""
    return "–" if worst is None else f"{worst[0]} {percent(worst[1])}"


def _show_checked(checked: CrossValidated | None) -> str:
    """The mean, and the worst class."""
    return "–" if checked is None else f"{percent(checked.miou)} ({show_worst(checked.worst_class)})"


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _show(value: float | None, scale: float, digits: int) -> str:
    return "–" if value is None else f"{value * scale:.{digits}f}"
