"""Decide whether int8 may replace fp32, and report what it gained and cost, as JSON and in words.

mIoU alone would hide the loss of a class: among eleven classes, one that loses five points costs less than half a
point of the mean. So each class has its own limit, four times that of the mean, since a class has fewer pixels and its
IoU varies more; classes with hardly any pixels have none. Without labels, the share of pixels that change their label
decides.

Usage:
    >>> Tolerance(miou=0.5).violations(certificate, shares)
    (Violation(text='mIoU fell by 0.80 points (at most 0.5)', excess=0.3),)
    >>> print(report.summary())
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.deploy.parity import Certificate
from litheseg.deploy.samples import Samples
from litheseg.errors import LithesegError
from litheseg.files import write_text
from litheseg.masks.classes import IGNORE_INDEX

__all__ = [
    "REPORT_SUFFIX",
    "QuantizationReport",
    "QuantizationTrial",
    "Sensitivity",
    "Tolerance",
    "Violation",
    "class_shares",
]

REPORT_SUFFIX = ".quantization.json"
"""Of the file beside the network's, in place of the network's own suffix."""


@dataclass(frozen=True)
class Violation:
    """Something that is worse than allowed.

    Attributes:
        text: in words.
        excess: by how many points more than allowed, > 0.
    """

    text: str
    excess: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Tolerance:
    """How much worse int8 may be than fp32.

    Attributes:
        miou: points of mIoU (hundredths), on labelled images.
        class_iou: points of a class's IoU, on labelled images; None for no limit.
        class_share: classes with a smaller share of the labelled pixels have no limit of their own; in [0, 1].
        agreement: the least share of pixels that both label alike, where nothing is labelled; in [0, 1].

    Raises:
        LithesegError: a value out of range.
    """

    miou: float = 0.5
    class_iou: float | None = 2.0
    class_share: float = 0.001
    agreement: float = 0.95

    def __post_init__(self) -> None:
        for name, high in {"miou": 100, "class_iou": 100, "class_share": 1, "agreement": 1}.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value <= high:
                raise LithesegError(f"tolerance '{name}' is {value:g}; give a number from 0 to {high}")

    def violations(self, certificate: Certificate, shares: Sequence[float]) -> tuple[Violation, ...]:
        """What is worse than allowed; nothing if int8 may stand for fp32.

        Args:
            certificate: of int8, compared with fp32.
            shares: of the labelled pixels, per class; see `class_shares`.
        """
        if certificate.miou is None or certificate.reference_miou is None:
            found = certificate.agreement
            text = f"only {found:.2%} of the pixels are labelled as in fp32 (at least {self.agreement:.2%})"
            return _exceeding(text, 100 * (1 - found), 100 * (1 - self.agreement))
        fall = 100 * (certificate.reference_miou - certificate.miou)
        broken = _exceeding(f"mIoU fell by {fall:.2f} points (at most {self.miou:g})", fall, self.miou)
        for name, share in zip(certificate.classes, shares, strict=True):
            if self.class_iou is not None and name in certificate.changes and share >= self.class_share:
                fall = -100 * certificate.changes[name]
                text = f"{name} fell by {fall:.1f} points (at most {self.class_iou:g})"
                broken += _exceeding(text, fall, self.class_iou)
        return broken


def _exceeding(text: str, value: float, limit: float) -> tuple[Violation, ...]:
    """A violation if `value` is above `limit`, or is no number."""
    return () if value <= limit else (Violation(text, value - limit),)


def class_shares(samples: Samples, num_classes: int) -> tuple[float, ...]:
    """The share of the labelled pixels that each class has; 0 throughout where nothing is labelled."""
    counts = np.zeros(num_classes, np.int64)
    for picture in samples if samples.labelled else ():
        if picture.mask is not None:
            counts += np.bincount(picture.mask[picture.mask != IGNORE_INDEX], minlength=num_classes)
    return tuple((counts / max(int(counts.sum()), 1)).tolist())


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer alone costs.

    Attributes:
        name: of the layer in its network.
        kind: of operation, as its format calls it, e.g. "Conv".
        error: see `litheseg.deploy.quantize.quantizer.output_error`.
    """

    name: str
    kind: str
    error: float


@dataclass(frozen=True)
class QuantizationTrial:
    """One int8 network and how it did.

    Attributes:
        kept: names of the layers that stayed in floating point, the most sensitive first.
        corrected: whether biases make up for the mean error of their layers.
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
        changes = {name: 100 * change for name, change in self.certificate.changes.items()}
        return min(changes.items(), key=lambda item: item[1], default=("–", math.nan))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; classes as points of IoU that they gained."""
        own = ("kept", "corrected", "holds", "size_bytes", "speedup", "milliseconds", "fp32_milliseconds")
        (name, change), changes = self.worst_class, self.certificate.changes
        return {
            **{key: getattr(self, key) for key in own},
            **{key: getattr(self.certificate, key) for key in ("miou", "reference_miou", "agreement")},
            "worst_class": name,
            "worst_class_change": change,
            "class_changes": {name: 100 * changes.get(name, math.nan) for name in self.certificate.classes},
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
        calibration_wanted: how many were asked for.
        calibration_origin: where they come from, in words.
        tolerance: what was allowed.
        fp32_bytes: size of the fp32 network's files.
        ranking: layers that can run in int8, the most sensitive first; empty where all of them do.
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
        calibration = f"{self.calibration_images} images ({self.calibration_origin})"
        content = {"calibration": calibration, "fp32_bytes": self.fp32_bytes, **self.result.to_dict()}
        return dict(_plain({**content, "summary": self.summary()}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; null in place of NaN and infinity."""
        content = {
            **vars(self),
            "tolerance": asdict(self.tolerance),
            "ranking": [asdict(layer) for layer in self.ranking],
            "trials": [trial.to_dict() for trial in self.trials],
            "certificate": self.result.certificate.to_dict(),
        }
        return dict(_plain(content))

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all.

        Raises:
            LithesegError: it cannot be written.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

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
            names = ", ".join(f"{layer.name} ({layer.kind})" for layer in self.kept)
            lines.append(f"  kept in floating point: {names}")
        return "\n".join(lines)

    def _line(self, trial: QuantizationTrial) -> str:
        certificate, worst = trial.certificate, "{} {:+.1f}".format(*trial.worst_class)
        kept = f"{len(trial.kept)} kept" if trial.kept else "all int8"
        biases = "" if trial.corrected else ", biases as they were"
        found = f"{certificate.agreement:.2%} of the pixels as in fp32"
        if certificate.miou is not None and certificate.reference_miou is not None:
            found = f"mIoU {100 * certificate.reference_miou:.2f} -> {100 * certificate.miou:.2f} ({worst})"
        size = f"{self.fp32_bytes / 1e6:.2f} -> {trial.size_bytes / 1e6:.2f} MB"
        time = f"{trial.fp32_milliseconds:.1f} -> {trial.milliseconds:.1f} ms"
        verdict = "taken" if trial is self.result else "; ".join(map(str, trial.violations)) or "more than needed"
        return f"  {kept}{biases}: {found}, {size}, {time}: {verdict}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
