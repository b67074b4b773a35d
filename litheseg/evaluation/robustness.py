"""The robustness card: how networks fare on corrupted images, and what their confidence is worth, width by width.

Every image is corrupted at its own resolution, resized, run and labelled by the pipeline that users run
(`litheseg.runtime`), so an int8 export is measured as it will be deployed, beside the float network. All networks see
the same pictures. Scores are of few images by default: 15 kinds in 5 strengths make 76 pictures of each.

Confidence is the largest softmax probability after interpolation to the labels' size, of every labelled pixel: on the
images as they are, and corrupted in the middle one of the strengths, where networks are wrong and often do not know.

Papers: kinds as in ImageNet-C (Hendrycks and Dietterich, ICLR 2019); segmentation under them as in Kamann and Rother
(CVPR 2020); calibration under shift as in Ovadia et al. (NeurIPS 2019).

Usage:
    >>> card = measure_robustness({"street": "model.safetensors", "int8": "exports/street"}, "data/street", images=20)
    >>> [(network.name, network.clean_miou, network.miou()) for network in card.networks]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from litheseg.bundle.exported import Export, is_export, load_export
from litheseg.bundle.names import model_path
from litheseg.bundle.verdicts import worst_class
from litheseg.data.sources.base import Sample, Source, spread
from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.bundle import open_bundle_data
from litheseg.evaluation.calibration import Confidence
from litheseg.evaluation.corruptions import CORRUPTIONS, STRENGTHS, check_corruptions, corrupt
from litheseg.evaluation.metrics import confusion_matrix, iou_per_class, mean_iou
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.models.upsampling import label_maps
from litheseg.progress import work
from litheseg.runtime.predictor import Predictor
from litheseg.values import Counts, Names, Widths

__all__ = ["IMAGES", "NetworkRobustness", "RobustnessCard", "header_robustness", "measure_robustness"]

IMAGES = 20
"""Images by default: enough to compare networks of one run, in minutes."""

Kind = tuple[str, int]
"""A corruption and its strength; ("", 0) is the image as it is."""
_CLEAN: Kind = ("", 0)


@dataclass(frozen=True)
class NetworkRobustness:
    """What was counted of one network.

    Attributes:
        model: its name, as the caller has it.
        width: fraction of channels.
        precision: "fp32", "bf16" or "int8".
        runtime: that ran it.
        classes: names of the labels.
        confusion: by corruption and strength, int64 [K, K], label by prediction; ("", 0) is of the images as they are.
        confidence: of the images as they are; None where a network gives labels only, or is run in tiles.
        shifted: of the corrupted images of middle strength, all kinds together; None likewise.
    """

    model: str
    width: float
    precision: str
    runtime: str
    classes: tuple[str, ...]
    confusion: Mapping[Kind, np.ndarray]
    confidence: Confidence | None
    shifted: Confidence | None

    @property
    def name(self) -> str:
        """For tables and figures: "street 0.5 int8"."""
        return f"{self.model} {self.width:g} {self.precision}"

    @property
    def clean_miou(self) -> float:
        """Mean IoU of the images as they are."""
        return mean_iou(self.confusion[_CLEAN])

    @property
    def clean_worst(self) -> tuple[str, float] | None:
        """Their worst class."""
        return worst_class(self.classes, iou_per_class(self.confusion[_CLEAN]).tolist())

    def miou(self, corruption: str | None = None, strength: int | None = None) -> float:
        """Mean over corruptions and strengths of the mean IoU; of one corruption or one strength if it is named."""
        return fmean(mean_iou(counts) for counts in self._chosen(corruption, strength))

    def worst(self, corruption: str | None = None, strength: int | None = None) -> tuple[str, float] | None:
        """The class whose IoU, averaged likewise, is the lowest."""
        scores = np.array([iou_per_class(counts) for counts in self._chosen(corruption, strength)])
        return worst_class(self.classes, scores.mean(0).tolist())

    def to_dict(self) -> dict[str, Any]:
        """What it comes to, for JSON and for a model file's header; None in place of NaN."""
        kinds = [kind for kind in self.confusion if kind != _CLEAN]
        summary: dict[str, Any] = {
            "clean_miou": _number(self.clean_miou),
            "clean_worst": _plain(self.clean_worst),
            "miou": _number(self.miou()) if kinds else None,
            "worst": _plain(self.worst()) if kinds else None,
            "strengths": sorted({kind[1] for kind in kinds}),
            "corruptions": {
                name: {
                    "miou": [_number(mean_iou(self.confusion[kind])) for kind in kinds if kind[0] == name],
                    "worst": _plain(self.worst(name)),
                    "worst_iou": [
                        None if (worst := self.worst(*kind)) is None else _number(worst[1])
                        for kind in kinds
                        if kind[0] == name
                    ],
                }
                for name in dict.fromkeys(kind[0] for kind in kinds)
            },
        }
        for name, confidence in (("confidence", self.confidence), ("shifted", self.shifted)):
            summary[name] = None if confidence is None or not confidence.total else confidence.to_dict()
        return summary

    def _chosen(self, corruption: str | None, strength: int | None) -> list[np.ndarray]:
        return [
            counts
            for kind, counts in self.confusion.items()
            if kind != _CLEAN and corruption in (None, kind[0]) and strength in (None, kind[1])
        ]


