"""Run, time and score candidates on this machine; a `Store` remembers the results between fits.

`Exports` turns a candidate into an engine; `Accuracy` runs it over labelled images; `Bench` times it.

Usage:
    >>> exports = Exports(bundle, store.exports)
    >>> bench = Bench(exports.engine, frames, store)
    >>> bench.measure([candidate], repeats=6)
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from litheseg.budget.candidates import Candidate, Variant
from litheseg.budget.dense_layers import DensePlan
from litheseg.budget.store import Store, data_digest
from litheseg.bundle.exported import Export, load_export
from litheseg.bundle.targets import FORMATS, TARGETS
from litheseg.bundle.verdicts import recorded_iou, worst_class
from litheseg.cost.widths import with_widths
from litheseg.data.sources.base import Sample, Source
from litheseg.deploy.export import CHECK_IMAGES, export_bundle
from litheseg.deploy.quantize import Quantizer, calibration_samples
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import BundleError, DataError, LithesegError, WidthError
from litheseg.evaluation.bundle import calibrate
from litheseg.evaluation.metrics import confusion_matrix, iou_per_class, mean_iou
from litheseg.files import file_digest
from litheseg.machine import cores
from litheseg.models.bundle import Bundle
from litheseg.progress import track, work
from litheseg.runtime import latency
from litheseg.runtime.engines import Engine, open_engine
from litheseg.runtime.latency import Latency, Scope
from litheseg.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from litheseg.data.loading.datamodule import SegmentationData

__all__ = ["Accuracy", "Bench", "Exports", "score"]

_TOGETHER = 32  # pipelines open at once: a small network in a runtime takes tens of megabytes
_WARMUP = 3


# --- how a candidate is made to run ----------------------------------------------------------------------------------


class Exports:
    """Makes candidates run: PyTorch straight from the model, other runtimes from exports, which are kept.

    Args:
        bundle: the model.
        folder: where exports are kept.
        plan: which grouped layers stay dense; measured where a candidate is not in it. None leaves all grouped.
        data: labelled images: those for training give batch-norm statistics of widths that were not trained, and int8
            its ranges. None where there are none.
        split: of the data, images that accuracy is measured and int8 checked on.

    Attributes:
        bundle: the model, with all widths that were calibrated so far.
        data: as given.
        split: as given.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        *,
        plan: DensePlan | None = None,
        data: SegmentationData | None = None,
        split: str = "val",
    ) -> None:
        self.bundle, self.data, self.split = bundle, data, split
        self._folder, self._plan = folder, plan

    @property
    def calibrates(self) -> bool:
        """Whether there are training images."""
        return self.data is not None and "train" in self.data.source.splits()

    def calibrated(self, width: float) -> Bundle:
        """The model with this width, whose batch norm is measured on training images if it was not trained."""
        if self.data is not None and width not in self.bundle.header.available_widths:
            self.bundle = calibrate(self.bundle, self.data, (width,))
        return self.bundle

    def engine(self, candidate: Candidate) -> Engine:
        """The candidate, ready to run.

        In fp32 a width between the trained ones is not calibrated: use it for timing only.

        Raises:
            WidthError: a width outside the trained range.
            MissingExtraError: its runtime is not installed.
            LithesegError: what this machine, or the runtime, cannot do.
        """
        width, _, precision = candidate.network
        bundle = self.calibrated(width) if precision != "fp32" else self.bundle
        bundle = with_widths(bundle, [width])
        if candidate.runtime == "torch":
            return bundle_engine(bundle, width, "torch", precision=precision, threads=candidate.threads)
        export = self._export(self.planned(candidate, bundle), candidate)
        return open_engine(
            export, width=width, runtime=candidate.runtime, precision=precision, threads=candidate.threads
        )

    def _export(self, bundle: Bundle, candidate: Candidate) -> Export:
        """From the cache, or made now."""
        name = f"{candidate.network.name}-{candidate.runtime}"
        if bundle.dense:
            name += "-dense-" + hashlib.sha256("\n".join(bundle.dense).encode()).hexdigest()[:8]
        with suppress(BundleError):  # none yet, or a damaged one
            kept = load_export(self._folder / name)
            if candidate.network.precision in {artefact.precision for artefact in kept.artefacts}:
                return kept
        with work(f"exporting {candidate.network.name}"):
            return self.write(bundle, candidate, self._folder / name, check=False)

    def write(self, bundle: Bundle, candidate: Candidate, folder: Path, *, check: bool) -> Export:
        """Export a candidate's network to a folder, replacing what is there.

        Args:
            bundle: that has the width.
            candidate: which.
            folder: where.
            check: compare it with PyTorch on the images, if there are any.

        Raises:
            LithesegError: as `export_bundle`; int8 without images.
        """
        (width, size, precision), formats = candidate.network, (TARGETS[candidate.runtime].format,)
        further = None
        if precision == "int8":
            if self.data is None:
                raise LithesegError("int8 needs images to calibrate on: name the folder of the data with --data")
            calibration, checked = calibration_samples(bundle, self.data.source, split=self.split)
            further = Quantizer(bundle, calibration, checked.thinned(CHECK_IMAGES), formats=formats)
        source = self.data.source if check and self.data is not None else None
        options: dict[str, Any] = {"formats": formats, "widths": (width,), "size": size}
        return export_bundle(
            bundle, folder, check=source is not None, data=source, further=further, force=True, **options
        )

    def planned(self, candidate: Candidate, bundle: Bundle) -> Bundle:
        """The bundle, with the layers dense that run faster so for this candidate."""
        if self._plan is None or candidate.runtime not in FORMATS["onnx"]:  # in which layers can be timed
            return bundle
        if not self._plan.knows(candidate):
            width = candidate.network.width
            self._plan.measure(with_widths(bundle, [width]).plain(width), candidate)
        return replace(bundle, dense=self._plan.dense(candidate))


