"""Boundary IoU: how well two segmentations agree near the contours of each class.

Counts pixels only; what is done with the counts is `litheseg.evaluation.metrics`' business.

Paper: Boundary IoU (Cheng et al., CVPR 2021, section 4). For each class, the pixels of the class within `dilation`
pixels of its contour are compared between prediction and labels, by intersection over union. As in the paper's code,
the frame's edge is a contour where a class touches it, and distance is that of a square window. Ours: an ignored region
makes no contour, in neither map.

Usage:
    >>> intersection, predicted, labelled = boundary_counts(prediction, mask, num_classes=11, dilation=6)
    >>> iou = intersection / (predicted + labelled - intersection)
"""

from __future__ import annotations

import torch
from torch import Tensor

from litheseg.losses.boundary import dilate
from litheseg.masks.classes import IGNORE_INDEX

__all__ = ["boundary_counts", "class_contours", "dilation_for"]


def dilation_for(height: int, width: int, fraction: float = 0.02) -> int:
    """`fraction` of an image's diagonal in whole pixels, at least 1; 2 % is the paper's choice."""
    return max(1, round(fraction * (height**2 + width**2) ** 0.5))


def class_contours(labels: Tensor, valid: Tensor, dilation: int) -> Tensor:
    """Pixels within `dilation` pixels of the contour of their own class.

    A pixel is inside its class, away from the contour, when the (2 * dilation + 1)^2 window around it lies in the frame
    and holds no other class: smallest label = largest label. So one pass serves all classes.

    Args:
        labels: integer N H W, 0..254 where valid.
        valid: bool N H W; pixels outside it are no contour and make none.
        dilation: pixels, 1 or more.

    Returns:
        Bool N H W.
    """
    own = labels.to(torch.uint8)
    # 0 never raises a maximum, so invalid pixels have no say; the smallest label is the largest complement.
    differs = dilate(own.where(valid, 0), dilation) != own
    differs |= dilate((255 - own).where(valid, 0), dilation) != 255 - own
    differs[:, :dilation] = differs[:, -dilation:] = True
    differs[:, :, :dilation] = differs[:, :, -dilation:] = True
    return differs & valid


def boundary_counts(prediction: Tensor, mask: Tensor, num_classes: int, dilation: int) -> Tensor:
    """Pixels near the contours of each class.

    Args:
        prediction: integer N H W, 0..K-1.
        mask: integer N H W, 0..K-1 or `IGNORE_INDEX`.
        num_classes: K.
        dilation: pixels, 1 or more.

    Returns:
        Int64 [3, K]: pixels near the contour in both maps and of the same class, in the prediction, in the labels.
    """
    valid = mask != IGNORE_INDEX
    predicted = class_contours(prediction, valid, dilation)
    labelled = class_contours(mask, valid, dilation)
    both = predicted & labelled & (prediction == mask)
    pairs = ((mask, both), (prediction, predicted), (mask, labelled))
    # One more bin for all other pixels is several times faster than picking the pixels out.
    counts = [
        torch.bincount(labels.where(chosen, num_classes).flatten(), minlength=num_classes + 1)
        for labels, chosen in pairs
    ]
    return torch.stack(counts)[:, :num_classes]
