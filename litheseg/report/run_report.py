"""The report of a run, and of several bundles side by side: figures, HTML page, model card.

It loads bundles and runs them on a few labelled images; the rest of the package draws and writes. Scores and costs come
from the bundles' headers unless the caller gives new ones.

Usage:
    >>> report_run("runs/slimseg")
    PosixPath('runs/slimseg/report.html')
    >>> write_report(["runs/slimseg/model.safetensors", "runs/supervised/model.safetensors"], output="compare.html")
    PosixPath('compare.html')
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from litheseg.bundle.names import distinct_names
from litheseg.bundle.verdicts import outdone, verdicts
from litheseg.cost.widths import WidthCost, width_costs
from litheseg.data.sources.base import Sample, Source
from litheseg.errors import LithesegError
from litheseg.evaluation.bundle import evaluate_bundle, open_bundle_data
from litheseg.evaluation.robustness import IMAGES, measure_robustness
from litheseg.files import write_text
from litheseg.losses.boundary import boundary_mask
from litheseg.masks.pictures import rgb_view
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.report.card import (
    Section,
    Table,
    WidthRow,
    card_sections,
    show_worst,
    to_markdown,
    width_rows,
    width_table,
)
from litheseg.report.html import Page, ReportFigure, write_page
from litheseg.report.plots import FrontierPoint, GalleryRow, frontier, gallery, learning_curves
from litheseg.report.robustness import robustness_figures
from litheseg.report.robustness_tables import card_rows, recorded_robustness, robustness_blocks
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.profiling import Profile, profile

__all__ = ["report_run", "run_page", "write_report"]

_IMAGES = 4
_BAND = 3  # pixels, as in `litheseg evaluate`


def report_run(
    folder: str | Path,
    *,
    source: Source | None = None,
    costs: Sequence[Profile | WidthCost] = (),
    command: str = "",
    title: str = "",
) -> Path:
    """Write figures, `report.html` and `MODEL_CARD.md` into the folder of a finished run.

    Args:
        folder: of `litheseg.training.train`.
        source: where the pictures come from; None for the data of the run's recipe.
        costs: counted, or measured on this machine.
        command: the shell command that makes the run again.
        title: of the report; empty for the folder's name.

    Returns:
        The HTML report.

    Raises:
        LithesegError: no finished run, or a file that cannot be written.
    """
    folder = Path(folder)
    page = run_page(folder, source=source, costs=costs, command=command, title=title)
    write_text(folder / "MODEL_CARD.md", to_markdown(page.title, page.card))
    write_page(folder / "report.html", page)
    return folder / "report.html"


def run_page(
    folder: Path,
    *,
    source: Source | None = None,
    costs: Sequence[Profile | WidthCost] = (),
    command: str = "",
    title: str = "",
) -> Page:
    """What a report of a finished run says; its figures are drawn into the folder. Arguments as of `report_run`."""
    bundle = load_bundle(folder / "model.safetensors")
    name, header = title or folder.resolve().name, bundle.header
    rows = width_rows(header, costs)
    source = source or open_bundle_data(bundle).source
    figures = _accuracy_figures(folder / "figures", {name: rows}, {name: header.widths})
    if (folder / "metrics.csv").exists():
        learning_curves(folder / "figures" / "curves.png", folder / "metrics.csv")
        figures.append(
            ReportFigure(
                folder / "figures" / "curves.png",
                "Loss, mIoU and the worst class on val, per width.",
                heading="Training",
            )
        )
    figures.append(_pictures(folder / "figures" / "gallery.png", bundle, source))
    figures += robustness_figures(folder / "figures", recorded_robustness(header))
    sections = card_sections(header, name=name, file="model.safetensors", costs=costs)
    return Page(
        name,
        lead=_lead(rows, source),
        warnings=verdicts(header),
        table=width_table(rows),
        figures=figures,
        class_iou={f"width {row.width:g}": iou for row in rows if (iou := _class_iou(bundle, row.width))},
        classes=header.classes,
        card=sections,
        command=command,
    )


def write_report(
    models: Sequence[str | Path],
    *,
    output: str | Path = "report.html",
    data: str | Path | None = None,
    source: str = "auto",
    split: str = "val",
    latency: bool = True,
    robustness: bool = False,
    exports: Sequence[str | Path] = (),
    images: int = IMAGES,
    command: str = "",
) -> Path:
    """Score and time models on the same images, and write one HTML page that sets them side by side.

    Args:
        models: model files of the same classes.
        output: the page, whose name ends in .html.
        data: folder of labelled images; by default what the first model was trained on.
        source: kind of data, a key of `litheseg.data.SOURCES`; auto to detect it.
        split: which images are scored.
        latency: whether to measure milliseconds too.
        robustness: whether to measure all widths on corrupted images, too, and their confidence; takes minutes.
        exports: of the models, to be measured so as well, for instance int8.
        images: for the robustness; at most so many, evenly spread; 0 for all.
        command: the shell command, for the page.

    Returns:
        The page.

    Raises:
        LithesegError: nothing to compare, data that does not fit a model, or a file that cannot be read or written.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise LithesegError(f"{output}: a report is an HTML page; give a name that ends in .html")
    if not models:
        raise LithesegError("no models to compare; give at least one model file")
    bundles = {name: load_bundle(path) for name, path in zip(distinct_names(models), models, strict=True)}
    scored = open_bundle_data(next(iter(bundles.values())), data, source=source, split=split).source
    rows = {name: _measured_rows(bundle, scored, split, latency) for name, bundle in bundles.items()}
    with tempfile.TemporaryDirectory() as scratch:
        trained = {name: bundle.header.widths for name, bundle in bundles.items()}
        figures = _accuracy_figures(Path(scratch), rows, trained)
        for index, (name, bundle) in enumerate(bundles.items()):
            figures.append(_pictures(Path(scratch) / f"gallery{index}.png", bundle, scored, split, f"{name}: "))
        sections = []
        if robustness or exports:
            networks = {**bundles, **dict(zip(distinct_names(exports, taken=bundles), exports, strict=True))}
            card = measure_robustness(networks, scored, split=split, images=images)
            sections.append(Section("Robustness", robustness_blocks(card_rows(card), str(card))))
            figures += robustness_figures(Path(scratch), card_rows(card))
        table = _joined({name: width_table(entry) for name, entry in rows.items()})
        title = "Accuracy and cost of " + ", ".join(rows)
        lead = f"Scored on the same images ({scored.name}, {split}), labels at their own resolution."
        write_page(output, Page(title, lead, table=table, sections=sections, figures=figures, command=command))
    return output


