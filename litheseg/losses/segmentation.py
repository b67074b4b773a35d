"""Losses between logits and labels: cross entropy, OHEM, Dice and Lovasz-softmax, and automatic class weights.

Pure tensor functions. Every loss computes in float32 (float64 stays float64) whatever autocast says, leaves out pixels
labelled `litheseg.data.IGNORE_INDEX` (255), and is exactly 0 with zero gradient when no pixel is labelled. They do not
know networks, teachers or recipes; `litheseg.losses.terms` wraps them for training.

In a distributed run (torch.distributed is initialised) a loss is that of the *global* batch, the same in every process:
sums go over all processes before they are divided, so labels may be spread unevenly. Every process must then call the
same losses in the same order. Two losses need all pixels in one place, and are the mean over the processes instead:
Lovasz-softmax, and OHEM in how it fills up to `min_kept`.

Papers: ENet (Paszke et al. 2016, section 5.2) and ERFNet (Romera et al. 2018) for logarithmic class weights; Eigen and
Fergus (ICCV 2015) for median frequency; Shrivastava et al. (CVPR 2016) for OHEM; Milletari et al. (3DV 2016) for Dice;
Berman et al. (CVPR 2018) for Lovasz-softmax.

Usage:
    >>> weight = class_weights(histogram, "log")
    >>> loss = cross_entropy(logits, mask, weight)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from litheseg.errors import DataError, LithesegError, RecipeError, did_you_mean
from litheseg.masks.classes import IGNORE_INDEX

__all__ = [
    "class_weights",
    "cross_entropy",
    "dice_loss",
    "lovasz_softmax",
    "ohem_cross_entropy",
    "pixel_cross_entropy",
    "pixel_weights",
    "require_same_size",
    "sum_over_processes",
    "weighted_mean",
]

_MODES: Final = ("log", "median", "none")


def class_weights(
    histogram: np.ndarray[Any, Any] | Tensor | Sequence[int], mode: str = "log", offset: float = 1.10
) -> Tensor | None:
    """Class weights from how often each class occurs.

    Args:
        histogram: labelled pixels per class, shape [K], none negative.
        mode: "log" for 1 / ln(offset + p) with p the class's share of the pixels; "median" for median(p) / p, the
            median over the classes that occur; "none" for no weights.
        offset: the constant in "log", above 1: the smaller, the more a rare class weighs. 1.10 bounds the weights to
            [1.35, 10.5] (ERFNet), 1.02 to [1.42, 50.5] (ENet).

    Returns:
        Float32 [K], finite and positive, or None for "none". A class that never occurs gets what p = 0 gives in "log",
        and 1 in "median", where the formula has no value.

    Raises:
        RecipeError: an unknown mode, or an offset of 1 or less.
        DataError: a histogram that is not one-dimensional, or holds negative or non-finite counts.
    """
    if mode not in _MODES:
        raise RecipeError(f"class weights '{mode}' do not exist.{did_you_mean(mode, _MODES)}")
    if mode == "log" and not offset > 1.0:
        raise RecipeError(f"class weight offset {offset} makes the weight of an absent class infinite; use more than 1")
    counts = torch.as_tensor(histogram).to("cpu", torch.float64)
    if counts.ndim != 1 or counts.numel() == 0 or not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise DataError(f"a class histogram needs one count of 0 or more per class, got {counts.tolist()}")
    if mode == "none":
        return None
    share = counts / counts.sum().clamp_min(1)
    if mode == "log":
        return (1.0 / torch.log(offset + share)).float()
    occurs = share > 0
    weights = torch.ones_like(share)
    if bool(occurs.any()):
        weights[occurs] = float(np.median(share[occurs].numpy())) / share[occurs]
    return weights.float()


def cross_entropy(logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy, averaged over the labelled pixels.

    With `weight` the mean is the weighted one, sum(w * loss) / sum(w) (as torch's): multiplying all weights by a
    constant changes nothing, so class weights do not act as a hidden learning rate.

    Args:
        logits: N K H W, any float type.
        mask: int64 N H W, classes or `IGNORE_INDEX`.
        weight: [K] class weights.

    Returns:
        Scalar, 0 when no pixel is labelled.

    Raises:
        LithesegError: sizes or class counts that do not fit.
    """
    return weighted_mean(pixel_cross_entropy(logits, mask), pixel_weights(mask, weight, logits.shape[1]))


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

    Returns:
        Scalar, 0 when no pixel is labelled.
    """
    losses = pixel_cross_entropy(logits, mask)
    hardness = losses.detach().masked_fill(mask == IGNORE_INDEX, -1.0)
    least = max(1, mask.numel() // 16 if min_kept is None else min(min_kept, mask.numel()))
    keep = hardness > -math.log(threshold)
    if int(keep.sum()) < least:  # choosing the k hardest costs a sort, so only when it is needed
        keep = (hardness >= hardness.flatten().topk(least, sorted=False).values.min()) & (hardness >= 0)
    return weighted_mean(losses, pixel_weights(mask, weight, logits.shape[1]) * keep)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss, 1 - 2 |P Y| / (|P| + |Y|), averaged over the classes that the batch's labels hold.

    A class in the labels has at least one pixel, so no smoothing term is needed.

    Args:
        logits: N K H W.
        mask: int64 N H W.

    Returns:
        Scalar in [0, 1], 0 when no pixel is labelled.
    """
    require_same_size(logits, mask)
    valid = mask != IGNORE_INDEX
    labels = mask.masked_fill(~valid, 0)
    probabilities = F.softmax(_full_precision(logits), 1) * valid[:, None]
    own = probabilities.gather(1, labels[:, None]).flatten()
    overlap = own.new_zeros(logits.shape[1]).index_add(0, labels.flatten(), own)
    labelled = torch.zeros_like(overlap).index_add(0, labels.flatten(), valid.flatten().to(own.dtype))
    overlap, labelled, predicted = sum_over_processes(overlap, labelled, probabilities.sum((0, 2, 3)))
    dice = 2.0 * overlap / (predicted + labelled).clamp_min(1.0)
    return weighted_mean(1.0 - dice, (labelled > 0).to(own.dtype))


