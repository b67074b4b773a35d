"""Figures of a report: accuracy against cost, learning curves, and galleries of predictions.

Every function writes one PNG or SVG (the suffix decides), whole or not at all, in the style of `canvas`. Inputs are
numbers and arrays.

Usage:
    >>> points = [FrontierPoint(0.5, cost=1.2e9, score=0.61), FrontierPoint(1.0, cost=4.7e9, score=0.68)]
    >>> frontier("frontier.png", {"lithe": points}, cost_label="MACs", score_label="mIoU (%)")
    >>> learning_curves("curves.svg", "runs/demo/metrics.csv")
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from litheseg.errors import DataError, LithesegError
from litheseg.masks.classes import IGNORE_INDEX, Classes
from litheseg.masks.pictures import OverlayStyle, overlay
from litheseg.report.canvas import GREY, add_axes, line_color, line_style, save_figure
from litheseg.tables import short_number

__all__ = [
    "ERROR_COLORS",
    "FrontierPoint",
    "GalleryRow",
    "error_map",
    "frontier",
    "gallery",
    "learning_curves",
    "read_history",
]

# They differ in lightness too, so that they stay apart under colour blindness and in print.
ERROR_COLORS: dict[str, tuple[int, int, int]] = {
    "right, at a boundary": (86, 180, 233),
    "wrong": (213, 94, 0),
    "wrong, at a boundary": (240, 228, 66),
    "ignored": (0, 0, 0),
}

_LEGEND_COLUMNS = 6
_MOST_PANELS = 4
_OPACITY = 0.7  # of the colours of classes over an image


@dataclass(frozen=True)
class FrontierPoint:
    """One width of one model: what it costs and how good it is.

    Attributes:
        width: fraction of channels in (0, 1].
        cost: MACs, milliseconds, bytes, ... of one image.
        score: fraction in [0, 1], such as mIoU; drawn in percent.
        name: written beside the point; empty for its width.
        worst: name and IoU of the worst class, drawn hollow below it; None where that is not known.
    """

    width: float
    cost: float
    score: float
    name: str = ""
    worst: tuple[str, float] | None = None


@dataclass(frozen=True)
class GalleryRow:
    """One image of a gallery.

    Attributes:
        image: uint8 H W 3, RGB.
        target: uint8 H W, train ids, 255 = ignored; None if nobody labelled the image.
        predictions: label (such as ``"width 0.5"``) -> uint8 H W; the same labels in every row.
        band: bool H W, true near label borders; None: the error map does not tell borders apart.
        title: printed at the left of the row, such as the image's id.
    """

    image: np.ndarray
    target: np.ndarray | None = None
    predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    band: np.ndarray | None = None
    title: str = ""


def frontier(
    path: str | Path,
    curves: Mapping[str, Sequence[FrontierPoint]],
    *,
    cost_label: str,
    score_label: str,
    title: str = "",
    log_x: bool = False,
    limit: tuple[float, str] | None = None,
) -> None:
    """Draw accuracy against cost, one line per model and one labelled point per width.

    Args:
        path: the figure, .png or .svg.
        curves: name of a model -> its points, in any order.
        cost_label: what the cost is, with its unit.
        score_label: what the score is; scores in [0, 1] are drawn in percent.
        title: above the figure; empty for none.
        log_x: a logarithmic cost axis.
        limit: a cost that is not to be exceeded, drawn as a dashed line, and its name.

    Raises:
        LithesegError: no points, points that are not finite, a cost <= 0 on a logarithmic axis, or another suffix.
    """
    _check_curves(curves, log_x)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = add_axes(figure, title, cost_label, score_label)
    # The best line is labelled above its points and the others below, which keeps labels off the lines between.
    best = max(curves, key=lambda name: max(point.score for point in curves[name]))
    for index, (name, points) in enumerate(curves.items()):
        _frontier_line(axes, index, name, points, above=name == best)
    if limit is not None:
        axes.axvline(limit[0], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, label=limit[1])
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.margins(x=0.08, y=0.14)
    if len(curves) > 1 or limit is not None:
        axes.legend(frameon=False, loc="lower right" if limit is None else "best")
    save_figure(figure, path)


def read_history(path: str | Path) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Read a Lightning ``metrics.csv``; empty cells and values that are not finite are left out.

    Returns:
        ``"epoch"``, or ``"step"`` where there is only one epoch; and by logged name, such as ``val/miou@0.5``, the
        points (epoch or step, mean of the values logged there), ascending.

    Raises:
        DataError: the file is missing, or is not a table with a column ``step`` or ``epoch``.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV log ({error}); give the metrics.csv of a run") from error
    axis = "epoch" if len({row["epoch"] for row in rows if row.get("epoch")}) > 1 else "step"
    if not rows or axis not in rows[0]:
        raise DataError(f"{path}: has no rows, or no column '{axis}'; give the metrics.csv of a run")
    gathered: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        place = _number(row[axis])
        for name in row.keys() - {"epoch", "step", None}:
            value = _number(row[name])
            if place is not None and value is not None:
                gathered[name][place].append(value)
    return axis, {name: [(at, mean(cells[at])) for at in sorted(cells)] for name, cells in gathered.items()}


def learning_curves(path: str | Path, log: str | Path) -> None:
    """Draw a run: one panel per logged quantity, one line per width (``val/miou@0.5`` is `val/miou` at width 0.5).

    Losses come first, then mIoU and the worst class; other quantities as far as there is room.

    Args:
        path: the figure, .png or .svg.
        log: a Lightning ``metrics.csv``.

    Raises:
        LithesegError: no finite values to draw, a log that cannot be read, or another suffix.
    """
    axis, history = read_history(log)
    panels: dict[str, dict[str, Sequence[tuple[float, float]]]] = defaultdict(dict)
    for column in sorted(history, key=_column_order):
        quantity, _, width = column.partition("@")
        panels[quantity][width] = history[column]
    if not panels:
        raise LithesegError("the log holds no finite values to draw; train for at least one logged step")
    names = list(panels)[:_MOST_PANELS]
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.2 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = add_axes(figure, name, axis, "", (rows, columns, index + 1))
        _curve_panel(axes, panels[name], first=1 if axis == "epoch" else 0)
    save_figure(figure, path)


def gallery(path: str | Path, rows: Sequence[GalleryRow], classes: Classes) -> None:
    """Draw one row per image: image, truth, the prediction of each width, and the error map of the first of them.

    Without labels there are no truth and no errors to draw.

    Args:
        path: the figure, .png or .svg.
        rows: the images; at least one, all with the same labels of predictions, and all with truth or none.
        classes: names and colours.

    Raises:
        LithesegError: no rows, arrays that do not fit, or another suffix.
    """
    if not rows:
        raise LithesegError("the gallery has no rows; give at least one image")
    cells = [_gallery_cells(row, classes) for row in rows]
    titles = list(cells[0])
    judged = rows[0].target is not None
    height, width = rows[0].image.shape[:2]
    cell = min(3.2, 14 / len(titles))
    key = 0.24 * (math.ceil(len(classes.names) / _LEGEND_COLUMNS) + judged) + 0.2
    size = (cell * len(titles), len(rows) * cell * height / width + key + 0.5)
    below = (0, key / size[1], 1, 1 - key / size[1])
    layout = ConstrainedLayoutEngine(rect=below, w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=layout)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for index, row in enumerate(rows):
        for axes, title in zip(grid[index], titles, strict=True):
            axes.imshow(cells[index][title], interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[index][0].set_ylabel(row.title, fontsize=8, color=GREY)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    _gallery_legends(figure, classes, key / size[1], judged)
    save_figure(figure, path, dpi=110)


def _gallery_cells(row: GalleryRow, classes: Classes) -> dict[str, np.ndarray]:
    """Title of the column -> picture, uint8 H W 3."""
    style = OverlayStyle(_OPACITY, clear=())
    painted = {label: overlay(row.image, mask, classes, style) for label, mask in row.predictions.items()}
    if row.target is None:
        return {"image": row.image, **painted}
    first = next(iter(row.predictions))
    errors = error_map(row.image, row.predictions[first], row.target, row.band)
    return {
        "image": row.image,
        "truth": overlay(row.image, row.target, classes, style),
        **painted,
        f"errors, {first}": errors,
    }


def error_map(
    image: np.ndarray, prediction: np.ndarray, target: np.ndarray, band: np.ndarray | None = None
) -> np.ndarray:
    """Where a prediction is right (pale grey image), wrong (solid colour) or not judged (black).

    Args:
        image: uint8 H W 3, RGB.
        prediction: integer H W, train ids.
        target: integer H W, train ids; 255 is not judged.
        band: bool H W, true near label borders (`litheseg.losses.boundary.boundary_mask`); it separates
            outline errors from class errors. None: no distinction.

    Returns:
        uint8 H W 3; wrong and ignored pixels have exactly the colours of `ERROR_COLORS`.

    Raises:
        DataError: shapes that do not fit.
    """
    near = np.zeros(target.shape, dtype=bool) if band is None else np.asarray(band, dtype=bool)
    for name, mask in {"prediction": prediction, "target": target, "band": near}.items():
        if mask.shape != image.shape[:2]:
            raise DataError(f"the {name} is {mask.shape}, the image {image.shape[:2]}; resize one of them first")
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    result = np.repeat((120 + 0.5 * grey)[..., None], 3, axis=2)
    right = prediction == target
    edge = right & near
    result[edge] = 0.4 * result[edge] + 0.6 * np.array(ERROR_COLORS["right, at a boundary"])
    result[~right] = ERROR_COLORS["wrong"]
    result[~right & near] = ERROR_COLORS["wrong, at a boundary"]
    result[target == IGNORE_INDEX] = ERROR_COLORS["ignored"]
    return np.rint(result).clip(0, 255).astype(np.uint8)


def _check_curves(curves: Mapping[str, Sequence[FrontierPoint]], log_x: bool) -> None:
    if not curves or not all(curves.values()):
        raise LithesegError("the frontier has no points; give at least one measured width for each model")
    for name, point in [(name, point) for name, points in curves.items() for point in points]:
        if not (math.isfinite(point.cost) and math.isfinite(point.score)):
            raise LithesegError(f"{name}: {point} is not finite; measure it again")
        if log_x and point.cost <= 0:
            raise LithesegError(f"{name}: {point} has no place on a logarithmic cost axis; set log_x=False")


def _frontier_line(axes: Axes, index: int, name: str, points: Sequence[FrontierPoint], above: bool) -> None:
    ordered = sorted(points, key=lambda point: point.cost)
    costs, scores = [point.cost for point in ordered], [100 * point.score for point in ordered]
    axes.plot(costs, scores, label=name, **line_style(index))
    _worst_line(axes, index, ordered)
    for point, cost, score in zip(ordered, costs, scores, strict=True):
        axes.annotate(
            point.name or f"{point.width:g}x",
            (cost, score),
            xytext=(-4, 7) if above else (4, -14),
            textcoords="offset points",
            ha="right" if above else "left",
            fontsize=9,
            color=line_color(index),
        )


def _worst_line(axes: Axes, index: int, points: Sequence[FrontierPoint]) -> None:
    """The worst class of each point, hollow and dotted; its name stands where it changes."""
    known = [(point.cost, *point.worst) for point in points if point.worst is not None]
    if not known:
        return
    style = line_style(index) | {"linestyle": (0, (1, 2)), "linewidth": 1.2, "markerfacecolor": "white"}
    axes.plot([cost for cost, _, _ in known], [100 * iou for _, _, iou in known], **style)
    for place, (cost, name, iou) in enumerate(known):
        if place == 0 or name != known[place - 1][1]:
            text: dict[str, Any] = {
                "textcoords": "offset points",
                "fontsize": 8,
                "color": line_color(index),
            }
            axes.annotate(f"worst: {name}", (cost, 100 * iou), xytext=(4, -12), **text)


def _curve_panel(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], first: int) -> None:
    """Draw one quantity, one line a width (without one: the mean). Lightning counts epochs from 0, people from 1."""
    for index, (width, points) in enumerate(lines.items()):
        style = line_style(index) | {"markersize": 4, "markevery": max(1, len(points) // 8)}
        label = f"{width}x" if width else "mean"
        axes.plot([at + first for at, _ in points], [value for _, value in points], label=label, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(lines):
        axes.legend(frameon=False, fontsize=9, title="width", title_fontsize=9, handlelength=3)


def _gallery_legends(figure: Figure, classes: Classes, share: float, judged: bool) -> None:
    """The classes and, if there are any, the error colours below the images, in `share` of the figure's height."""
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "handlelength": 1.2, "borderaxespad": 0.1}
    top: dict[str, Any] = {"loc": "upper center", "ncols": _LEGEND_COLUMNS, "bbox_to_anchor": (0.5, share)}
    names = [_patch(name, color) for name, color in zip(classes.names, classes.colors, strict=True)]
    figure.legend(handles=names, **top, **style)
    if judged:
        errors = [_patch(name, color) for name, color in ERROR_COLORS.items()]
        figure.legend(handles=errors, loc="lower center", ncols=len(errors), **style)


def _patch(name: str, color: tuple[int, int, int]) -> Patch:
    red, green, blue = color
    return Patch(facecolor=to_hex((red / 255, green / 255, blue / 255)), edgecolor=GREY, linewidth=0.5, label=name)


def _column_order(column: str) -> tuple[int, str, float]:
    """Losses first, then mIoU, then the rest; the widest width first."""
    quantity, _, width = column.partition("@")
    name = quantity.rpartition("/")[2]
    return ({"loss": 0, "miou": 1, "worst": 2}.get(name, 3), quantity, -(_number(width) or 0))


def _number(text: str | None) -> float | None:
    """The finite number that the text holds, if it does."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
