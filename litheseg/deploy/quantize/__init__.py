"""int8: quantized after training on real images, checked class by class, never quietly worse than fp32."""

from __future__ import annotations

from litheseg.deploy.quantize.calibration import CALIBRATION_IMAGES, calibration_samples
from litheseg.deploy.quantize.report import REPORT_SUFFIX, QuantizationReport, QuantizationTrial
from litheseg.deploy.quantize.tolerance import Tolerance
from litheseg.deploy.quantize.twin import Twins

__all__ = [
    "CALIBRATION_IMAGES",
    "REPORT_SUFFIX",
    "QuantizationReport",
    "QuantizationTrial",
    "Tolerance",
    "Twins",
    "calibration_samples",
]
