"""What int8 gained and what it cost: the account of one network's quantization, as JSON and in words.

It does not know how numbers came about; `litheseg.deploy.quantize.twin` collects them.

Usage:
    >>> report.write(Path("exports/street/onnx-int8-w0.5.quantization.json"))
    >>> print(report.summary())
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litheseg.deploy.parity import Certificate
from litheseg.deploy.quantize.sensitivity import Sensitivity
from litheseg.deploy.quantize.tolerance import Tolerance, Violation, class_changes
from litheseg.files import atomic_path

__all__ = ["REPORT_SUFFIX", "QuantizationReport", "QuantizationTrial"]

REPORT_SUFFIX = ".quantization.json"
"""Of the file beside the network's, in place of the network's own suffix."""


@dataclass(frozen=True)
class QuantizationTrial:
    """One int8 network and how it did.

    Attributes:
        kept: names of the layers that stayed in floating point, the most sensitive first.
        corrected: whether biases made up for the mean error of their layers.
        certificate: how it compares with PyTorch in fp32.
        violations: what was worse than allowed.
        size_bytes: of its files.
        milliseconds: median time of one run.
        fp32_milliseconds: that of the fp32 network, in turns with it.
    """

    kept: tuple[str, ...]
    corrected: bool
    certificate: Certificate
    violations: tuple[Violation, ...]
    size_bytes: int
    milliseconds: float
    fp32_milliseconds: float

    @property
    def holds(self) -> bool:
        """Whether nothing was worse than allowed."""
        return not self.violations

    @property
    def speedup(self) -> float:
        """Time of fp32 over time of int8."""
        return self.fp32_milliseconds / self.milliseconds

    @property
    def worst_class(self) -> tuple[str, float]:
        """The class that lost most, and the points of IoU that it gained (below 0: lost); NaN without labels."""
        changes = {name: change for name, change in class_changes(self.certificate).items() if not math.isnan(change)}
        return min(changes.items(), key=lambda item: item[1], default=("–", math.nan))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; classes as points of IoU that they gained."""
        name, change = self.worst_class
        found = {key: getattr(self.certificate, key) for key in ("miou", "reference_miou", "agreement")}
        return {
            **{key: getattr(self, key) for key in ("kept", "corrected", "holds", "size_bytes", "speedup")},
            **{key: getattr(self, key) for key in ("milliseconds", "fp32_milliseconds")},
            **found,
            "worst_class": name,
            "worst_class_change": change,
            "class_changes": class_changes(self.certificate),
            "violations": [str(violation) for violation in self.violations],
        }


@dataclass(frozen=True)
class QuantizationReport:
    """How a network became int8.

    Attributes:
        format: of its file.
        width: of the network.
        runtime: in which it was checked and timed.
        calibration_images: how many it was calibrated on.
        calibration_wanted: how many there should have been.
        calibration_origin: where they come from, in words.
        tolerance: what was allowed.
        fp32_bytes: size of the fp32 network's files.
        ranking: layers that can run in int8, the most sensitive first; empty where nobody had to ask.
        trials: in the order in which they were made.
        accepted: the index of the one that became the file.
        versions: of the libraries.
    """

    format: str
    width: float
    runtime: str
    calibration_images: int
    calibration_wanted: int
    calibration_origin: str
    tolerance: Tolerance
    fp32_bytes: int
    ranking: tuple[Sensitivity, ...]
    trials: tuple[QuantizationTrial, ...]
    accepted: int
    versions: Mapping[str, str]

    @property
    def result(self) -> QuantizationTrial:
        """The trial that became the file."""
        return self.trials[self.accepted]

    @property
    def kept(self) -> tuple[Sensitivity, ...]:
        """The layers that stayed in floating point, the most sensitive first."""
        return self.ranking[: len(self.result.kept)]

    def essence(self) -> dict[str, Any]:
        """Plain values, for JSON: what a reader of the certificate wants to know."""
        content = {
            "calibration": f"{self.calibration_images} images ({self.calibration_origin})",
            "fp32_bytes": self.fp32_bytes,
            **self.result.to_dict(),
            "summary": self.summary(),
        }
        plain: dict[str, Any] = _plain(content)
        return plain

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; null in place of NaN and infinity."""
        content = {
            **{key: value for key, value in vars(self).items() if key not in ("ranking", "trials", "tolerance")},
            "tolerance": asdict(self.tolerance),
            "ranking": [{**asdict(entry.layer), "error": entry.error} for entry in self.ranking],
            "trials": [trial.to_dict() for trial in self.trials],
            "certificate": self.result.certificate.to_dict(),
        }
        plain: dict[str, Any] = _plain(content)
        return plain

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all.

        Raises:
            LithesegError: it cannot be written.
        """
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def summary(self) -> str:
        """A few lines for a person."""
        found, fewer = self.result.certificate, ""
        if self.calibration_images < self.calibration_wanted:
            fewer = f"; {self.calibration_wanted} were wanted, there are no more"
        kind = "labelled images" if found.miou is not None else "images without labels"
        lines = [
            f"{self.format} at width {self.width:g}: calibrated on {self.calibration_images} images "
            f"({self.calibration_origin}{fewer}), checked in {self.runtime} on {found.images} {kind} ({found.origin})",
            *(self._line(trial) for trial in self.trials),
        ]
        if self.kept:
            names = ", ".join(f"{entry.layer.name} ({entry.layer.kind})" for entry in self.kept)
            lines.append(f"  kept in floating point: {names}")
        return "\n".join(lines)

    def _line(self, trial: QuantizationTrial) -> str:
        certificate, worst = trial.certificate, "{} {:+.1f}".format(*trial.worst_class)
        kept = f"{len(trial.kept)} kept" if trial.kept else "all int8"
        way = "" if trial.corrected else ", biases as they were"
        found = f"{certificate.agreement:.2%} of the pixels as in fp32"
        if certificate.miou is not None and certificate.reference_miou is not None:
            found = f"mIoU {100 * certificate.reference_miou:.2f} -> {100 * certificate.miou:.2f} ({worst})"
        size = f"{self.fp32_bytes / 1e6:.2f} -> {trial.size_bytes / 1e6:.2f} MB"
        time = f"{trial.fp32_milliseconds:.1f} -> {trial.milliseconds:.1f} ms"
        verdict = "taken" if trial is self.result else "; ".join(map(str, trial.violations)) or "more than needed"
        return f"  {kept}{way}: {found}, {size}, {time}: {verdict}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
