"""What was measured, made readable: figures, the model card, and one self-contained HTML report.

The room knows numbers, arrays and bundle headers; it trains, measures and loads nothing. `plots` draws figures,
`pixels` paints masks and errors over an image, `card` says what a bundle is, `html` puts it all into one file.

Usage:
    >>> frontier("frontier.png", {"lithe": points}, cost_label="MACs", score_label="mIoU (%)")
    >>> figure = ReportFigure("frontier.png", caption="Accuracy against cost")
    >>> write_page("report.html", Page("lithe", figures=(figure,), card=card_sections(header, name="lithe")))
"""

from __future__ import annotations

from litheseg.report.card import Section, Table, card_sections, model_card, width_rows, width_table, write_card
from litheseg.report.html import Page, ReportFigure, render, write_page
from litheseg.report.pixels import error_map, overlay
from litheseg.report.plots import FrontierPoint, GalleryRow, History, frontier, gallery, learning_curves, read_history

__all__ = [
    "FrontierPoint",
    "GalleryRow",
    "History",
    "Page",
    "ReportFigure",
    "Section",
    "Table",
    "card_sections",
    "error_map",
    "frontier",
    "gallery",
    "learning_curves",
    "model_card",
    "overlay",
    "read_history",
    "render",
    "width_rows",
    "width_table",
    "write_card",
    "write_page",
]
