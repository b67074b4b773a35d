"""How accurate a network is as it will be deployed: images resized, engine, lazy upsampling, labels at their own size.

Accuracy depends on width, input size and precision, not on runtime or threads, so it is measured once for each and
remembered. A width between the trained ones has its batch-norm statistics measured on training images first. Without
labelled data only what the bundle's header says is known: the trained widths at the size that they were trained at.

It does not time anything.

Usage:
    >>> scorer = Scorer.of(bundle, "data/camvid", store)
    >>> scorer.miou(Network(0.5, (180, 240), "fp32"))
    0.61
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from litheseg.budget.candidates import Network
from litheseg.budget.store import Store, data_digest
from litheseg.data.source import Sample, Source
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import DataError
from litheseg.evaluation.bundle import calibrate, open_bundle_data
from litheseg.evaluation.metrics import confusion_matrix, mean_iou
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import Engine
from litheseg.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from litheseg.data.datamodule import SegmentationData

__all__ = ["HeaderScores", "MeasuredScores", "Scores", "open_scores"]

_FRAMES = 4


class Scores(Protocol):
    """Where accuracies come from.

    Attributes:
        told: in a few words, for tables and JSON.
    """

    told: str

    def known(self, network: Network) -> bool:
        """Whether the accuracy of the network can be told."""

    def miou(self, network: Network) -> float:
        """In [0, 1]."""


class HeaderScores:
    """What the bundle's header says of the trained widths, in float32 at the size of training.

    Args:
        bundle: a loaded one.

    Raises:
        DataError: it says nothing.
    """

    def __init__(self, bundle: Bundle) -> None:
        header = bundle.header
        values = {width: header.metrics.get(f"{width:g}", {}).get("miou") for width in header.available_widths}
        self._miou = {width: float(value) for width, value in values.items() if value is not None}
        self._size = header.size
        if not self._miou:
            raise DataError(
                "there is no labelled data to measure accuracy on, and the model file has no scores; "
                "name the data's folder with --data"
            )
        self.told = "the model file's own scores (no labelled data: trained widths at the training size only)"

    def known(self, network: Network) -> bool:
        """See `Scores.known`."""
        return network.width in self._miou and network.size == self._size and network.precision == "fp32"

    def miou(self, network: Network) -> float:
        """See `Scores.miou`."""
        return self._miou[network.width]


class MeasuredScores:
    """Accuracy on labelled images.

    Args:
        bundle: a loaded one.
        data: what to score and calibrate on; see `litheseg.evaluation.bundle.open_bundle_data`.
        store: remembers the scores.
        split: that is scored.
        engine: of a network that is not float32, given the calibrated bundle; None for PyTorch's.
        progress: told of each network that takes time.
    """

    def __init__(
        self,
        bundle: Bundle,
        data: SegmentationData,
        store: Store,
        *,
        split: str = "val",
        engine: Callable[[Bundle, Network], Engine] | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._bundle, self._data, self._store, self._split = bundle, data, store, split
        self._engine, self._progress = engine, progress
        self._digest = data_digest(data.source, split)
        self.told = f"mIoU on {data.source.name} {split}"

    @property
    def source(self) -> Source:
        """The data set."""
        return self._data.source

    @property
    def bundle(self) -> Bundle:
        """The bundle with all widths that were calibrated so far."""
        return self._bundle

    @property
    def data(self) -> SegmentationData:
        """What is scored and calibrated on."""
        return self._data

    def known(self, network: Network) -> bool:
        """See `Scores.known`: what was trained, and what can be calibrated."""
        return network.width in self._bundle.header.available_widths or "train" in self.source.splits()

    def frames(self) -> list[np.ndarray]:
        """A few images that are scored, uint8 H x W x 3, all of the first one's size: for timing."""
        samples = self.source.samples(self._split)
        images = [self.source.read_image(sample) for sample in samples[:: max(1, len(samples) // _FRAMES)][:_FRAMES]]
        return [image for image in images if image.shape == images[0].shape]

    def miou(self, network: Network) -> float:
        """See `Scores.miou`.

        Raises:
            WidthError: a width outside the trained range.
            DataError: images or labels that cannot be read.
        """
        key = f"{network.name} {self._digest[:16]}"
        if key not in self._store.scores:
            self._progress(f"accuracy of {network.name}")
            self._store.scores[key] = {"miou": self._measured(network)}
            self._store.save_scores()
        return self._store.scores[key]["miou"]

    def with_width(self, width: float) -> Bundle:
        """The bundle with this width, calibrated if it was not trained."""
        if width not in self._bundle.header.available_widths:
            self._progress(f"batch norm of width {width:g} on training images")
            self._bundle = calibrate(self._bundle, self._data, (width,))
        return self._bundle

    def _measured(self, network: Network) -> float:
        bundle = self.with_width(network.width)
        special = self._engine if network.precision != "fp32" else None
        engine = (special or _plain_engine)(bundle, network)
        return score(Pipeline(engine, network.size), self.source, self.source.samples(self._split))


def open_scores(
    bundle: Bundle, data: str | Path | Source | None, store: Store, *, split: str = "val", **options: object
) -> Scores:
    """Scores on data, or, where no folder is named and the bundle's own data is not here, those of its header.

    Args:
        bundle: a loaded one.
        data: a folder or source; None for what the bundle was trained on.
        store: remembers them.
        split: that is scored.
        **options: further arguments of `MeasuredScores`.

    Raises:
        DataError: data that was named and cannot be used, or no data and no scores in the header either.
    """
    try:
        opened = open_bundle_data(bundle, data, split=split)
        opened.source.samples(split)
    except DataError:
        if data is not None:
            raise
        return HeaderScores(bundle)
    return MeasuredScores(bundle, opened, store, split=split, **options)  # type: ignore[arg-type]


def score(pipeline: Pipeline, source: Source, samples: tuple[Sample, ...]) -> float:
    """Mean IoU of a pipeline's masks, over the classes that the labels hold.

    Raises:
        DataError: images or labels that cannot be read, or labels without any class.
    """
    classes = len(source.classes)
    total = torch.zeros(classes, classes, dtype=torch.int64)
    for sample in samples:
        labels = torch.from_numpy(pipeline(source.read_image(sample)).astype(np.int64))
        total += confusion_matrix(labels, torch.from_numpy(source.read_mask(sample).astype(np.int64)), classes)
    result = mean_iou(total.numpy())
    if math.isnan(result):
        raise DataError("the labels hold no class at all: every pixel is ignored; score on other data with --data")
    return result


def _plain_engine(bundle: Bundle, network: Network) -> Engine:
    return bundle_engine(bundle, network.width, "torch", precision=network.precision)