# --- how accurate it is ----------------------------------------------------------------------------------------------


class Accuracy:
    """Mean IoU of networks as they will be deployed: images resized, engine, labels at their own size.

    It depends on width, input size and precision, not on runtime or threads, so it is measured once for each and
    remembered. Without labelled images only the model file's own scores are known: trained widths, in float32, at the
    size of training.

    Args:
        exports: of the model, and its data.
        store: remembers what was measured.

    Attributes:
        origin: source of the accuracies, in words.
        classes: names of the classes.

    Raises:
        DataError: no data, and no scores in the model file either.
    """

    def __init__(self, exports: Exports, store: Store) -> None:
        self._exports, self._store = exports, store
        self._header, self.classes = exports.bundle.header, exports.bundle.header.classes.names
        if exports.data is not None:
            self._digest = data_digest(exports.data.source, exports.split)[:16]
            self.origin = f"mIoU on {exports.data.source.name} {exports.split}"
        elif any("miou" in scores for scores in self._header.metrics.values()):
            self.origin = "the model file's own scores (no labelled data: trained widths at the training size only)"
        else:
            raise DataError(
                "there is no labelled data to measure accuracy on, and the model file has no scores; "
                "name the data's folder with --data"
            )

    def known(self, network: Variant) -> bool:
        """Whether the accuracy of a network is recorded or can be measured."""
        if self._exports.data is not None:
            return network.width in self._header.available_widths or self._exports.calibrates
        trained = (network.size, network.precision) == (self._header.size, "fp32")
        return trained and self._recorded(network.width) is not None

    def miou(self, candidate: Candidate) -> float:
        """Mean IoU of a candidate's network, in [0, 1]; fp32 is run in PyTorch, others where the candidate runs.

        Raises:
            WidthError: a width outside the trained range.
            DataError: images or labels that cannot be read.
        """
        if self._exports.data is None:
            recorded = self._recorded(candidate.network.width)
            assert recorded is not None, "only known networks are asked for"
            return recorded
        return float(self._measured(candidate)["miou"])

    def worst(self, candidate: Candidate) -> tuple[str, float] | None:
        """Name and IoU of the worst class of a candidate's network; None where the model file does not say.

        Raises:
            WidthError, DataError: as of `miou`.
        """
        if self._exports.data is None:
            iou = recorded_iou(self._header).get(candidate.network.width)
        else:
            iou = self._measured(candidate)["iou"]
        return worst_class(self.classes, iou) if iou else None

    def _measured(self, candidate: Candidate) -> dict[str, Any]:
        """Scores by name, measured once for each network."""
        network, data = candidate.network, self._exports.data
        assert data is not None
        key = f"{network.name} {self._digest}"
        if "iou" not in self._store.scores.get(key, {}):
            if network.precision == "fp32":
                engine = bundle_engine(self._exports.calibrated(network.width), network.width, "torch")
            else:
                engine = self._exports.engine(candidate)
            samples = data.source.samples(self._exports.split)
            pipeline = Pipeline(engine, network.size)
            self._store.scores[key] = score(pipeline, data.source, track(samples, f"scoring {network.name}"))
            self._store.save_scores()
        return self._store.scores[key]

    def _recorded(self, width: float) -> float | None:
        value = self._header.metrics.get(f"{width:g}", {}).get("miou")
        return None if value is None else float(value)


