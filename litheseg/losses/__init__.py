"""What training minimises: pure loss functions, and thin terms that wrap them for the training task.

Usage:
    >>> from litheseg.losses import CrossEntropyTerm, KLTerm, class_weights
"""

from __future__ import annotations

from litheseg.losses.boundary import band_weighted_cross_entropy, boundary_head_loss, boundary_mask
from litheseg.losses.distillation import channel_wise_distillation, kl_divergence
from litheseg.losses.segmentation import (
    class_weights,
    cross_entropy,
    dice_loss,
    lovasz_softmax,
    ohem_cross_entropy,
)
from litheseg.losses.terms import (
    AuxTerm,
    BoundaryBandTerm,
    BoundaryHeadTerm,
    ChannelWiseTerm,
    CrossEntropyTerm,
    DiceTerm,
    KLTerm,
    LovaszTerm,
    OhemTerm,
    StepContext,
    Term,
)

__all__ = [
    "AuxTerm",
    "BoundaryBandTerm",
    "BoundaryHeadTerm",
    "ChannelWiseTerm",
    "CrossEntropyTerm",
    "DiceTerm",
    "KLTerm",
    "LovaszTerm",
    "OhemTerm",
    "StepContext",
    "Term",
    "band_weighted_cross_entropy",
    "boundary_head_loss",
    "boundary_mask",
    "channel_wise_distillation",
    "class_weights",
    "cross_entropy",
    "dice_loss",
    "kl_divergence",
    "lovasz_softmax",
    "ohem_cross_entropy",
]
