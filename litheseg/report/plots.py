"""Figures of a report: accuracy against cost, learning curves, and galleries of predictions.

Every function writes one PNG or SVG (the suffix decides), whole or not at all. Figures are built without pyplot, so
nothing is kept between calls and no display is needed. Knows nothing of models or training: numbers and arrays come in.
Lines differ in colour (Okabe and Ito's palette), marker and dash, so none of the three is needed to tell them apart.

Usage:
    >>> points = [FrontierPoint(0.5, cost=1.2e9, score=0.61), FrontierPoint(1.0, cost=4.7e9, score=0.68)]
    >>> frontier("frontier.png", {"lithe": points}, cost_label="MACs", score_label="mIoU (%)")
    >>> learning_curves("curves.svg", "runs/demo/metrics.csv")
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from litheseg.errors import DataError, LithesegError
from litheseg.files import atomic_path
from litheseg.masks.classes import Classes
from litheseg.report.pixels import ERROR_COLORS, error_map, overlay
from litheseg.tables import short_number

__all__ = [
    "FrontierPoint",
    "GalleryRow",
    "History",
    "error_map",
    "frontier",
    "gallery",
    "learning_curves",
    "legend",
    "overlay",
    "read_history",
]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_LEGEND_COLUMNS = 6
_GREY = "#555555"
_METADATA: dict[str, dict[str, str | None]] = {".png": {"Software": None}, ".svg": {"Date": None}}


@dataclass(frozen=True)
class History:
    """What a run logged.

    Attributes:
        axis: what the first number of each point counts, ``"epoch"`` or ``"step"``.
        columns: logged name, such as ``val/miou@0.5`` -> its (epoch or step, value) points, ascending, all finite.
    """

    axis: str
    columns: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class FrontierPoint:
    """One width of one model: what it costs and how good it is.

    Attributes:
        width: fraction of channels in (0, 1].
        cost: MACs, milliseconds, bytes, ... of one image.
        score: fraction in [0, 1], such as mIoU; drawn in percent.
        name: written beside the point; empty for its width.
    """

    width: float
    cost: float
    score: float
    name: str = ""


@dataclass(frozen=True)
class GalleryRow:
    """One image of a gallery.

    Attributes:
        image: uint8 H W 3, RGB.
        target: integer H W, train ids, 255 = ignored.
        predictions: label (such as ``"width 0.5"``) -> integer H W; the same labels in every row.
        band: bool H W, true near label borders; None: the error map does not tell borders apart.
        title: printed at the left of the row, such as the image's id.
    """

    image: np.ndarray
    target: np.ndarray
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
    axes = _axes(figure, title, cost_label, score_label)
    # The best line is labelled above its points and the others below, which keeps labels off the lines between.
    best = max(curves, key=lambda name: max(point.score for point in curves[name]))
    for index, (name, points) in enumerate(curves.items()):
        _frontier_line(axes, index, name, points, above=name == best)
    if limit is not None:
        axes.axvline(limit[0], color=_GREY, linestyle=(0, (4, 3)), linewidth=1.2, label=limit[1])
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.margins(x=0.08, y=0.14)
    if len(curves) > 1 or limit is not None:
        axes.legend(frameon=False, loc="lower right" if limit is None else "best")
    _save(figure, path)


def read_history(path: str | Path) -> History:
    """Read a Lightning ``metrics.csv``, each column averaged over an epoch (per step if there is only one epoch).

    Empty cells and values that are not finite are left out.

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
    gathered: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        place = _number(row[axis])
        for name in row.keys() - {"epoch", "step", None}:
            value = _number(row[name])
            if place is not None and value is not None:
                gathered.setdefault(name, {}).setdefault(place, []).append(value)
    means = {name: [(at, float(np.mean(cells[at]))) for at in sorted(cells)] for name, cells in gathered.items()}
    return History(axis, means)


def learning_curves(path: str | Path, history: str | Path | History, *, max_panels: int = 4) -> None:
    """Draw a run: one panel per logged quantity, one line per width (``val/miou@0.5`` is `val/miou` at width 0.5).

    Args:
        path: the figure, .png or .svg.
        history: a Lightning ``metrics.csv``, or what `read_history` returns.
        max_panels: quantities drawn; those named ``loss``, then ``miou``, come first.

    Raises:
        LithesegError: no finite values to draw, a log that cannot be read, or another suffix.
    """
    history = history if isinstance(history, History) else read_history(history)
    panels: dict[str, dict[str, Sequence[tuple[float, float]]]] = {}
    for column in sorted(history.columns, key=_column_order):
        if history.columns[column]:
            quantity, _, width = column.partition("@")
            panels.setdefault(quantity, {})[width] = history.columns[column]
    if not panels:
        raise LithesegError("the log holds no finite values to draw; train for at least one logged step")
    names = list(panels)[:max_panels]
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.2 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = _axes(figure, name, history.axis, "", (rows, columns, index + 1))
        _curve_panel(axes, panels[name], first=1 if history.axis == "epoch" else 0)
    _save(figure, path)


def legend(path: str | Path, classes: Classes, *, columns: int = _LEGEND_COLUMNS) -> None:
    """Draw the classes' colours and names, and nothing else.

    Raises:
        LithesegError: another suffix than .png or .svg.
    """
    rows = math.ceil(len(classes.names) / columns)
    figure = Figure(figsize=(1.6 * min(columns, len(classes.names)), 0.32 * rows + 0.1))
    figure.legend(handles=_class_patches(classes), loc="center", ncols=columns, frameon=False, fontsize=10)
    _save(figure, path)