def score(pipeline: Pipeline, source: Source, samples: Iterable[Sample]) -> dict[str, Any]:
    """How well a pipeline's masks fit the labels.

    Returns:
        "miou", over the classes that the labels hold, and "iou" by class, None for one that they do not hold.

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
    by_class = [None if math.isnan(value) else float(value) for value in iou_per_class(total.numpy())]
    return {"miou": result, "iou": by_class}


# --- how long it takes -----------------------------------------------------------------------------------------------


class Bench:
    """Times candidates on this machine, end to end, in turns, and saves the timings at once.

    Args:
        engine: makes a candidate run; raises a `LithesegError` where it cannot.
        frames: images of the camera's size, H x W x C, that each candidate takes in turn.
        store: keeps timings, so that a stopped fit can resume.
        fps: frame rate at which images come; None for one after the other.
        plan: file of a plan that was given: timings with another one are of other networks.
    """

    def __init__(
        self,
        engine: Callable[[Candidate], Engine],
        frames: Sequence[np.ndarray],
        store: Store,
        *,
        fps: float | None = None,
        plan: Path | None = None,
    ) -> None:
        self._engine, self._frames, self._store, self._fps = engine, frames, store, fps
        height, width = frames[0].shape[:2]
        circumstances = (f"{height}x{width}", f"{fps:g}fps" if fps else "", file_digest(plan)[:8] if plan else "")
        self._suffix = " ".join(filter(None, circumstances))
        self._earlier = frozenset(store.samples)
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self._open: dict[Candidate, Pipeline] = {}

    def unusable(self, candidates: Sequence[Candidate]) -> dict[Candidate, str]:
        """Those that cannot run here (a runtime is not installed, the processor lacks a precision), and why.

        Each is opened, which exports what is not exported yet.
        """
        reasons: dict[Candidate, str] = {}
        failed: dict[tuple[str, Variant | str], str] = {}
        for candidate in track(candidates, "opening candidates"):
            network = candidate.network
            # What is not installed fails alike for all networks; int8 of each network may succeed or not.
            kind = (candidate.runtime, network if network.precision == "int8" else network.precision)
            if kind not in failed:
                try:
                    self._pipeline(candidate)
                    continue
                except WidthError:
                    raise
                except LithesegError as error:
                    failed[kind] = str(error)
            reasons[candidate] = failed[kind]
        return reasons

    def measure(self, candidates: Sequence[Candidate], repeats: int) -> dict[Candidate, list[float]]:
        """Milliseconds of each, measured side by side."""
        result: dict[Candidate, list[float]] = {}
        for first in range(0, len(candidates), _TOGETHER):
            some = candidates[first : first + _TOGETHER]
            pipelines = {candidate: self._pipeline(candidate) for candidate in some}
            times = latency.measure(pipelines, self._frames, repeats=repeats, warmup=_WARMUP, fps=self._fps)
            result |= {candidate: stages[Scope.END_TO_END].ms for candidate, stages in times.items()}
        for candidate, ms in result.items():
            self._store.samples.setdefault(self._key(candidate), []).extend(ms)
        self._store.save_samples()
        return result

    def recall(self, candidate: Candidate) -> Latency:
        """Timings of a candidate so far, under the same conditions."""
        return Latency(Scope.END_TO_END, list(self._store.samples.get(self._key(candidate), ())))

    def warnings(self, candidates: Iterable[Candidate]) -> tuple[str, ...]:
        """What may be wrong with the timings of these candidates."""
        result = []
        if remembered := sum(self._key(candidate) in self._earlier for candidate in candidates):
            result.append(f"{remembered} candidates have timings from an earlier fit; --fresh forgets them")
        if self._load > cores() / 2:
            result.append(
                f"the machine was busy at the start (load average {self._load:.1f} on {cores()} cores): "
                "the promise is one for a machine as busy as that"
            )
        return tuple(result)

    def _key(self, candidate: Candidate) -> str:
        return f"{candidate.name} {self._suffix}"

    def _pipeline(self, candidate: Candidate) -> Pipeline:
        if candidate not in self._open:
            while len(self._open) >= _TOGETHER:
                del self._open[next(iter(self._open))]
            engine = self._engine(candidate)
            self._open[candidate] = Pipeline(engine, candidate.network.size, candidate.threads)
        pipeline = self._open.pop(candidate)
        self._open[candidate] = pipeline  # the one used last is closed last
        return pipeline
