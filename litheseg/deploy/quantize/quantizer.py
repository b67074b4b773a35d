"""From an exported fp32 network to an int8 network: calibrate, check, keep in floating point what int8 breaks.

A library quantizes after training (`networks`, `litert_network`, `executorch_network`); here the result is compared
with fp32 in the runtime that the file is for. Where it is worse than the tolerance, it is tried without NNCF's bias
correction, which evens out errors over a layer but can shift a class; then the most sensitive layers go back to
floating point, as few as will do and at most half of them: beyond that, int8 is no longer faster.

Usage:
    >>> calibration, check = calibration_samples(bundle, "data/camvid")
    >>> quantizer = Quantizer(bundle, calibration, check)
    >>> export = export_bundle(bundle, "exports/street", formats=("onnx", "openvino"), further=quantizer)
    >>> artefact, report = quantizer.quantize(export, export.find(width=0.5, runtime="openvino"))  # or one by one
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from litheseg.bundle.exported import Artefact, Export, description
from litheseg.bundle.targets import target_of
from litheseg.deploy.conversion import Conversion
from litheseg.deploy.network import deployed
from litheseg.deploy.parity import Certificate, certify, pytorch_reference
from litheseg.deploy.quantize.executorch_network import ExecutorchNetwork
from litheseg.deploy.quantize.litert_network import LitertNetwork
from litheseg.deploy.quantize.networks import QuantizableNetwork
from litheseg.deploy.quantize.onnx_network import OnnxNetwork
from litheseg.deploy.quantize.openvino_network import OpenVinoNetwork
from litheseg.deploy.quantize.report import (
    REPORT_SUFFIX,
    QuantizationReport,
    QuantizationTrial,
    Sensitivity,
    Tolerance,
    class_shares,
)
from litheseg.deploy.samples import CalibrationImages, Samples
from litheseg.errors import LithesegError, MissingExtraError
from litheseg.files import file_digest
from litheseg.machine import interleave, package_version
from litheseg.models.bundle import Bundle
from litheseg.progress import say, track
from litheseg.runtime.engines import Engine, open_engine
from litheseg.runtime.latency import Latency, Scope

__all__ = ["Quantizer", "ToleranceError", "fewest_kept", "output_error", "quantizable"]

_NETWORKS: dict[str, type[QuantizableNetwork]] = {
    "onnx": OnnxNetwork,
    "openvino": OpenVinoNetwork,
    "litert": LitertNetwork,
    "executorch": ExecutorchNetwork,
}
_FORMATS = " or ".join(_NETWORKS)
_PROBE_IMAGES = 8  # that layers are ranked on
_REPEATS = 21  # timed passes of each precision

LayerT = TypeVar("LayerT")


class ToleranceError(LithesegError):
    """A network that loses more in int8 than is allowed."""


def quantizable(format: str) -> bool:
    """Whether networks of a format, a key of `litheseg.bundle.targets.FORMATS`, can become int8 here."""
    if format not in _NETWORKS:
        return False
    try:
        _NETWORKS[format].require()
    except MissingExtraError:
        return False
    return True


@dataclass(frozen=True)
class Quantizer:
    """Makes int8 networks of a bundle's fp32 exports.

    Attributes:
        bundle: what was exported.
        calibration: images to calibrate on.
        check: images to judge the result on, with labels or without.
        tolerance: how much worse it may be.
        wanted: how many calibration images were asked for; the report says so where there are fewer.
        threads: of the CPU, for checking and timing; None for the runtime's own choice.
        formats: of the export, whose quantizers must be there.

    Raises:
        MissingExtraError: a quantizer is not installed.
    """

    bundle: Bundle
    calibration: Samples
    check: Samples
    tolerance: Tolerance = field(default_factory=Tolerance)
    wanted: int = 0
    threads: int | None = None
    formats: Sequence[str] = ("onnx",)

    def __post_init__(self) -> None:
        """Raise MissingExtraError now if a quantizer is not installed: not after minutes of exporting."""
        for name in _NETWORKS.keys() & set(self.formats):
            _NETWORKS[name].require()

    def __call__(self, export: Export) -> Iterator[tuple[Artefact, Certificate, dict[str, Any]]]:
        """Quantize all networks of an export that can be, as `export_bundle` asks of `further`.

        Yields:
            Each int8 network, its certificate and how it was quantized; a report is written beside it.

        Raises:
            LithesegError: see `quantize`; or no network of the export can be quantized. One that does not hold the
                tolerance is named after the others are made.
        """
        originals = [artefact for artefact in export.artefacts if artefact.format in _NETWORKS]
        if not originals:
            raise LithesegError(f"int8 is made of networks in {_FORMATS}; export one of these (--format onnx)")
        failed = []
        for original in originals:
            try:
                artefact, report = self.quantize(export, original)
            except ToleranceError as error:
                failed.append(str(error))
                continue
            report.write(export.file(artefact).with_suffix(REPORT_SUFFIX))
            yield artefact, report.result.certificate, report.essence()
        if failed:
            raise ToleranceError("; ".join(failed))

    def quantize(self, export: Export, artefact: Artefact) -> tuple[Artefact, QuantizationReport]:
        """Write the int8 network of one fp32 network beside it; a file of its name is replaced.

        Args:
            export: which the network is of.
            artefact: the network.

        Raises:
            ToleranceError: not within the tolerance; the message says how near it came.
            LithesegError: a network that cannot be quantized.
            DataError: an image that cannot be read.
            MissingExtraError: the runtime is not installed.
        """
        if artefact.format not in _NETWORKS or artefact.precision != "fp32":
            raise LithesegError(f"{artefact} cannot become int8; give an fp32 network in {_FORMATS}")
        with tempfile.TemporaryDirectory() as scratch:
            report, network = _Job(self, export, artefact, Path(scratch)).run()
        return _written(network, export, artefact), report

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The share of the labelled pixels that each class has in the images for checking."""
        return class_shares(self.check, self.bundle.header.num_classes)


