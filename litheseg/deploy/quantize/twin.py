"""From an exported fp32 network to its int8 twin: calibrate, check, keep what int8 breaks in floating point.

NNCF quantizes after training; whether the result may stand for fp32 is decided here, by running it in the runtime that
the file is for. Where it may not, it is tried without NNCF's correction of biases, which evens out errors over a layer
but can shift a class; then the most sensitive layers go back to floating point, as few as will do (see `search`) and at
most half of them: beyond that, int8 is no longer faster. It does not know the command line.

Usage:
    >>> calibration, check = calibration_samples(bundle, "data/camvid")
    >>> twins = Twins(bundle, calibration, check)
    >>> export = export_bundle(bundle, "exports/street", formats=("onnx", "openvino"), further=twins)
    >>> artefact, report = twins.quantize(export, export.find(width=0.5, runtime="openvino"))  # or one by one
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from litheseg.bundle.exported import Artefact, Export, description, file_digest
from litheseg.deploy.parity import Certificate, certify, pytorch_reference
from litheseg.deploy.quantize.calibration import CalibrationImages
from litheseg.deploy.quantize.networks import Network, require_nncf
from litheseg.deploy.quantize.onnx_network import OnnxNetwork
from litheseg.deploy.quantize.openvino_network import OpenVinoNetwork
from litheseg.deploy.quantize.report import REPORT_SUFFIX, QuantizationReport, QuantizationTrial
from litheseg.deploy.quantize.search import search
from litheseg.deploy.quantize.sensitivity import Sensitivity, rank_layers
from litheseg.deploy.quantize.tolerance import Tolerance, class_shares
from litheseg.deploy.samples import Samples
from litheseg.errors import LithesegError
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import Engine, open_engine
from litheseg.runtime.latency import Latency, Scope
from litheseg.runtime.standalone import interleave

__all__ = ["Twins"]

_LIBRARIES = {"onnx": ("nncf", "onnx", "onnxruntime"), "openvino": ("nncf", "openvino")}
_NETWORKS: dict[str, type[Network]] = {"onnx": OnnxNetwork, "openvino": OpenVinoNetwork}
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
_PROBE_IMAGES = 8  # that layers are ranked on
_REPEATS = 21  # timed passes of each precision


def _silent(what: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Twins:
    """Makes int8 networks of a bundle's fp32 exports.

    Attributes:
        bundle: what was exported.
        calibration: images to calibrate on.
        check: images to judge the result on, with labels or without.
        tolerance: how much worse it may be.
        wanted: how many images to calibrate on there should have been; more than there are is told in the report.
        threads: of the CPU, for checking and timing; None for the runtime's own choice.
        progress: told what is being done.

    Raises:
        MissingExtraError: NNCF is not installed.
    """

    bundle: Bundle
    calibration: Samples
    check: Samples
    tolerance: Tolerance = field(default_factory=Tolerance)
    wanted: int = 0
    threads: int | None = None
    progress: Callable[[str], None] = _silent

    def __post_init__(self) -> None:
        """Raise MissingExtraError now if NNCF is not installed: not after minutes of exporting."""
        require_nncf()

    def __call__(self, export: Export) -> Iterator[tuple[Artefact, Mapping[str, Any]]]:
        """Twins of all networks of an export that can have one, with what their checks found.

        It is what `litheseg.deploy.export.export_bundle` takes as `further`. A report is written beside each.

        Raises:
            LithesegError: see `quantize`; or there is no network that can have a twin.
        """
        originals = [artefact for artefact in export.artefacts if artefact.format in _RUNTIMES]
        if not originals:
            raise LithesegError("int8 is made of networks in onnx or openvino; export one of these (--format onnx)")
        for original in originals:
            artefact, report = self.quantize(export, original)
            report.write(export.file(artefact).with_suffix(REPORT_SUFFIX))
            yield artefact, {**report.result.certificate.to_dict(), "int8": report.essence()}

    def quantize(self, export: Export, artefact: Artefact) -> tuple[Artefact, QuantizationReport]:
        """Write the int8 twin of one network beside it; a file of its name is replaced.

        Args:
            export: which the network is of.
            artefact: the network.

        Raises:
            LithesegError: a network that cannot be quantized, or not within the tolerance: the message says how near
                it came.
            DataError: an image that cannot be read.
            MissingExtraError: the runtime is not installed.
        """
        if artefact.format not in _RUNTIMES or artefact.precision != "fp32":
            raise LithesegError(f"{artefact} cannot become int8; give an fp32 network in onnx or openvino")
        with tempfile.TemporaryDirectory() as scratch:
            report, network = _Job(self, export, artefact, Path(scratch)).run()
        return _written(network, export, artefact), report

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The share of the labelled pixels that each class has in the images for checking."""
        return class_shares(self.check, self.bundle.header.num_classes)