def lovasz_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Lovasz-softmax, the convex extension of the Jaccard loss, averaged over the classes that the labels hold.

    Computed over the whole batch, not per image (Berman et al. 2018, algorithm 1, equations 8, 9 and 11).

    Args:
        logits: N K H W.
        mask: int64 N H W.

    Returns:
        Scalar in [0, 1], 0 when no pixel is labelled.
    """
    require_same_size(logits, mask)
    valid = mask != IGNORE_INDEX
    labels = mask[valid]
    if not labels.numel():
        return logits.sum() * 0.0
    probabilities = F.softmax(_full_precision(logits), 1).movedim(1, 0)
    losses = [_lovasz_one(probabilities[index][valid], labels == index) for index in labels.unique().tolist()]
    return torch.stack(losses).mean()


def pixel_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of each pixel without weights, float N H W; 0 where the mask is `IGNORE_INDEX`."""
    require_same_size(logits, mask)
    return F.cross_entropy(_full_precision(logits), mask.long(), ignore_index=IGNORE_INDEX, reduction="none")


def pixel_weights(mask: Tensor, weight: Tensor | None, num_classes: int) -> Tensor:
    """The class weight of each pixel's label, float N H W; 1 without class weights, 0 on ignored pixels.

    Raises:
        LithesegError: `weight` does not hold one value per class.
    """
    if weight is None:
        return (mask != IGNORE_INDEX).float()
    if weight.shape != (num_classes,):
        raise LithesegError(
            f"class weights of shape {tuple(weight.shape)} do not fit {num_classes} classes; give one weight per class"
        )
    table = torch.zeros(IGNORE_INDEX + 1, device=mask.device)
    table[:num_classes] = weight.to(mask.device, torch.float32)
    return table[mask.long()]  # a uint8 index would select, not look up


def require_same_size(logits: Tensor, mask: Tensor) -> None:
    """Raise a `LithesegError` unless `logits` is N K H W and `mask` N H W with the same N, H and W."""
    if logits.ndim != 4 or mask.ndim != 3 or (logits.shape[0], *logits.shape[2:]) != tuple(mask.shape):
        raise LithesegError(
            f"logits {tuple(logits.shape)} do not fit mask {tuple(mask.shape)}; "
            "give N K H W and N H W, and upsample the logits to the mask's size first"
        )


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(values * weights) / sum(weights), or 0 (with zero gradient) where all weights are 0.

    Both sums go over all processes of a distributed run; see `sum_over_processes`.
    """
    weighted, total = sum_over_processes((values * weights).sum(), weights.sum())
    return weighted / torch.where(total > 0, total, torch.ones_like(total))


def sum_over_processes(*values: Tensor) -> tuple[Tensor, ...]:
    """Each value summed over the processes of a distributed run; the values themselves in a single process.

    The gradient is the local one times the number of processes: data-parallel training takes the mean over processes,
    and so arrives at the gradient of the sum. Every process must call it equally often, with values of equal shapes.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return values
    local = torch.cat([value.flatten() for value in values])
    total = local.detach().clone()
    dist.all_reduce(total)
    scaled = local * world
    total = total + (scaled - scaled.detach())
    parts = total.split([value.numel() for value in values])
    return tuple(part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True))


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


def _full_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