class _Job:
    """One network on its way to int8."""

    def __init__(self, quantizer: Quantizer, export: Export, artefact: Artefact, scratch: Path) -> None:
        self._quantizer, self._export, self._artefact, self._scratch = quantizer, export, artefact, scratch
        self._size = artefact.size or (export.header.size if export.header.resizes else None)
        self._images = CalibrationImages(quantizer.calibration, self._size)
        self._network = _NETWORKS[artefact.format].read(export.file(artefact), artefact.layout, self._source)
        self._fp32 = self._open(artefact, export.path)
        self._made: list[tuple[QuantizationTrial, QuantizableNetwork]] = []
        self._name = f"int8 {artefact.format}, width {artefact.width:g}"

    def run(self) -> tuple[QuantizationReport, QuantizableNetwork]:
        """The best that was found.

        Raises:
            ToleranceError: it is not good enough.
        """
        ranking: list[Sensitivity] = []
        start = self._attempt((), corrected=True)
        if not start.holds and self._network.corrects_biases:
            start = min(start, self._attempt((), corrected=False), key=_shortfall)
        if not start.holds:
            ranking = self._ranked()
            fewest_kept(
                ranking, lambda kept: self._attempt(kept, corrected=start.corrected).holds, limit=len(ranking) // 2
            )
        best, network = min(self._made, key=lambda made: _shortfall(made[0]))
        if not best.holds:
            kept = f"with {len(best.kept)} of {len(ranking)} layers in floating point" if best.kept else "so"
            raise ToleranceError(
                f"{self._artefact.format} at width {self._artefact.width:g} does not hold in int8: at best ({kept}), "
                f"{'; '.join(map(str, best.violations))}. Leave this width in fp32, or allow more with --tolerance "
                "and --class-tolerance"
            )
        return self._report(best, ranking), network

    def _attempt(self, kept: Sequence[Sensitivity], *, corrected: bool) -> QuantizationTrial:
        names = tuple(layer.name for layer in kept)
        variant = f", {len(names)} layers in floating point" if names else "" if corrected else ", biases as they were"
        say(f"{self._name}: quantizing{variant}")
        network = self._network.quantized(self._images, kept=names, corrected=corrected)
        engine, size_bytes = self._run(network)
        quantizer, names_of_classes = self._quantizer, self._export.classes.names
        reference = pytorch_reference(quantizer.bundle, self._artefact.width)
        how: dict[str, Any] = {"size": self._size, "origin": quantizer.check.origin}
        how["label"] = f"{self._name}: checking, images"
        certificate = certify({"": engine}, reference, quantizer.check, names_of_classes, **how)[""]
        image = next(iter(self._images))
        runs = {"fp32": partial(self._fp32, image), "int8": partial(engine, image)}
        times: dict[str, list[float]] = interleave(runs, _REPEATS)
        fp32, int8 = (Latency(Scope.NETWORK, times[name]).percentile(50) for name in ("fp32", "int8"))
        violations = quantizer.tolerance.violations(certificate, quantizer.shares)
        trial = QuantizationTrial(names, corrected, certificate, violations, size_bytes, int8, fp32)
        self._made.append((trial, network))
        return trial

    def _ranked(self) -> list[Sensitivity]:
        """All layers, the most sensitive first: the error at the network's end when one alone is quantized.

        Measured in the runtime that the file is for, so that what its kernels do wrong (saturation, say) is seen too;
        in PyTorch where that would take minutes (`QuantizableNetwork.simulated`). And on a few calibration images:
        those that decide whether the result is accepted have no part in it.
        """
        few = CalibrationImages(self._quantizer.calibration.thinned(_PROBE_IMAGES), self._size)
        probe = self._network.quantized(few, corrected=False, probe=True)
        images = list(few)
        expected = [self._fp32(image) for image in images]
        layers, ranked = probe.layers(), list[Sensitivity]()
        for name, kind in track(layers, f"{self._name}: what int8 does to each of the layers"):
            alone = probe.only(name)
            run = alone.simulated or self._run(alone)[0]
            error = output_error((truth, run(image)) for truth, image in zip(expected, images, strict=True))
            ranked.append(Sensitivity(name, kind, error))
        return sorted(ranked, key=lambda layer: -layer.error)  # stable: equal ones stay in running order

    def _source(self) -> Conversion:
        """What the fp32 file was made of."""
        made = self._artefact
        network = deployed(self._quantizer.bundle, made.width, layout=made.layout, output=made.output)
        return Conversion(network, made.size)

    def _run(self, network: QuantizableNetwork) -> tuple[Engine, int]:
        """An engine of a network and the bytes of its files; it goes through files, as the result will."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            files = network.write(Path(folder) / f"network{network.suffix}")
            artefact = replace(self._artefact, precision="int8", path=files[0].name, files={})
            return self._open(artefact, Path(folder)), sum(file.stat().st_size for file in files)

    def _open(self, artefact: Artefact, path: Path) -> Engine:
        export = replace(self._export, path=path, artefacts=(artefact,))
        runtime = target_of(artefact.format).runtime
        return open_engine(export, runtime=runtime, precision=artefact.precision, threads=self._quantizer.threads)

    def _report(self, best: QuantizationTrial, ranking: Sequence[Sensitivity]) -> QuantizationReport:
        trials = tuple(trial for trial, _ in self._made)
        calibration = self._quantizer.calibration
        return QuantizationReport(
            format=self._artefact.format,
            width=self._artefact.width,
            runtime=target_of(self._artefact.format).runtime,
            calibration_images=len(calibration),
            calibration_wanted=max(self._quantizer.wanted, len(calibration)),
            calibration_origin=calibration.origin,
            tolerance=self._quantizer.tolerance,
            fp32_bytes=sum((self._export.folder / path).stat().st_size for path in self._artefact.files),
            ranking=tuple(ranking),
            trials=trials,
            accepted=trials.index(best),
            versions={name: package_version(name) for name in self._network.libraries},
        )


def fewest_kept(layers: Sequence[LayerT], holds: Callable[[Sequence[LayerT]], bool], *, limit: int) -> int | None:
    """Find the fewest layers that, kept in floating point, make the result hold.

    The first 1, 2, 4, ... of the ranking are tried until the result holds; then bisection between the last number that
    failed and the first that held. Every number is tried for real; that keeping more layers never makes the result
    worse is assumed, and where it does, fewer than found might do as well. None kept is taken to fail.

    Args:
        layers: the most important to keep first.
        holds: makes a result with these layers kept and judges it.
        limit: keep at most so many, >= 0.

    Returns:
        The number of layers, or None if no number up to the limit holds.
    """
    limit = min(limit, len(layers))
    low, high, found = 0, min(1, limit), False
    while high > low and not (found := holds(layers[:high])):
        low, high = high, min(2 * high, limit)
    while found and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(layers[:middle]) else (middle, high)
    return high if found else None


def output_error(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """How far outputs are from what they should be: an average over classes, so that small ones count as in mIoU.

    Args:
        pairs: (expected, found): logits K h w, or labels h w.

    Returns:
        Divergence of the class probabilities in nats per pixel (logits), or share of pixels that change (labels),
        averaged over the pixels of each expected class, then over classes; infinite if an output is not finite.
    """
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    for expected, found in pairs:
        if expected.ndim == 2:
            winners, errors = expected, (expected != found).astype(np.float64)
        else:
            truth, guess = _log_probabilities(expected), _log_probabilities(found)
            winners, errors = expected.argmax(0), (np.exp(truth) * (truth - guess)).sum(0)
        for label in np.unique(winners).tolist():
            inside = winners == label
            sums[label] = sums.get(label, 0.0) + float(errors[inside].sum())
            counts[label] = counts.get(label, 0) + int(inside.sum())
    mean = float(np.mean([sums[label] / counts[label] for label in sums]))
    return mean if math.isfinite(mean) else math.inf


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite makes the error infinite
        shifted = logits.astype(np.float64) - logits.max(0)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(0)))


def _shortfall(trial: QuantizationTrial) -> tuple[float, int]:
    """Sort key, less is better: what exceeds the tolerance, then the number of layers kept."""
    return sum(violation.excess for violation in trial.violations), len(trial.kept)


def _written(network: QuantizableNetwork, export: Export, artefact: Artefact) -> Artefact:
    """Write the files beside those of fp32, with the export's description inside."""
    name = f"{artefact.format}-int8-w{artefact.width:g}{network.suffix}"
    int8 = replace(artefact, precision="int8", path=name, files={})
    versions = {name: package_version(name) for name in network.libraries}
    text = description(export.header, [int8], {**export.provenance, **versions})
    try:
        with tempfile.TemporaryDirectory(dir=export.folder) as scratch:
            files = network.write(Path(scratch) / name, text)
            for file in files:
                os.replace(file, export.folder / file.name)
    except (OSError, RuntimeError) as error:  # OpenVINO knows the second only
        reason = getattr(error, "strerror", None) or str(error)
        raise LithesegError(
            f"cannot write {export.folder / name}: {reason}; free space or choose another path"
        ) from error
    return replace(int8, files={file.name: file_digest(export.folder / file.name) for file in files})
