"""The style of all figures, and how they are written.

Figures are built without pyplot, so nothing is kept between calls and no display is needed. Lines differ in colour
(Okabe and Ito's palette), marker and dash, so none of the three is needed to tell them apart.

Usage:
    >>> figure = Figure(figsize=(7, 4.6), layout="constrained")
    >>> axes = add_axes(figure, "CamVid", "epoch", "mIoU (%)")
    >>> save_figure(figure, "curves.svg")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from litheseg.errors import LithesegError
from litheseg.files import atomic_path

__all__ = ["GREY", "add_axes", "line_color", "line_style", "save_figure"]

GREY = "#555555"
"""Of text and lines that are not data."""
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_METADATA: dict[str, dict[str, str | None]] = {".png": {"Software": None}, ".svg": {"Date": None}}


def add_axes(figure: Figure, title: str, x_label: str, y_label: str, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    """Axes in the style of all figures: two thin lines as a frame, a pale grid."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x_label, color=GREY)
    axes.set_ylabel(y_label, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("#aaaaaa")
    axes.tick_params(which="both", colors=GREY, labelsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def line_color(index: int) -> str:
    """Of the index-th line."""
    return _COLORS[index % len(_COLORS)]


def line_style(index: int) -> dict[str, Any]:
    """What `Axes.plot` takes for the index-th line."""
    return {
        "color": line_color(index),
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 1.8,
        "markersize": 6,
    }


def save_figure(figure: Figure, path: str | Path, dpi: int = 144) -> None:
    """Write the figure, whole or not at all; the same figure gives the same bytes.

    Raises:
        LithesegError: a suffix that is neither .png nor .svg, or a file that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _METADATA:
        raise LithesegError(f"{path}: a figure is written as {' or '.join(_METADATA)}; choose one of these suffixes")
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "litheseg"}):
        figure.savefig(temporary, dpi=dpi, facecolor="white", metadata=_METADATA[suffix])
