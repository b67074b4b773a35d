"""int8 networks: quantized after training on real images, checked class by class, never quietly worse than fp32."""

from __future__ import annotations

from litheseg.deploy.quantize.quantizer import Quantizer
from litheseg.deploy.quantize.report import REPORT_SUFFIX, QuantizationReport, QuantizationTrial, Tolerance
from litheseg.deploy.samples import CALIBRATION_IMAGES, calibration_samples

__all__ = [
    "CALIBRATION_IMAGES",
    "REPORT_SUFFIX",
    "QuantizationReport",
    "QuantizationTrial",
    "Quantizer",
    "Tolerance",
    "calibration_samples",
]
