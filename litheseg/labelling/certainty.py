"""How sure a network is of an image: confidence pixel by pixel, and the figures by which images are ranked.

Probabilities are the softmax of the logits at the image's own size. Large images are gone through in bands of rows, so
that all classes of 24 megapixels are never in memory at once. Computed by PyTorch on the device that made the logits,
hence not in `masks`. Entropy and margin as in Settles, "Active learning literature survey", 2009, section 3.1.

Usage:
    >>> outputs = predictor.outputs_rgb(image)
    >>> result = certainty(outputs["logits"], outputs["features"], image.shape[:2])
    >>> result.entropy  # 0: certain everywhere, 1: every class is as likely as any other
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.errors import DataError

__all__ = ["Certainty", "certainty"]

_MAX_LOGITS = 1 << 26  # values that are interpolated at once
_MAX_BAND = 1 << 24  # values of which probabilities are taken at once


@dataclass(frozen=True)
class Certainty:
    """Labels of an image and how sure the network is of them.

    Attributes:
        labels: uint8 H x W, class indices.
        confidence: float32 H x W, the probability of that class, in [1/K, 1].
        entropy: mean over the pixels of the entropy, divided by log K: in [0, 1]; 0 for a single class.
        margin: mean over the pixels of how much the likeliest class is ahead of the next one, in [0, 1].
        features: float32 C, the features of the network averaged over the image: what the image is like.
    """

    labels: np.ndarray
    confidence: np.ndarray
    entropy: float
    margin: float
    features: np.ndarray


@torch.inference_mode()
def certainty(logits: Tensor, features: Tensor, size: tuple[int, int]) -> Certainty:
    """Judge one image.

    Args:
        logits: 1 x K x h x w.
        features: 1 x C x h' x w'.
        size: height and width of the image, to which logits are interpolated (bilinear).

    Raises:
        DataError: logits or features that are not finite.
    """
    height, width = size
    classes = logits.shape[1]
    labels = np.empty((height, width), np.uint8)
    confidence = np.empty((height, width), np.float32)
    entropy = margin = 0.0
    for top, band in _bands(logits, size):
        log_likely = band.log_softmax(0)
        likely = log_likely.exp()
        best = likely.topk(min(2, classes), dim=0).values
        rows = slice(top, top + band.shape[1])
        labels[rows] = band.argmax(0).to(torch.uint8).cpu().numpy()
        confidence[rows] = best[0].cpu().numpy()
        entropy -= float((likely * log_likely).sum(dtype=torch.float64))
        margin += float((best[0] - best[1] if classes > 1 else best[0]).sum(dtype=torch.float64))
    pooled = features.mean((0, 2, 3)).cpu().numpy()
    if not (math.isfinite(entropy) and np.isfinite(pooled).all()):
        raise DataError("the network's output is not finite; train the model anew or use another one")
    pixels = height * width
    # A certain network's entropy may come out a rounding error away from the ends of the range.
    relative = min(max(entropy / (pixels * math.log(classes)), 0.0), 1.0) if classes > 1 else 0.0
    return Certainty(labels, confidence, relative, margin / pixels, pooled)


def _bands(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """(first row, K x rows x W) of the logits at `size`, from top to bottom."""
    height, width = size
    whole = None
    if logits.shape[1] * height * width <= _MAX_LOGITS:
        whole = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    rows = max(1, _MAX_BAND // (logits.shape[1] * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = _interpolated(logits, size, top, bottom) if whole is None else whole[:, :, top:bottom]
        yield top, band[0]


def _interpolated(logits: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Rows `top` to `bottom` of what `F.interpolate` would make of the logits: 1 x K x (bottom - top) x W."""
    inner = logits.shape[2]
    centres = (torch.arange(top, bottom, device=logits.device, dtype=torch.float64) + 0.5) * inner / size[0] - 0.5
    centres = centres.clamp(0, inner - 1)
    above = centres.floor().long()
    share = (centres - above).to(logits.dtype)[:, None]
    below = (above + 1).clamp(max=inner - 1)
    rows = logits[:, :, above] * (1 - share) + logits[:, :, below] * share
    # Heights agree, so only columns are interpolated.
    return F.interpolate(rows, (bottom - top, size[1]), mode="bilinear", align_corners=False)