@dataclass(frozen=True)
class RobustnessCard:
    """What was measured, and on what.

    Attributes:
        networks: in the order of the models, the widest first, then by precision.
        data: name of the data set.
        split: of it.
        images: how many of it.
        of: how many it has.
        corruptions: the kinds.
        strengths: of each.
    """

    networks: tuple[NetworkRobustness, ...]
    data: str
    split: str
    images: int
    of: int
    corruptions: tuple[str, ...]
    strengths: tuple[int, ...]

    def __str__(self) -> str:
        kinds = f"{len(self.corruptions)} corruptions in {len(self.strengths)} strengths"
        return f"{self.images} of {self.of} images of {self.data} {self.split}, {kinds}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        facts = ("data", "split", "images", "of", "corruptions", "strengths")
        named = ("model", "width", "precision", "runtime")
        networks = [{name: getattr(row, name) for name in named} | row.to_dict() for row in self.networks]
        return {name: getattr(self, name) for name in facts} | {"networks": networks}


def measure_robustness(
    models: Mapping[str, Bundle | Export | str | Path],
    data: str | Path | Source | None = None,
    *,
    source: str = "auto",
    split: str = "val",
    widths: Widths | None = None,
    precisions: Names | None = None,
    runtime: str | None = None,
    images: int = IMAGES,
    corruptions: Names | None = None,
    strengths: Counts = STRENGTHS,
    threads: int | None = None,
    device: str = "cpu",
) -> RobustnessCard:
    """Score networks on corrupted images, and judge their confidence.

    Args:
        models: model files and exports of the same classes, by the names that they shall have.
        data: folder of labelled images, or an open source; by default what the first model was trained on.
        source: kind of data, a key of `litheseg.data.SOURCES`; auto to detect it.
        split: which images.
        widths: those to measure; None for all of each model.
        precisions: fp32, bf16, int8; None for those that each model has.
        runtime: what runs the networks; None for torch, or what fits an export.
        images: at most so many, evenly spread over the split; 0 for all.
        corruptions: some of `litheseg.evaluation.corruptions.CORRUPTIONS`; None for all, "" for none: then confidence
            alone is judged.
        strengths: from 1 (mild) to 5 (severe).
        threads: of the CPU; None for the runtime's own choice.
        device: cpu, cuda, cuda:1, ...

    Raises:
        DataError: no models, data that is missing or has other classes, or images that are not RGB of 8 bits.
        WidthError: a width that a model does not have.
        LithesegError: an unknown corruption, or a network that cannot run here.
    """
    kinds = tuple(CORRUPTIONS) if corruptions is None else tuple(name for name in corruptions if name)
    levels = tuple(sorted(strengths))
    check_corruptions(kinds, levels)
    if images < 0:
        raise LithesegError(f"{images} images; give 1 or more, or 0 for all of the split")
    opened = {name: _opened(model) for name, model in models.items()}
    if not opened:
        raise DataError("no models to measure; give at least one")
    first = next(iter(opened.values()))
    found = open_bundle_data(first, data, source=source, split=split).source
    for name, model in opened.items():
        if model.header.classes.names != first.header.classes.names:
            raise DataError(f"the classes of {name} are not those of {next(iter(opened))}; measure them one by one")
        if kinds and not model.header.images.is_rgb8:
            raise DataError(
                f"corruptions are of RGB of 8 bits, and {name} takes {model.header.images}; leave them out "
                '(--corruptions ""): its confidence can be judged all the same'
            )
    how: dict[str, Any] = {"runtime": runtime, "threads": threads, "device": device}
    tallies = [tally for name, model in opened.items() for tally in _tallies(name, model, widths, precisions, how)]
    every = [sample for sample in found.samples(split) if sample.labelled]
    chosen = spread(every, images or len(every))
    if not chosen:
        raise DataError(f"split '{split}' of {found.name} holds no labelled images; name another split or folder")
    _measure(tallies, found, chosen, kinds, levels)
    networks = tuple(tally.result() for tally in tallies)
    return RobustnessCard(networks, found.name, split, len(chosen), len(every), kinds, levels)