class _Job:
    """One network on its way to int8."""

    def __init__(self, twins: Twins, export: Export, artefact: Artefact, scratch: Path) -> None:
        self._twins, self._export, self._artefact, self._scratch = twins, export, artefact, scratch
        self._runtime = _RUNTIMES[artefact.format]
        header = export.header
        self._size = artefact.size or (header.size if header.resizes else None)
        self._images = CalibrationImages(twins.calibration, self._size)
        self._network = _NETWORKS[artefact.format].read(export.file(artefact), artefact.layout)
        self._fp32 = self._open(artefact, export.path)
        self._made: list[tuple[QuantizationTrial, Network]] = []
        self._ranking: tuple[Sensitivity, ...] = ()

    def run(self) -> tuple[QuantizationReport, Network]:
        """The best that was found.

        Raises:
            LithesegError: it is not good enough.
        """
        start = self._attempt((), corrected=True)
        if not start.holds:
            start = min(start, self._attempt((), corrected=False), key=_shortfall)
        if not start.holds:
            self._ranking = self._ranked()
            attempt = partial(self._attempt, corrected=start.corrected)
            search(self._ranking, attempt, limit=len(self._ranking) // 2)
        best, network = min(self._made, key=lambda made: _shortfall(made[0]))
        if not best.holds:
            raise LithesegError(self._refusal(best))
        return self._report(best), network

    def _attempt(self, kept: Sequence[Sensitivity], *, corrected: bool) -> QuantizationTrial:
        names = tuple(entry.layer.name for entry in kept)
        way = f", {len(names)} layers in floating point" if names else "" if corrected else ", biases as they were"
        self._say(f"quantizing{way}")
        network = self._network.quantized(self._images, kept=names, corrected=corrected)
        engine, size_bytes = self._run(network)
        self._say("checking")
        certificate = self._certified(engine)
        image = self._images[0]
        calls = {"fp32": partial(self._fp32, image), "int8": partial(engine, image)}
        times: dict[str, list[float]] = interleave(calls, _REPEATS)
        fp32, int8 = (Latency(Scope.NETWORK, times[name]).percentile(50) for name in ("fp32", "int8"))
        trial = QuantizationTrial(
            kept=names,
            corrected=corrected,
            certificate=certificate,
            violations=self._twins.tolerance.violations(certificate, self._twins.shares),
            size_bytes=size_bytes,
            milliseconds=int8,
            fp32_milliseconds=fp32,
        )
        self._made.append((trial, network))
        return trial

    def _ranked(self) -> tuple[Sensitivity, ...]:
        few = CalibrationImages(self._twins.calibration.thinned(_PROBE_IMAGES), self._size)
        probe = self._network.quantized(few, corrected=False, probe=True)
        say = partial("ranked {} of {} layers by what int8 does to each".format)
        return rank_layers(
            probe, lambda network: self._run(network)[0], self._fp32, few, lambda *done: self._say(say(*done))
        )

    def _certified(self, engine: Engine) -> Certificate:
        reference = pytorch_reference(self._twins.bundle, self._artefact.width)
        check, names = self._twins.check, self._export.classes.names
        return certify(engine, reference, check, names, size=self._size, origin=check.origin)

    def _run(self, network: Network) -> tuple[Engine, int]:
        """An engine of a network and the bytes of its files; it goes through files, as the result will."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            files = network.write(Path(folder) / f"network{network.suffix}")
            artefact = replace(self._artefact, precision="int8", path=files[0].name, files={})
            return self._open(artefact, Path(folder)), sum(file.stat().st_size for file in files)

    def _open(self, artefact: Artefact, path: Path) -> Engine:
        export = replace(self._export, path=path, artefacts=(artefact,))
        return open_engine(export, runtime=self._runtime, precision=artefact.precision, threads=self._twins.threads)

    def _say(self, what: str) -> None:
        self._twins.progress(f"int8 {self._artefact.format}, width {self._artefact.width:g}: {what}")

    def _report(self, best: QuantizationTrial) -> QuantizationReport:
        trials = tuple(trial for trial, _ in self._made)
        calibration = self._twins.calibration
        return QuantizationReport(
            format=self._artefact.format,
            width=self._artefact.width,
            runtime=self._runtime,
            calibration_images=len(calibration),
            calibration_wanted=max(self._twins.wanted, len(calibration)),
            calibration_origin=calibration.origin,
            tolerance=self._twins.tolerance,
            fp32_bytes=sum((self._export.folder / path).stat().st_size for path in self._artefact.files),
            ranking=self._ranking,
            trials=trials,
            accepted=trials.index(best),
            versions={name: version(name) for name in _LIBRARIES[self._artefact.format]},
        )

    def _refusal(self, best: QuantizationTrial) -> str:
        faults = "; ".join(map(str, best.violations))
        kept = f"with {len(best.kept)} of {len(self._ranking)} layers in floating point" if best.kept else "so"
        return (
            f"{self._artefact.format} at width {self._artefact.width:g} does not hold in int8: at best ({kept}), "
            f"{faults}. Leave this width in fp32, or allow more with --tolerance and --class-tolerance"
        )


def _shortfall(trial: QuantizationTrial) -> tuple[float, int]:
    """Less is better: what exceeds the tolerance, then, if nothing does, the layers that were kept for it."""
    return sum(violation.excess for violation in trial.violations), len(trial.kept)


def _written(network: Network, export: Export, artefact: Artefact) -> Artefact:
    """The files, beside those of fp32, each with an account of itself inside."""
    name = f"{artefact.format}-int8-w{artefact.width:g}{network.suffix}"
    twin = replace(artefact, precision="int8", path=name, files={})
    text = description(export.header, [twin], {**export.provenance, "nncf": version("nncf")})
    with _writing(export.folder / name), tempfile.TemporaryDirectory(dir=export.folder) as scratch:
        files = network.described(text).write(Path(scratch) / name)
        for file in files:
            os.replace(file, export.folder / file.name)
    return replace(twin, files={file.name: file_digest(export.folder / file.name) for file in files})


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # OpenVINO knows the second only
        reason = getattr(error, "strerror", None) or str(error)
        raise LithesegError(f"cannot write {path}: {reason}; free space or choose another path") from error