def gallery(
    path: str | Path, rows: Sequence[GalleryRow], classes: Classes, *, alpha: float = 0.7, errors_of: str = ""
) -> None:
    """Draw one row per image: image, truth, the prediction of each width, and the error map of one of them.

    Args:
        path: the figure, .png or .svg.
        rows: the images; at least one, all with the same labels of predictions.
        classes: names and colours.
        alpha: weight of the colours over the image in [0, 1].
        errors_of: the label whose errors are drawn; empty: the first one.

    Raises:
        LithesegError: no rows, rows that do not match each other, arrays that do not fit, or another suffix.
    """
    labels = _check_rows(rows)
    errors_of = errors_of or labels[0]
    if errors_of not in labels:
        raise LithesegError(f"errors_of is '{errors_of}'; choose from: {', '.join(labels)}")
    titles = ["image", "truth", *labels, f"errors, {errors_of}"]
    height, width = rows[0].target.shape
    cell = min(3.2, 14 / len(titles))
    key = 0.24 * (math.ceil(len(classes.names) / _LEGEND_COLUMNS) + 1) + 0.2
    size = (cell * len(titles), len(rows) * cell * height / width + key + 0.5)
    below = (0, key / size[1], 1, 1 - key / size[1])
    layout = ConstrainedLayoutEngine(rect=below, w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=layout)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for index, row in enumerate(rows):
        _gallery_row(grid[index], row, classes, alpha, errors_of)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    _gallery_legends(figure, classes, key / size[1])
    _save(figure, path, dpi=110)


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
    axes.plot(costs, scores, label=name, **_style(index))
    for point, cost, score in zip(ordered, costs, scores, strict=True):
        axes.annotate(
            point.name or f"{point.width:g}x",
            (cost, score),
            xytext=(-4, 7) if above else (4, -14),
            textcoords="offset points",
            ha="right" if above else "left",
            fontsize=9,
            color=_COLORS[index % len(_COLORS)],
        )


def _curve_panel(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], first: int) -> None:
    """Draw one quantity, one line a width (without one: the mean). Lightning counts epochs from 0, people from 1."""
    for index, (width, points) in enumerate(lines.items()):
        style = _style(index) | {"markersize": 4, "markevery": max(1, len(points) // 8)}
        label = f"{width}x" if width else "mean"
        axes.plot([at + first for at, _ in points], [value for _, value in points], label=label, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(lines):
        axes.legend(frameon=False, fontsize=9, title="width", title_fontsize=9, handlelength=3)


def _gallery_row(cells: np.ndarray, row: GalleryRow, classes: Classes, alpha: float, errors_of: str) -> None:
    masks = [row.target, *row.predictions.values()]
    errors = error_map(row.image, row.predictions[errors_of], row.target, row.band)
    painted = [overlay(row.image, mask, classes, alpha) for mask in masks]
    for axes, pixels in zip(cells, [row.image, *painted, errors], strict=True):
        axes.imshow(pixels, interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    cells[0].set_ylabel(row.title, fontsize=8, color=_GREY)


def _gallery_legends(figure: Figure, classes: Classes, share: float) -> None:
    """The classes and the error colours below the images, in `share` of the figure's height."""
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "handlelength": 1.2, "borderaxespad": 0.1}
    top: dict[str, Any] = {"loc": "upper center", "ncols": _LEGEND_COLUMNS, "bbox_to_anchor": (0.5, share)}
    errors = [_patch(name, color) for name, color in ERROR_COLORS.items()]
    figure.legend(handles=_class_patches(classes), **top, **style)
    figure.legend(handles=errors, loc="lower center", ncols=len(errors), **style)


def _class_patches(classes: Classes) -> list[Patch]:
    return [_patch(name, color) for name, color in zip(classes.names, classes.colors, strict=True)]


def _patch(name: str, color: tuple[int, int, int]) -> Patch:
    red, green, blue = color
    return Patch(facecolor=to_hex((red / 255, green / 255, blue / 255)), edgecolor=_GREY, linewidth=0.5, label=name)


def _check_rows(rows: Sequence[GalleryRow]) -> list[str]:
    """The labels that all rows have."""
    if not rows:
        raise LithesegError("the gallery has no rows; give at least one image")
    labels = list(rows[0].predictions)
    for row in rows:
        given = list(row.predictions)
        if not given or given != labels:
            raise LithesegError(f"row '{row.title}' has predictions {given}; give each row {labels or 'at least one'}")
    return labels


def _axes(figure: Figure, title: str, x_label: str, y_label: str, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    """Axes in the one style of all figures: no frame but two quiet lines, a pale grid."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(x_label, color=_GREY)
    axes.set_ylabel(y_label, color=_GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("#aaaaaa")
    axes.tick_params(which="both", colors=_GREY, labelsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLORS[index % len(_COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 1.8,
        "markersize": 6,
    }


def _column_order(column: str) -> tuple[int, str, float]:
    """Losses first, then mIoU, then the rest; the widest width first."""
    quantity, _, width = column.partition("@")
    name = quantity.rpartition("/")[2]
    return ({"loss": 0, "miou": 1}.get(name, 2), quantity, -(_number(width) or 0))


def _number(text: str | None) -> float | None:
    """The finite number that the text holds, if it does."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _save(figure: Figure, path: str | Path, dpi: int = 144) -> None:
    """Write the figure, whole or not at all; the same figure gives the same bytes."""
    suffix = Path(path).suffix.lower()
    if suffix not in _METADATA:
        raise LithesegError(f"{path}: a figure is written as {' or '.join(_METADATA)}; choose one of these suffixes")
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "litheseg"}):
        figure.savefig(temporary, dpi=dpi, facecolor="white", metadata=_METADATA[suffix])
