"""Figures of a robustness card: accuracy under each corruption, reliability, risk against coverage, what was shown.

Inputs are numbers by the name of a network, as `litheseg.evaluation.robustness.NetworkRobustness.to_dict` has them.

Usage:
    >>> risk_coverage("risk.png", {"street 1 fp32": [(0.5, 0.01), (1.0, 0.08)]})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from litheseg.errors import LithesegError
from litheseg.evaluation.corruptions import CORRUPTIONS, corrupt
from litheseg.report.canvas import GREY, add_axes, line_style, save_figure

__all__ = ["corruption_curves", "corruption_gallery", "reliability_diagram", "risk_coverage"]

_COLUMNS = 5
_DASHED = (0, (4, 3))
Points = Sequence[Sequence[float]]


def corruption_curves(
    path: str | Path,
    curves: Mapping[str, Mapping[str, Sequence[float | None]]],
    clean: Mapping[str, float],
    strengths: Sequence[int],
    worst: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None,
) -> None:
    """Draw one panel per corruption: mIoU against strength, one line per network, from the clean images at 0 on.

    The worst class is hollow and dotted, below.

    Args:
        path: the figure, .png or .svg.
        curves: network -> corruption -> mIoU in [0, 1] at each strength; the same corruptions for all.
        clean: network -> mIoU of the images as they are.
        strengths: of the corruptions.
        worst: as `curves`, the IoU of the worst class; None for none.

    Raises:
        LithesegError: no networks or no corruptions, or another suffix.
    """
    names = list(next(iter(curves.values()), {}))
    if not names:
        raise LithesegError("there are no corruptions to draw; measure at least one")
    rows = math.ceil(len(names) / _COLUMNS)
    figure = Figure(figsize=(2.5 * min(_COLUMNS, len(names)) + 0.6, 2.1 * rows + 0.6), layout="constrained")
    top = 100 * max([0.0, *(value for value in clean.values() if math.isfinite(value))])
    for place, name in enumerate(names):
        edge = place % _COLUMNS == 0
        axes = add_axes(figure, name, "", "mIoU (%)" if edge else "", (rows, min(_COLUMNS, len(names)), place + 1))
        for index, (network, lines) in enumerate(curves.items()):
            values = [math.nan if value is None else 100 * value for value in (clean[network], *lines[name])]
            style = line_style(index) | {"markersize": 4}
            axes.plot([0, *strengths], values, label=network, **style)
            if worst is not None:
                values = [math.nan if value is None else 100 * value for value in worst[network][name]]
                hollow = {"linestyle": (0, (1, 2)), "linewidth": 1, "markerfacecolor": "white", "markersize": 3}
                axes.plot(strengths, values, **style | hollow)
        axes.set_ylim(0, 1.08 * top or 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(4, len(curves)),
        frameon=False,
        fontsize=9,
    )
    save_figure(figure, path)


def reliability_diagram(path: str | Path, panels: Mapping[str, Mapping[str, Points]]) -> None:
    """Draw how often pixels are right against how sure they are; on the diagonal a confidence can be believed.

    Args:
        path: the figure, .png or .svg.
        panels: title -> network -> bins: mean confidence, share that is right, share of all pixels. Larger dots are of
            more pixels.

    Raises:
        LithesegError: nothing to draw, or another suffix.
    """
    if not any(points for lines in panels.values() for points in lines.values()):
        raise LithesegError("there is no confidence to draw; give networks with logits")
    figure = Figure(figsize=(4.4 * len(panels), 4.3), layout="constrained")
    for place, (title, lines) in enumerate(panels.items()):
        axes = add_axes(
            figure, title, "confidence", "" if place else "share that is right", (1, len(panels), place + 1)
        )
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=_DASHED, linewidth=1)
        for index, (network, points) in enumerate(lines.items()):
            sure, right, share = zip(*points, strict=True)
            style = line_style(index)
            axes.plot(sure, right, label=network, **style | {"marker": ""})
            sizes = [12 + 160 * math.sqrt(part) for part in share]
            axes.scatter(sure, right, s=sizes, color=style["color"], marker=style["marker"], linewidths=0)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        axes.text(0.03, 0.95, "too modest", color=GREY, fontsize=8)
        axes.text(0.99, 0.03, "too sure", color=GREY, fontsize=8, ha="right")
        axes.legend(frameon=False, fontsize=8, loc="center left")
    save_figure(figure, path)


def risk_coverage(path: str | Path, curves: Mapping[str, Points]) -> None:
    """Draw the error that is left among the most confident pixels, against how many of them are kept.

    Args:
        path: the figure, .png or .svg.
        curves: network -> (coverage, error) from low coverage to 1, each in [0, 1].

    Raises:
        LithesegError: nothing to draw, or another suffix.
    """
    if not any(curves.values()):
        raise LithesegError("there is no risk to draw; give networks with logits")
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = add_axes(figure, "", "pixels kept, the most confident first (%)", "of these, wrong (%)")
    for index, (network, points) in enumerate(curves.items()):
        style = line_style(index) | {"markersize": 4, "markevery": 2}
        axes.plot([100 * cover for cover, _ in points], [100 * risk for _, risk in points], label=network, **style)
        error = points[-1][1]
        kept = np.linspace(0.01, 1, 100)
        best = 100 * np.maximum(0, kept - (1 - error)) / kept  # as many wrong ones as do not fit anywhere else
        axes.plot(100 * kept, best, color=style["color"], linewidth=0.9, linestyle=(0, (1, 2)))
    axes.plot([], [], color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="if all errors came last")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    save_figure(figure, path)


def corruption_gallery(path: str | Path, image: np.ndarray, strength: int, names: Sequence[str] = ()) -> None:
    """Draw an image as it is and under each corruption.

    Args:
        path: the figure, .png or .svg.
        image: uint8 H W 3.
        strength: of the corruptions, 1 to 5.
        names: of the corruptions; empty for all.
    """
    chosen = list(names or CORRUPTIONS)
    columns = min(_COLUMNS, 1 + len(chosen))
    rows = math.ceil((1 + len(chosen)) / columns)
    shape = image.shape[0] / image.shape[1]
    figure = Figure(figsize=(2.6 * columns, rows * (2.6 * shape + 0.3)), layout="constrained")
    for place, name in enumerate(["as it is", *chosen]):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(corrupt(image, name, strength) if place else image, interpolation="antialiased")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    save_figure(figure, path, dpi=100)
