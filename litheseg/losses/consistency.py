"""Losses on pseudo-labels: a teacher's predictions used as labels.

A pseudo-label is the teacher's most likely class; where it is less likely than `confidence`, or where the
mask is ignored (padding outside an image, void labels), the pixel is left out.

Papers: MGD (Qin et al., ECCV 2022), pixel level: every label counts; FixMatch (Sohn et al., NeurIPS 2020) and UniMatch
(Yang et al., CVPR 2023): a confidence of 0.95, and the loss divided by all pixels, so that few sure ones weigh little.

Usage:
    >>> loss = cross_entropy(logits, pseudo_labels(teacher_logits, mask, confidence=0.95))
"""

from __future__ import annotations

from dataclasses import dataclass

from jsonargparse.typing import NonNegativeInt
from torch import Tensor

from litheseg.losses.boundary import band_cross_entropy
from litheseg.losses.loss import BelowOne, Loss, StepContext, Weighting, weighted_mean
from litheseg.masks.classes import IGNORE_INDEX

__all__ = ["PseudoBand", "PseudoCrossEntropy", "pseudo_labels", "teacher_labels"]


@dataclass(frozen=True)
class PseudoCrossEntropy(Loss, name="pseudo-labels"):
    """Cross entropy to the teacher's labels, times the share of pixels that are sure enough.

    Attributes:
        confidence: least probability of a label that counts; 0 for all.
        class_weights: as of cross-entropy.
    """

    needs_teacher = True
    on = "unlabelled"
    confidence: BelowOne = 0.0
    class_weights: Weighting = "log"

    def _loss(self, context: StepContext) -> Tensor:
        labels = teacher_labels(context, self.confidence)
        loss = weighted_mean(context.pixel_losses(labels), context.pixel_weights(labels, self.class_weights))
        return loss * _sure_share(context, labels) if self.confidence > 0 else loss


@dataclass(frozen=True)
class PseudoBand(Loss, name="pseudo-band"):
    """Cross entropy to the teacher's labels over the band around their borders, as extra weight.

    Attributes:
        confidence: as of pseudo-labels.
        radius: as of boundary-band.
        class_weights: as of cross-entropy.
    """

    needs_teacher = True
    on = "unlabelled"
    confidence: BelowOne = 0.0
    radius: NonNegativeInt = 2
    class_weights: Weighting = "log"

    def _loss(self, context: StepContext) -> Tensor:
        labels = teacher_labels(context, self.confidence)
        loss = band_cross_entropy(context, labels, self.radius, self.class_weights)
        return loss * _sure_share(context, labels) if self.confidence > 0 else loss


def pseudo_labels(logits: Tensor, mask: Tensor, confidence: float = 0.0) -> Tensor:
    """The most likely class of each pixel, int64 N H W; 255 where `mask` is, and below the confidence.

    Args:
        logits: of the teacher, N K H W.
        mask: int64 N H W; only whether it is 255 counts.
        confidence: the least softmax probability, in [0, 1).
    """
    labels = logits.detach().max(1).indices  # the same as argmax, and on a CPU four times as fast
    labels = labels.masked_fill(mask == IGNORE_INDEX, IGNORE_INDEX)
    if confidence > 0:
        sure = logits.detach().float().softmax(1).amax(1) >= confidence
        labels = labels.masked_fill(~sure, IGNORE_INDEX)
    return labels


def teacher_labels(context: StepContext, confidence: float = 0.0) -> Tensor:
    """The teacher's `pseudo_labels`; kept with its outputs, where other losses and widths find them."""
    assert context.teacher is not None, "the recipe was checked"
    key = f"labels>={confidence:g}"
    if key not in context.teacher:
        if confidence <= 0 and "labels" in context.teacher:
            labels = context.teacher["labels"].long().masked_fill(~context.inside, IGNORE_INDEX)
        else:
            labels = pseudo_labels(context.teacher_output("logits"), context.mask, confidence)
        context.teacher[key] = labels
    return context.teacher[key]


def _sure_share(context: StepContext, labels: Tensor) -> Tensor:
    return weighted_mean((labels != IGNORE_INDEX).float(), context.inside.float())
