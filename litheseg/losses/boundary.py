"""Label borders: the boundary mask and two losses computed there.

Widths of one network differ mostly near semantic borders, which is why SlimSeg-style training adds a loss there: the
cross entropy over a band around them, or a binary head that exists in training only. The formulas are a
reconstruction: only the paper's abstract was read. A boundary lies between two different labels; the frame's edge and
ignored regions are none, and the numbers of the classes do not matter.

Papers: SlimSeg (Xue et al., ACM MM 2022, arXiv 2207.06242), abstract; class-balanced BCE from HED (Xie and Tu,
ICCV 2015, equation 2); Dice next to it for thin boundaries from Deng et al. (ECCV 2018).

Usage:
    >>> band = boundary_mask(mask, radius=3)
    >>> loss = cross_entropy(logits, mask) + cross_entropy(logits, mask, where=band)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeInt
from torch import Tensor

from litheseg.errors import LithesegError
from litheseg.losses.loss import (
    Loss,
    StepContext,
    Weighting,
    require_same_size,
    sum_over_processes,
    weighted_mean,
)
from litheseg.masks.classes import IGNORE_INDEX

__all__ = ["BoundaryBand", "BoundaryHead", "band_cross_entropy", "boundary_head_loss", "boundary_mask", "dilate"]


@dataclass(frozen=True)
class BoundaryBand(Loss, name="boundary-band"):
    """Cross entropy over the band around label borders, as extra weight.

    Added to cross-entropy, band pixels weigh more: by how much depends on the weight and on the band's share of the
    image, not on the image's size.

    Attributes:
        radius: half the band's thickness, in pixels of the training view.
        class_weights: as of cross-entropy.
    """

    radius: NonNegativeInt = 2
    class_weights: Weighting = "log"

    def _loss(self, context: StepContext) -> Tensor:
        return band_cross_entropy(context, context.mask, self.radius, self.class_weights)


@dataclass(frozen=True)
class BoundaryHead(Loss, name="boundary-head"):
    """Class-balanced BCE and Dice of a border head that the model has in training only.

    Attributes:
        radius: half the thickness of the borders that it is to find, in pixels of the training view.
    """

    head = "boundary_head"
    radius: NonNegativeInt = 2

    def _loss(self, context: StepContext) -> Tensor:
        band = band_of(context, context.mask, self.radius)
        return boundary_head_loss(context.output("boundary"), context.mask, band=band)


def band_of(context: StepContext, labels: Tensor, radius: int) -> Tensor:
    """`boundary_mask` of labels, found once for all losses and widths of a step."""
    key = (radius, id(labels))  # no other labels can take this id while the dict holds them
    if key not in context.bands:
        context.bands[key] = labels, boundary_mask(labels, radius)
    return context.bands[key][1]


def band_cross_entropy(context: StepContext, labels: Tensor, radius: int, weighting: Weighting) -> Tensor:
    """Cross entropy over the band around the borders of `labels`."""
    weights = context.pixel_weights(labels, weighting) * band_of(context, labels, radius)
    return weighted_mean(context.pixel_losses(labels), weights)


def boundary_mask(mask: Tensor, radius: int = 0) -> Tensor:
    """Pixels near a border between two labels.

    A pixel is on the boundary when one of its 4 neighbours has another label and neither is ignored. The boundary is
    then dilated by a square of `radius` pixels to each side (so a straight border gives 2 * (radius + 1) pixels
    across), and ignored pixels are taken out.

    Args:
        mask: integer N H W (or H W), labels in 0..255.
        radius: pixels, 0 or more; a `LithesegError` below.

    Returns:
        Bool, shape of `mask`.
    """
    labels = mask.to(torch.uint8)  # an eighth of the memory traffic
    valid = labels != IGNORE_INDEX
    edge = torch.zeros_like(valid)
    for axis in (-1, -2):
        length = labels.shape[axis] - 1
        if length < 1:
            continue
        differs = labels.narrow(axis, 0, length) != labels.narrow(axis, 1, length)
        differs &= valid.narrow(axis, 0, length)
        differs &= valid.narrow(axis, 1, length)
        edge.narrow(axis, 0, length).logical_or_(differs)
        edge.narrow(axis, 1, length).logical_or_(differs)
    return dilate(edge, radius) & valid


def dilate(image: Tensor, radius: int) -> Tensor:
    """The maximum over the (2 * radius + 1)^2 window around each pixel; the frame's outside counts as 0.

    Args:
        image: bool or uint8, ... H W; so is the result.
        radius: pixels, 0 or more; a `LithesegError` below.
    """
    if radius < 0:
        raise LithesegError(f"a radius of {radius} pixels is not possible; use 0 or more")
    grown = image.to(torch.uint8)
    for axis in (-1, -2):
        grown = _window_maximum(grown, min(radius, image.shape[axis]), axis)
    return grown.to(image.dtype)


def boundary_head_loss(logits: Tensor, mask: Tensor, radius: int = 1, *, band: Tensor | None = None) -> Tensor:
    """Class-balanced BCE + Dice for a binary boundary head.

    Balanced as in HED, each side weighs by the other's share; normalised, this is the mean over boundary pixels and the
    mean over the others, averaged. Ignored pixels count for neither.

    Args:
        logits: N 1 H W, positive where the head predicts a boundary; a `LithesegError` if they do not fit the mask.
        mask: int64 N H W.
        radius: of the band that is to be found, pixels.
        band: bool N H W, `boundary_mask(mask, radius)` if it is already known.

    Returns:
        Scalar, 0 where the band is empty.
    """
    require_same_size(logits, mask)
    if logits.shape[1] != 1:
        raise LithesegError(
            f"a boundary head has 1 output channel, this one {logits.shape[1]}; pass its N 1 H W logits"
        )
    band = boundary_mask(mask, radius) if band is None else band
    scores = logits[:, 0] if logits.dtype == torch.float64 else logits[:, 0].float()
    target, valid = band.to(scores.dtype), (mask != IGNORE_INDEX).to(scores.dtype)
    positives, pixels = sum_over_processes(target.sum(), valid.sum())
    balance = torch.where(band, 0.5 / positives.clamp_min(1), 0.5 / (pixels - positives).clamp_min(1)) * valid
    probability = torch.sigmoid(scores) * valid
    bce, found, claimed = sum_over_processes(
        F.binary_cross_entropy_with_logits(scores, target, balance, reduction="sum"),
        (probability * target).sum(),
        probability.sum(),
    )
    dice = 1.0 - 2.0 * found / (claimed + positives).clamp_min(1)
    return (bce + dice) * (positives > 0)


def _window_maximum(image: Tensor, radius: int, axis: int) -> Tensor:
    """Running maximum over 2 * radius + 1 pixels along -1 or -2, in log2 passes by doubling the window."""
    padding = (radius, radius) if axis == -1 else (0, 0, radius, radius)
    grown, span, done = F.pad(image, padding), 2 * radius + 1, 1
    while done < span:
        step = min(done, span - done)
        length = grown.shape[axis] - step
        grown = torch.maximum(grown.narrow(axis, 0, length), grown.narrow(axis, step, length))
        done += step
    return grown
