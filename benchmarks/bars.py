"""A picture of one number for each of several names, as horizontal bars; the first is what the others are held against.

Usage:
    >>> bars("methods.png", {"labels alone": 31.2, "MGD": 40.5}, label="mIoU, %", title="1/16 labelled")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from litheseg.files import atomic_path

__all__ = ["bars"]

_COLOR, _FIRST, _GREY = "#0072B2", "#555555", "#aaaaaa"


def bars(path: str | Path, values: Mapping[str, float], *, label: str, title: str) -> None:
    """Draw one bar per name, from top to bottom as they come, with a line at the first one's value.

    Args:
        path: the figure, .png.
        values: by name; at least one.
        label: what they are, with the unit.
        title: above the figure.
    """
    figure = Figure(figsize=(7, 0.9 + 0.32 * len(values)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = [_FIRST, *[_COLOR] * (len(values) - 1)]
    drawn = axes.barh(list(values), list(values.values()), color=colors, height=0.65)
    axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=9, color=_FIRST)
    axes.axvline(next(iter(values.values())), color=_GREY, linewidth=1, linestyle="--", zorder=0)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes.set_xlabel(label, color=_FIRST)
    axes.tick_params(colors=_FIRST, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_GREY)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=144, facecolor="white", metadata={"Software": None})
