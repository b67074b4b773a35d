"""Rank images by the value of a correction: the network's uncertainty, and the distance to other images.

Confidence is computed pixel by pixel from the softmax of the logits at the image's own size, on their device. Large
images are processed in bands of rows, to bound the memory for all classes of 24 megapixels. Entropy and
margin as in Settles, "Active learning literature survey", 2009, section 3.1.

Uncertainty alone picks many frames of one hard scene. So an image's expected gain is its uncertainty times its distance
to the nearest chosen image, and images are chosen greedily. With equal
uncertainty this is the greedy k-center choice of Sener and Savarese, "Active learning for convolutional neural
networks: a core-set approach", ICLR 2018, algorithm 1 (distances between features of the network); with equal distances
it is uncertainty sampling (Lewis and Gale, SIGIR 1994). BADGE (Ash et al., ICLR 2020) has the same two aims, but draws
at random and needs a gradient per image; this is deterministic, and takes n x chosen distances.

Usage:
    >>> outputs = predictor.outputs_rgb(image)
    >>> result = certainty(outputs["logits"], outputs["features"], image.shape[:2])
    >>> result.entropy  # 0: certain everywhere, 1: every class is as likely as any other
    >>> ranking = rank(np.array([0.9, 0.9, 0.4]), np.array([[1, 0], [1, 0], [0, 1]]), count=2)
    >>> ranking.order, ranking.chosen  # the second is a copy of the first
    ((0, 2, 1), 2)
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

__all__ = ["Certainty", "Ranking", "certainty", "rank"]

_MAX_LOGITS = 1 << 26  # values that are interpolated at once
_MAX_BAND = 1 << 24  # values of which probabilities are taken at once


@dataclass(frozen=True)
class Certainty:
    """Labels of an image and how sure the network is of them.

    Attributes:
        labels: uint8 H x W, class indices.
        confidence: float32 H x W, the probability of that class, in [1/K, 1].
        entropy: mean over the pixels of the entropy, divided by log K: in [0, 1]; 0 for a single class.
        margin: mean over the pixels of the likeliest class's probability minus the next one's, in [0, 1].
        features: float32 C, the features of the network averaged over the image.
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
    # Rounding may put the values slightly outside their range.
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


@dataclass(frozen=True)
class Ranking:
    """All images, best first.

    Attributes:
        order: indices of the images: the chosen ones in order of choice, then the rest by remaining gain.
        gain: of the image at each place, in [0, 1]: when chosen, or given all chosen ones; never rises.
        chosen: how many of the first places are chosen.
    """

    order: tuple[int, ...]
    gain: tuple[float, ...]
    chosen: int


def rank(uncertainty: np.ndarray, descriptors: np.ndarray, count: int) -> Ranking:
    """Choose `count` images, and rank the rest behind them.

    Distance is half the Euclidean distance of descriptors of length one, in [0, 1]; while nothing is chosen, it is 1.
    Of equal gains the image farther from the chosen ones is taken, then the one that comes first.

    Args:
        uncertainty: n values in [0, 1].
        descriptors: n x C; scaled to length one here.
        count: how many to choose; all if there are fewer.

    Raises:
        DataError: a negative count.
    """
    if count < 0:
        raise DataError(f"cannot choose {count} images; give 0 or more")
    values = np.asarray(descriptors, np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    directions = np.divide(values, length, out=np.zeros_like(values), where=length > 0)
    distance = np.ones(len(uncertainty))
    free = np.ones(len(uncertainty), bool)
    order: list[int] = []
    gains: list[float] = []
    for _ in range(min(count, len(uncertainty))):
        best = int(np.lexsort((-distance, -uncertainty * distance, ~free))[0])
        order.append(best)
        gains.append(float(uncertainty[best] * distance[best]))
        free[best] = False
        distance = np.minimum(distance, np.linalg.norm(directions - directions[best], axis=1) / 2)
    chosen = len(order)
    gain = uncertainty * distance
    rest = [int(index) for index in np.lexsort((-distance, -gain)) if free[index]]
    return Ranking((*order, *rest), (*gains, *(float(gain[index]) for index in rest)), chosen)