def header_robustness(metrics: Mapping[str, Any], card: RobustnessCard) -> dict[str, Any]:
    """A header's scores with a card's: width -> "robustness" -> precision -> `NetworkRobustness.to_dict` and origin.

    Of several networks of one width and precision the first is kept.
    """
    result = {width: dict(scores) for width, scores in metrics.items()}
    added: set[tuple[float, str]] = set()
    for network in card.networks:
        if (network.width, network.precision) not in added:
            added.add((network.width, network.precision))
            entry = result.setdefault(f"{network.width:g}", {})
            entry["robustness"] = {
                **entry.get("robustness", {}),
                network.precision: {"on": str(card), **network.to_dict()},
            }
    return result


class _Tally:
    """Counts of one network."""

    def __init__(self, model: str, predictor: Predictor, width: float, precision: str) -> None:
        self._predictor, self._names = predictor, predictor.classes.names
        self._about = (model, width, precision, predictor.runtime)
        self._width, self._confusion = width, dict[Kind, np.ndarray]()
        self._confidence: dict[bool, Confidence] = {}

    def judge(self, image: np.ndarray, mask: np.ndarray, kind: Kind, confident: bool) -> None:
        """Count a picture; `confident`: its confidence, too."""
        labels, confidence = self._labels(image, confident)
        counts = confusion_matrix(
            torch.from_numpy(labels).long(), torch.from_numpy(mask).long(), len(self._names)
        ).numpy()
        self._confusion[kind] = self._confusion.get(kind, 0) + counts
        if confidence is not None:
            known = mask != IGNORE_INDEX
            found = Confidence.of(confidence[known], labels[known] == mask[known])
            before = self._confidence.get(kind == _CLEAN, Confidence.none())
            self._confidence[kind == _CLEAN] = before + found

    def result(self) -> NetworkRobustness:
        """All that was counted."""
        clean, shifted = self._confidence.get(True), self._confidence.get(False)
        return NetworkRobustness(*self._about, self._names, self._confusion, clean, shifted)

    def _labels(self, image: np.ndarray, confident: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 H W, and the confidence, float32 H W, where it is wanted and there are logits of the whole image."""
        pipeline = self._predictor.pipeline(self._width)
        if not confident or pipeline.engine.output != "logits" or self._predictor.tile_of(image):
            return self._predictor.predict_rgb(image, width=self._width), None
        logits = pipeline.engine.array(pipeline.engine.run(pipeline.prepare(image)))
        maps = label_maps(torch.from_numpy(np.ascontiguousarray(logits)), image.shape[:2], confidence="float32")
        assert maps.confidence is not None
        return maps.labels.numpy(), maps.confidence.numpy()


def _measure(
    tallies: Sequence[_Tally], source: Source, samples: Sequence[Sample], kinds: Sequence[str], levels: Sequence[int]
) -> None:
    pictures = [_CLEAN, *itertools.product(kinds, levels)]
    middle = levels[len(levels) // 2] if levels else 0
    label = f"corrupted images of {len(tallies)} network{'s' * (len(tallies) > 1)}"
    with work(label, len(samples) * len(pictures)) as job:
        for sample in samples:
            image, mask = source.read_image(sample), source.read_mask(sample)
            for kind in pictures:
                name, strength = kind
                shown = corrupt(image, name, strength, seed=sample.id) if name else image
                for tally in tallies:
                    tally.judge(shown, mask, kind, strength in (0, middle))
                job.advance(1, f"{name} {strength}" if name else "as they are")


def _tallies(
    name: str,
    model: Bundle | Export,
    widths: Sequence[float] | None,
    precisions: Sequence[str] | None,
    how: Mapping[str, Any],
) -> Iterator[_Tally]:
    """One for each width and precision of a model."""
    if isinstance(model, Export):
        own = {(artefact.width, artefact.precision) for artefact in model.artefacts}
    else:
        own = {(width, "fp32") for width in model.header.available_widths}
    chosen_widths = sorted(widths or {width for width, _ in own}, reverse=True)
    for precision in sorted(precisions or {precision for _, precision in own}):
        having = [width for width in chosen_widths if widths or precisions or (width, precision) in own]
        predictor = Predictor(model, having[0], precision=precision, **how)
        for width in having:
            yield _Tally(name, predictor, predictor.check_width(width), precision)


def _opened(model: Bundle | Export | str | Path) -> Bundle | Export:
    if not isinstance(model, (str, Path)):
        return model
    path = model_path(model)
    return load_export(path) if is_export(path) else load_bundle(path)


def _number(value: float) -> float | None:
    return None if value != value else round(float(value), 6)


def _plain(worst: tuple[str, float] | None) -> list[Any] | None:
    return None if worst is None else [worst[0], _number(worst[1])]
