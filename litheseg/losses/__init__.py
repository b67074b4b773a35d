"""What training minimises: pure functions, and next to each the loss that recipes name.

Usage:
    >>> from litheseg.losses import LOSSES, Loss, cross_entropy
"""

from __future__ import annotations

from litheseg.losses.boundary import boundary_head_loss, boundary_mask
from litheseg.losses.consistency import pseudo_labels
from litheseg.losses.distillation import (
    channel_wise_distillation,
    image_level,
    intra_class_variation,
    kl_divergence,
    pairwise_similarity,
    region_level,
)
from litheseg.losses.loss import LOSSES, Loss, StepContext
from litheseg.losses.supervised import class_weights, cross_entropy, dice_loss, lovasz_softmax, ohem_cross_entropy

__all__ = [
    "LOSSES",
    "Loss",
    "StepContext",
    "boundary_head_loss",
    "boundary_mask",
    "channel_wise_distillation",
    "class_weights",
    "cross_entropy",
    "dice_loss",
    "image_level",
    "intra_class_variation",
    "kl_divergence",
    "lovasz_softmax",
    "ohem_cross_entropy",
    "pairwise_similarity",
    "pseudo_labels",
    "region_level",
]
