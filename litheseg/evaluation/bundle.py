"""Scoring a bundle on data, and giving it widths that it was not trained at.

The data defaults to the bundle's training data. A width that the bundle lacks has its batch-norm statistics measured on
training images first (`litheseg.nn.recalibrate`).

Usage:
    >>> evaluation = evaluate_bundle(load_bundle("model.safetensors"), "data/camvid", widths=(1.0, 0.6))
    >>> evaluation.scores[0.6].miou, evaluation.calibrated
    (0.61, (0.6,))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from litheseg.bundle.exported import Export
from litheseg.cost.widths import width_costs
from litheseg.data import open_source
from litheseg.data.sources.base import Source
from litheseg.data.sources.redivided import redivided
from litheseg.errors import DataError
from litheseg.evaluation.evaluate import evaluate
from litheseg.evaluation.metrics import Scores
from litheseg.masks.opening import MAX_PIXELS
from litheseg.models.bundle import Bundle, save_bundle
from litheseg.nn import recalibrate
from litheseg.values import Numbers, Size, Widths

if TYPE_CHECKING:
    from litheseg.data.loading.datamodule import SegmentationData

__all__ = ["Evaluation", "calibrate", "evaluate_bundle", "header_metrics", "open_bundle_data"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a bundle.

    Attributes:
        bundle: the bundle, with the widths that were added.
        scores: by width, in the order asked for.
        calibrated: the widths that were added.
        data: name of the data set.
        split: what was scored.
    """

    bundle: Bundle
    scores: dict[float, Scores]
    calibrated: tuple[float, ...]
    data: str
    split: str


def evaluate_bundle(
    bundle: Bundle,
    data: str | Path | Source | None = None,
    *,
    source: str = "auto",
    split: str = "val",
    widths: Widths | None = None,
    save: str | Path | None = None,
    mode: Literal["whole", "sliding"] = "whole",
    window: Size | None = None,
    flip: bool = False,
    scales: Numbers = (1.0,),
    band_radius: int = 3,
    device: str | None = None,
) -> Evaluation:
    """Score a model on labelled images, at the labels' own resolution.

    Args:
        bundle: the model; it is left as it was.
        data: folder of labelled images, or an open source; by default what the model was trained on.
        source: kind of data, a key of `litheseg.data.SOURCES`; auto to detect it.
        split: which images are scored.
        widths: those to score, by default all of the model; one that it lacks is calibrated on training images first.
        save: file for the model with the calibrated widths and the scores; by default nothing is written.
        mode: whole images, or sliding windows.
        window: height and width of the sliding window.
        flip: average with the mirrored image.
        scales: average over the image at these scales.
        band_radius: pixels around label borders that the boundary-band mIoU counts.
        device: cpu, cuda, cuda:1, ...; by default where the model is.

    Raises:
        DataError: data that is missing, cannot be read, or has other classes.
        WidthError: a width outside (0, 1] or outside the trained range.
        LithesegError: `save` cannot be written, or what `predict_logits` raises.
    """
    chosen = tuple(bundle.header.available_widths if widths is None else dict.fromkeys(widths))
    images = open_bundle_data(bundle, data, source=source, split=split)
    missing = tuple(width for width in chosen if width not in bundle.header.available_widths)
    bundle = calibrate(bundle, images, missing)
    model = bundle.model()
    views: dict[str, Any] = {"mode": mode, "window": window, "flip": flip, "scales": scales}
    batches = images.val_dataloader()
    scores = evaluate(model, batches, widths=chosen, band_radius=band_radius, device=device, **views)
    if save is not None:
        header, found = bundle.header, header_metrics(model, scores, bundle.header.size)
        # What else was found of a width, as under corruptions, stays true: its weights are the same.
        kept = {width: {**header.metrics.get(width, {}), **entry} for width, entry in found.items()}
        bundle = save_bundle(save, model, replace(header, metrics={**header.metrics, **kept}))
    return Evaluation(bundle, scores, missing, images.source.name, split)


def header_metrics(model: nn.Module, scores: Mapping[float, Scores], size: tuple[int, int]) -> dict[str, Any]:
    """Scores, parameters and MACs by width, as a bundle's header keeps them; without the confusion matrices.

    Args:
        model: elastic, with all the widths in `scores`.
        scores: by width.
        size: height and width of the image that MACs are counted for.
    """
    result = {}
    for cost in width_costs(model, scores, size):
        entry = {name: value for name, value in scores[cost.width].to_dict().items() if name != "confusion"}
        result[f"{cost.width:g}"] = {**entry, "params": cost.params, "macs": cost.macs}
    return result


def calibrate(bundle: Bundle, data: SegmentationData, widths: Sequence[float]) -> Bundle:
    """The bundle with further widths, whose batch-norm statistics are measured on training images.

    Save it with `litheseg.models.bundle.save_bundle`.

    Raises:
        WidthError: a width outside (0, 1] or outside the trained range.
    """
    if not widths:
        return bundle
    model = bundle.model()
    recalibrate(model, data.calibration_batches(), widths)
    calibrated = tuple(sorted({*bundle.header.calibrated_widths, *widths}, reverse=True))
    header = replace(bundle.header, calibrated_widths=calibrated)
    return Bundle(header, model.state_dict(), bundle.path)


def open_bundle_data(
    bundle: Bundle | Export, data: str | Path | Source | None = None, *, source: str = "auto", split: str = "val"
) -> SegmentationData:
    """Images and labels in the bundle's size, normalisation and classes.

    Raises:
        DataError: data that is missing or has other classes; a bundle that does not say what it was trained on.
    """
    from litheseg.data.loading.datamodule import SegmentationData  # it brings Lightning, which takes its time

    header, recipe = bundle.header, dict(bundle.header.recipe.get("data", {}))
    if isinstance(data, Source):
        opened = data
    else:
        opened = _recorded_source(recipe) if data is None and source == "auto" else open_source(source, data)
    if opened.classes.names != header.classes.names:
        raise DataError(
            f"the data's classes ({', '.join(opened.classes.names)}) are not the model's "
            f"({', '.join(header.classes.names)}); evaluate on data with the same classes in the same order"
        )
    size = header.size if header.resizes else None
    return SegmentationData(
        opened,
        size=size,
        crop=None if size else header.size,
        batch_size=min(8, len(opened.samples("train"))) if "train" in opened.splits() else 1,
        val_split=split,
        images=header.images,
    )


def _recorded_source(recipe: dict[str, Any]) -> Source:
    """The data that the bundle's recipe names."""
    if not recipe.get("source"):
        raise DataError("the bundle does not say which data it was trained on; name the data's folder with --data")
    try:
        limit = recipe.get("max_pixels", MAX_PIXELS)
        opened = open_source(recipe["source"], recipe.get("root"), max_pixels=limit, **recipe.get("options", {}))
        return redivided(opened, recipe.get("leave_out"), recipe.get("fold"))
    except DataError as error:
        raise DataError(
            f"the data that the bundle was trained on: {error} (name another folder with --data)"
        ) from error
