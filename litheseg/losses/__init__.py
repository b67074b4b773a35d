"""What training minimises: pure loss functions, and thin terms that wrap them for the training task.

Usage:
    >>> from litheseg.losses import CrossEntropyTerm, KLTerm, class_weights
"""

from __future__ import annotations

from litheseg.losses.boundary import band_weighted_cross_entropy, boundary_head_loss, boundary_mask
from litheseg.losses.distillation import channel_wise_distillation, kl_divergence
from litheseg.losses.granularity import image_level, region_level
from litheseg.losses.granularity_terms import ImageLevelTerm, IntraClassTerm, PairwiseTerm, RegionLevelTerm
from litheseg.losses.relations import intra_class_variation, pairwise_similarity
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
    "ImageLevelTerm",
    "IntraClassTerm",
    "KLTerm",
    "LovaszTerm",
    "OhemTerm",
    "PairwiseTerm",
    "RegionLevelTerm",
    "StepContext",
    "Term",
    "band_weighted_cross_entropy",
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
    "region_level",
]
