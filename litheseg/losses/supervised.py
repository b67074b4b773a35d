"""Losses between logits and labels: cross entropy, OHEM, Dice, Lovasz-softmax, deep supervision; and class weights.

Pure tensor functions, and next to them the losses that recipes name.

Papers: ENet (Paszke et al. 2016, section 5.2) and ERFNet (Romera et al. 2018) for logarithmic class weights; Eigen and
Fergus (ICCV 2015) for median frequency; Shrivastava et al. (CVPR 2016) for OHEM; Milletari et al. (3DV 2016) for Dice;
Berman et al. (CVPR 2018) for Lovasz-softmax; PSPNet (Zhao et al., CVPR 2017) for deep supervision at a weight of 0.4.

Usage:
    >>> weight = class_weights(histogram, "log")
    >>> loss = cross_entropy(logits, mask, weight)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse.typing import OpenUnitInterval
from torch import Tensor

from litheseg.errors import DataError
from litheseg.losses.loss import (
    Loss,
    StepContext,
    Weighting,
    full_precision,
    pixel_weights,
    require_same_size,
    sum_over_processes,
    weighted_mean,
)
from litheseg.masks.classes import IGNORE_INDEX

__all__ = [
    "CrossEntropy",
    "DeepSupervision",
    "Dice",
    "Lovasz",
    "Ohem",
    "class_weights",
    "cross_entropy",
    "dice_loss",
    "lovasz_softmax",
    "ohem_cross_entropy",
]


@dataclass(frozen=True)
class CrossEntropy(Loss, name="cross-entropy"):
    """Cross entropy to the labels, averaged over the labelled pixels.

    Attributes:
        class_weights: log is 1 / ln(1.1 + share) (ENet), median is median frequency, none.
    """

    class_weights: Weighting = "log"

    def _loss(self, context: StepContext) -> Tensor:
        weights = context.pixel_weights(context.mask, self.class_weights)
        return weighted_mean(context.pixel_losses(context.mask), weights)


@dataclass(frozen=True)
class Ohem(Loss, name="ohem"):
    """Cross entropy over the hard pixels only, at least a sixteenth of all.

    Attributes:
        threshold: pixels whose own class is at least this likely are easy.
        class_weights: as of cross-entropy.
    """

    threshold: OpenUnitInterval = 0.7
    class_weights: Weighting = "log"

    def _loss(self, context: StepContext) -> Tensor:
        weight = context.class_weights.get(self.class_weights)
        return ohem_cross_entropy(context.output("logits"), context.mask, weight, self.threshold)


@dataclass(frozen=True)
class Dice(Loss, name="dice"):
    """Soft Dice, averaged over the classes that the labels hold."""

    def _loss(self, context: StepContext) -> Tensor:
        return dice_loss(context.output("logits"), context.mask)


@dataclass(frozen=True)
class Lovasz(Loss, name="lovasz"):
    """Lovasz-softmax over the whole batch."""

    def _loss(self, context: StepContext) -> Tensor:
        return lovasz_softmax(context.output("logits"), context.mask)


@dataclass(frozen=True)
class DeepSupervision(Loss, name="deep-supervision"):
    """Cross entropy of the auxiliary head's logits, at its own resolution, to the nearest labels.

    Attributes:
        class_weights: as of cross-entropy.
    """

    head = "aux_head"
    class_weights: Weighting = "log"

    def _loss(self, context: StepContext) -> Tensor:
        logits = context.output("aux")
        labels = F.interpolate(context.mask[:, None].to(torch.uint8), size=logits.shape[-2:], mode="nearest-exact")
        return cross_entropy(logits, labels[:, 0].long(), context.class_weights.get(self.class_weights))


def class_weights(histogram: np.ndarray[Any, Any] | Tensor | Sequence[int], weighting: Weighting) -> Tensor | None:
    """Class weights from how often each class occurs.

    Args:
        histogram: labelled pixels per class, shape [K], none negative.
        weighting: "log" for 1 / ln(1.1 + p) with p the class's share of the pixels, in [1.35, 10.5] (ERFNet); "median"
            for median(p) / p, the median over the classes that occur; "none" for no weights.

    Returns:
        Float32 [K], finite and positive, or None for "none". A class that never occurs gets what p = 0 gives in "log",
        and 1 in "median", where the formula has no value.

    Raises:
        DataError: a histogram that is not one-dimensional, or holds negative or non-finite counts.
    """
    counts = torch.as_tensor(histogram).to("cpu", torch.float64)
    if counts.ndim != 1 or counts.numel() == 0 or not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise DataError(f"a class histogram needs one count of 0 or more per class, got {counts.tolist()}")
    if weighting == "none":
        return None
    share = counts / counts.sum().clamp_min(1)
    if weighting == "log":
        return (1.0 / torch.log(1.1 + share)).float()
    occurs = share > 0
    weights = torch.ones_like(share)
    if bool(occurs.any()):
        weights[occurs] = float(np.median(share[occurs].numpy())) / share[occurs]
    return weights.float()


def cross_entropy(logits: Tensor, mask: Tensor, weight: Tensor | None = None, *, where: Tensor | None = None) -> Tensor:
    """Cross entropy, averaged over the labelled pixels.

    With `weight` the mean is the weighted one, sum(w * loss) / sum(w) (as torch's): multiplying all weights by a
    constant changes nothing, so class weights do not act as a hidden learning rate.

    Args:
        logits: N K H W, any float type; a `LithesegError` if they do not fit the mask or the weights.
        mask: int64 N H W, classes or `IGNORE_INDEX`.
        weight: [K] class weights.
        where: bool N H W, the pixels that count, such as a `boundary_mask`; None for all.
    """
    weights = pixel_weights(mask, weight, logits.shape[1])
    return weighted_mean(_pixel_cross_entropy(logits, mask), weights if where is None else weights * where)


def ohem_cross_entropy(
    logits: Tensor, mask: Tensor, weight: Tensor | None = None, threshold: float = 0.7, min_kept: int | None = None
) -> Tensor:
    """Cross entropy over the hard pixels only: online hard example mining.

    A pixel is hard when the probability of its own class is below `threshold`. Where fewer than `min_kept` are, the
    `min_kept` hardest count (all, if fewer are labelled; ties at the last place all count). Class weights weigh the
    mean but do not choose the pixels.

    Args:
        logits: N K H W.
        mask: int64 N H W.
        weight: [K] class weights.
        threshold: probability in (0, 1].
        min_kept: pixels per batch; None for a sixteenth of the batch's pixels.
    """
    losses = _pixel_cross_entropy(logits, mask)
    hardness = losses.detach().masked_fill(mask == IGNORE_INDEX, -1.0)
    least = max(1, mask.numel() // 16 if min_kept is None else min(min_kept, mask.numel()))
    keep = hardness > -math.log(threshold)
    if int(keep.sum()) < least:  # choosing the k hardest costs a sort, so only when it is needed
        keep = (hardness >= hardness.flatten().topk(least, sorted=False).values.min()) & (hardness >= 0)
    return weighted_mean(losses, pixel_weights(mask, weight, logits.shape[1]) * keep)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss, 1 - 2 |P Y| / (|P| + |Y|), averaged over the classes that the batch's labels hold.

    A class in the labels has at least one pixel, so no smoothing term is needed. Logits are N K H W, the mask int64
    N H W, the result is in [0, 1].
    """
    require_same_size(logits, mask)
    valid = mask != IGNORE_INDEX
    labels = mask.masked_fill(~valid, 0)
    probabilities = F.softmax(full_precision(logits), 1) * valid[:, None]
    own = probabilities.gather(1, labels[:, None]).flatten()
    overlap = own.new_zeros(logits.shape[1]).index_add(0, labels.flatten(), own)
    labelled = torch.zeros_like(overlap).index_add(0, labels.flatten(), valid.flatten().to(own.dtype))
    overlap, labelled, predicted = sum_over_processes(overlap, labelled, probabilities.sum((0, 2, 3)))
    dice = 2.0 * overlap / (predicted + labelled).clamp_min(1.0)
    return weighted_mean(1.0 - dice, (labelled > 0).to(own.dtype))


def lovasz_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Lovasz-softmax, the convex extension of the Jaccard loss, averaged over the classes that the labels hold.

    Computed over the whole batch, not per image (Berman et al. 2018, algorithm 1, equations 8, 9 and 11). Logits are
    N K H W, the mask int64 N H W, the result is in [0, 1].
    """
    require_same_size(logits, mask)
    valid = mask != IGNORE_INDEX
    labels = mask[valid]
    if not labels.numel():
        return logits.sum() * 0.0
    probabilities = F.softmax(full_precision(logits), 1).movedim(1, 0)
    losses = [_lovasz_one(probabilities[index][valid], labels == index) for index in labels.unique().tolist()]
    return torch.stack(losses).mean()


def _pixel_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of each pixel without weights, float N H W; 0 where the mask is `IGNORE_INDEX`."""
    require_same_size(logits, mask)
    return F.cross_entropy(full_precision(logits), mask.long(), ignore_index=IGNORE_INDEX, reduction="none")


def _lovasz_one(probability: Tensor, foreground: Tensor) -> Tensor:
    """The Lovasz extension of one class's Jaccard loss from [P] probabilities and [P] bool labels."""
    errors, order = (foreground.to(probability.dtype) - probability).abs().sort(descending=True)
    return (errors * _jaccard_steps(foreground[order], errors.dtype)).sum()


def _jaccard_steps(foreground: Tensor, dtype: torch.dtype) -> Tensor:
    """How much the Jaccard loss rises when each pixel, worst first, becomes wrong too.

    The published code subtracts neighbouring values of the loss, which in float32 loses most digits on large images.
    The difference has a closed form: with I the intersection and U the union, 1 / U where the pixel is foreground
    (I falls by one) and I / ((U - 1) U) where it is background (U rises by one).
    """
    hits = foreground.cumsum(0)
    total = hits[-1]
    union = total + torch.arange(1, len(hits) + 1, device=hits.device) - hits
    inverse = union.to(dtype).reciprocal()
    background = (total - hits).to(dtype) * inverse / (union - 1).clamp_min(1).to(dtype)
    return torch.where(foreground, inverse, background)
