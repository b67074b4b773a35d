"""Which layers int8 hurts most: the error that each one causes at the network's end when it alone is quantized.

Measured on a few calibration images, in the runtime that the file is made for, so that what the runtime's own kernels
do wrong (saturation, say) is seen too. The images that decide whether the result is accepted have no part in it.

The error is the divergence of int8's class probabilities from fp32's, averaged over the pixels of each class that fp32
finds, then over classes: small classes count as they do in mIoU. It does not know what is done about it.

Usage:
    >>> ranked = rank_layers(network.quantized(images, probe=True), engine_of, fp32, images)
    >>> ranked[0].layer.name, ranked[0].error
    ('node_Conv_809', 0.31)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from litheseg.deploy.quantize.networks import Layer, Network
from litheseg.runtime.engines import Engine

__all__ = ["Sensitivity", "output_error", "rank_layers"]


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one layer costs.

    Attributes:
        layer: the layer.
        error: >= 0; nats per pixel, or the share of labels that change where the network gives labels only.
    """

    layer: Layer
    error: float


def rank_layers(
    probe: Network,
    engine_of: Callable[[Network], Engine],
    reference: Engine,
    images: Sequence[np.ndarray],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Sensitivity, ...]:
    """All layers of a network, the most sensitive first.

    Args:
        probe: made by `Network.quantized(..., probe=True)`.
        engine_of: makes a network run.
        reference: the network in fp32.
        images: uint8 h w 3; a few of those that calibrated.
        progress: called with (done, total) after each layer.
    """
    pixels = [images[index] for index in range(len(images))]
    expected = [reference(image) for image in pixels]
    layers, ranked = probe.layers(), []
    for done, layer in enumerate(layers, 1):
        engine = engine_of(probe.only(layer.name))
        error = output_error((truth, engine(image)) for truth, image in zip(expected, pixels, strict=True))
        ranked.append(Sensitivity(layer, error))
        if progress is not None:
            progress(done, len(layers))
    return tuple(sorted(ranked, key=lambda entry: -entry.error))  # stable: equal ones stay in running order


def output_error(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """How far outputs are from what they should be, averaged over the classes that should be there.

    Args:
        pairs: (expected, found): logits K h w, or labels h w.

    Returns:
        Nats per pixel (logits) or share of pixels (labels), >= 0; infinite if an output is not finite.
    """
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    for expected, found in pairs:
        winners, errors = _pixel_errors(expected, found)
        for label in np.unique(winners).tolist():
            inside = winners == label
            sums[label] = sums.get(label, 0.0) + float(errors[inside].sum())
            counts[label] = counts.get(label, 0) + int(inside.sum())
    mean = float(np.mean([sums[label] / counts[label] for label in sums]))
    return mean if math.isfinite(mean) else math.inf


def _pixel_errors(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The expected label of every pixel, and how wrong the output is there."""
    if expected.ndim == 2:
        return expected, (expected != found).astype(np.float64)
    truth, guess = _log_probabilities(expected), _log_probabilities(found)
    return expected.argmax(0), (np.exp(truth) * (truth - guess)).sum(0)


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite makes the error infinite
        shifted = logits.astype(np.float64) - logits.max(0)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(0)))
