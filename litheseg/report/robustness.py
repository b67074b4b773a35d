"""The figures and the page of a robustness card; its tables are in `robustness_tables`.

Usage:
    >>> card = measure_robustness({"street": "model.safetensors"}, "data/street")
    >>> write_robustness("robustness.html", card)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from litheseg.evaluation.robustness import RobustnessCard
from litheseg.report.card import Section
from litheseg.report.html import Page, ReportFigure, write_page
from litheseg.report.robustness_plots import corruption_curves, corruption_gallery, reliability_diagram, risk_coverage
from litheseg.report.robustness_tables import Rows, card_rows, measured_part, robustness_blocks

__all__ = ["robustness_figures", "write_robustness"]

_HEADING = "Corruptions and confidence"


def robustness_figures(folder: Path, rows: Rows) -> list[ReportFigure]:
    """Draw what there is into a folder.

    Args:
        folder: for the files.
        rows: of `card_rows` or `recorded_robustness`.
    """
    return _corruption_figures(folder, rows) + _confidence_figures(folder, rows)


def write_robustness(
    path: str | Path, card: RobustnessCard, *, image: np.ndarray | None = None, command: str = ""
) -> None:
    """Write a page with a card's tables and figures.

    Args:
        path: the page, .html.
        card: what was measured.
        image: uint8 H W 3, shown under each corruption; None for no such pictures.
        command: the shell command, for the page.

    Raises:
        LithesegError: the page cannot be written.
    """
    rows = card_rows(card)
    with tempfile.TemporaryDirectory() as scratch:
        figures = robustness_figures(Path(scratch), rows)
        if image is not None and card.corruptions:
            middle = card.strengths[len(card.strengths) // 2]
            file = Path(scratch) / "gallery.png"
            corruption_gallery(file, image, middle, card.corruptions)
            caption = f"One of the images, and each corruption in strength {middle}."
            figures.append(ReportFigure(file, caption, heading="What the networks saw"))
        models = ", ".join(dict.fromkeys(network.model for network in card.networks))
        section = Section("Robustness", robustness_blocks(rows, str(card)))
        page = Page(f"Robustness of {models}", figures=figures, sections=(section,), command=command)
        write_page(path, page)


def _corruption_figures(folder: Path, rows: Rows) -> list[ReportFigure]:
    """MIoU under each corruption, of the networks that were measured in the same ones as the first."""
    drawn = {name: row for name, row in rows.items() if row.get("corruptions")}
    if not drawn:
        return []
    first = next(iter(drawn.values()))
    alike = {
        name: row
        for name, row in drawn.items()
        if row["strengths"] == first["strengths"] and [*row["corruptions"]] == [*first["corruptions"]]
    }
    curves = {name: {kind: entry["miou"] for kind, entry in row["corruptions"].items()} for name, row in alike.items()}
    worst = {
        name: {kind: entry["worst_iou"] for kind, entry in row["corruptions"].items()} for name, row in alike.items()
    }
    clean = {name: row["clean_miou"] for name, row in alike.items()}
    path = folder / "corruptions.png"
    corruption_curves(path, curves, clean, first["strengths"], worst)
    caption = (
        "mIoU under each corruption; strength 0 is the images as they are, 5 the worst. Hollow and dotted: the IoU of "
        "the worst class."
    )
    said = "; ".join(
        f"{name}: {100 * row['clean_miou']:.1f} %, {100 * row['miou']:.1f} %" for name, row in alike.items()
    )
    return [ReportFigure(path, caption, f"mIoU as they are and corrupted. {said}", _HEADING)]


def _confidence_figures(folder: Path, rows: Rows) -> list[ReportFigure]:
    """Reliability, and risk against coverage, of the networks whose confidence is known."""
    errors = {name: measured_part(row, "confidence", "ece") for name, row in rows.items()}
    sure = {name: rows[name] for name, ece in errors.items() if ece is not None}
    if not sure:
        return []
    panels = {"images as they are": {name: row["confidence"]["reliability"] for name, row in sure.items()}}
    if all(row.get("shifted") for row in sure.values()):
        panels["corrupted"] = {name: row["shifted"]["reliability"] for name, row in sure.items()}
    reliability_diagram(folder / "reliability.png", panels)
    risk_coverage(folder / "risk.png", {name: row["confidence"]["risk"] for name, row in sure.items()})
    caption = "How often pixels are right, against how sure they are. Larger dots are of more pixels."
    said = "; ".join(f"{name} {100 * ece:.1f} %" for name, ece in errors.items() if ece is not None)
    risk = (
        "The share of wrong pixels among the most confident ones. Dotted: if all errors were among the least confident "
        "pixels. A flat line would be a confidence that knows nothing."
    )
    return [
        ReportFigure(folder / "reliability.png", caption, f"{caption} Calibration error: {said}", _HEADING),
        ReportFigure(folder / "risk.png", risk, heading=_HEADING),
    ]