def _measured_rows(bundle: Bundle, source: Source, split: str, latency: bool) -> tuple[WidthRow, ...]:
    scores = evaluate_bundle(bundle, source, split=split).scores
    metrics = {f"{width:g}": score.to_dict() for width, score in scores.items()}
    costs = profile(bundle) if latency else width_costs(bundle)
    return width_rows(replace(bundle.header, metrics=metrics), costs)


def _accuracy_figures(
    folder: Path, rows: Mapping[str, Sequence[WidthRow]], trained: Mapping[str, Sequence[float]]
) -> list[ReportFigure]:
    """Accuracy against MACs, and against milliseconds where they were measured; trained widths by model."""
    costs: tuple[tuple[str, str, str, Callable[[WidthRow], float | None]], ...] = (
        ("frontier.png", "MACs of one image", "multiply-accumulates", lambda row: row.macs),
        ("latency.png", "milliseconds of one image, end to end (p50)", "measured milliseconds", lambda row: row.p50_ms),
    )
    figures = []
    for file, label, what, cost in costs:
        curves = {name: _points(_worth_drawing(entry, trained[name]), cost) for name, entry in rows.items()}
        if not all(curves.values()):
            continue
        frontier(folder / file, curves, cost_label=label, score_label="mIoU (%)")
        caption = f"Accuracy against {what}; each point is one width. Hollow and dotted: the IoU of its worst class."
        figures.append(ReportFigure(folder / file, caption, _alt(curves), "Accuracy and cost"))
    return figures


def _points(rows: Iterable[WidthRow], cost: Callable[[WidthRow], float | None]) -> list[FrontierPoint]:
    return [
        FrontierPoint(row.width, price, row.miou, worst=row.worst)
        for row in rows
        if (price := cost(row)) is not None and row.miou is not None
    ]


def _worth_drawing(rows: Iterable[WidthRow], trained: Sequence[float]) -> list[WidthRow]:
    """Without widths that a narrower trained one outdoes."""
    rows = list(rows)
    worse = outdone({row.width: row.miou for row in rows}, trained)
    return [row for row in rows if row.width not in worse]


def _alt(curves: Mapping[str, Sequence[FrontierPoint]]) -> str:
    parts = [
        f"{name} width {point.width:g}: {100 * point.score:.1f} %"
        + (f", {show_worst(point.worst)} %" if point.worst else "")
        for name in curves
        for point in curves[name]
    ]
    return "mIoU and worst class. " + "; ".join(parts)


def _pictures(path: Path, bundle: Bundle, source: Source, split: str = "val", prefix: str = "") -> ReportFigure:
    """A few images of a split at the widest and the narrowest width."""
    predictor = Predictor(bundle)
    widest, narrowest = max(bundle.header.widths), min(bundle.header.widths)
    rows = []
    for sample in _spread(source.samples(split)):
        image, mask = source.read_image(sample), source.read_mask(sample)
        band = boundary_mask(torch.from_numpy(mask)[None].long(), _BAND)[0].numpy()
        predictions = {
            f"width {width:g}": predictor(image, width=width) for width in dict.fromkeys((widest, narrowest))
        }
        rows.append(GalleryRow(rgb_view(image), mask, predictions, band, sample.id))
    gallery(path, rows, bundle.header.classes)
    caption = (
        f"{prefix}image, labels, predictions and the errors of width {widest:g}; the band is {_BAND} pixels around "
        "label borders."
    )
    return ReportFigure(path, caption, heading="Pictures")


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """A few, evenly spread."""
    count = min(_IMAGES, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _class_iou(bundle: Bundle, width: float) -> list[float]:
    values = bundle.header.metrics.get(f"{width:g}", {}).get("iou") or ()
    return [float("nan") if value is None else value for value in values]


def _lead(rows: Sequence[WidthRow], source: Source) -> str:
    scored = [row for row in rows if row.miou is not None]
    if not scored:
        return f"Trained on {source.name}."
    first, last = scored[0], scored[-1]
    text = f"One set of weights, trained on {source.name}, runs at any of these widths."
    if first is not last and first.macs and last.macs:
        text += (
            f" Width {last.width:g} needs {100 * last.macs / first.macs:.0f} % of the multiply-accumulates of width "
            f"{first.width:g} and reaches {100 * (last.miou or 0):.1f} % mIoU "
            f"instead of {100 * (first.miou or 0):.1f} %."
        )
    if first.worst:
        text += f" The worst class of width {first.width:g} is {show_worst(first.worst)} %."
    return text


def _joined(tables: Mapping[str, Table]) -> Table:
    """Tables below each other, with a first column that names them; columns are those of all."""
    heads = [name for name in next(iter(tables.values())).head if all(name in table.head for table in tables.values())]
    rows = [
        (label, *(row[table.head.index(name)] for name in heads))
        for label, table in tables.items()
        for row in table.rows
    ]
    return Table(("model", *heads), tuple(rows))
