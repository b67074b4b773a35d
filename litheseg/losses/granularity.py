"""Learning from teachers at two granularities: the whole image's classes, and how its regions resemble each other.

- `image_level` (semantic-sensitive; the paper takes the deep teacher): with g_k the mean over an image of its logits of
  class k, the sum over k of |g_k(student) - g_k(teacher)|.
- `region_level` (content-aware; the wide teacher): with f_i the mean feature of cell i of a 7 x 7 grid, the mean over
  all 49 x 49 pairs of (cos(f_i, f_j) of the student - that of the teacher)^2.

The third granularity, pixels, is a cross entropy on a teacher's hard labels (`segmentation`). Pure tensor functions
that compute in float32 (float64 stays float64) whatever autocast says; the teacher is detached. Means go over the
global batch of a distributed run (see `segmentation`). They do not know who the teacher is or whether images are mixed.

Paper: multi-granularity distillation, MGD (Qin et al., ECCV 2022, arXiv 2208.10169), formulas as in its released code.
That code *sums* the image-level loss over the 2 images of each GPU; here it is the mean over images, so the paper's
weight of it (lambda 1: 0.001 on Cityscapes, 0.002 on VOC) is to be doubled. The region-level loss is a mean in both.

Usage:
    >>> loss = 0.002 * image_level(logits, deep_logits) + 100 * region_level(features, wide_features)
"""

from __future__ import annotations

import torch
from torch import Tensor

from litheseg.losses.distillation import require_pair
from litheseg.losses.relations import full_precision, pairwise_similarity
from litheseg.losses.segmentation import require_same_size, weighted_mean

__all__ = ["image_level", "region_level"]


def image_level(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over images of the sum over classes of |mean logit of the student - mean logit of the teacher|.

    Args:
        student: logits N K H W; the paper's are at the size of the input.
        teacher: logits N K H W; detached here.
        weights: bool, or float of 0 or more, N H W: how much a pixel counts in its image's mean. An image without a
            pixel that counts is left out.

    Returns:
        Scalar, 0 or more; 0 where no image counts.

    Raises:
        LithesegError: shapes that do not fit.
    """
    require_pair(student, teacher, 1.0)
    ours = full_precision(student)
    gaps = ours - full_precision(teacher.detach()).to(ours.dtype)  # the difference of means is the mean difference
    if weights is None:
        return weighted_mean(gaps.mean((2, 3)).abs().sum(1), gaps.new_ones(len(gaps)))
    require_same_size(student, weights)
    weights = weights.to(gaps.dtype)
    total = weights.sum((1, 2))
    counted = total > 0
    means = (gaps * weights[:, None]).sum((2, 3)) / torch.where(counted, total, 1.0)[:, None]
    return weighted_mean(means.abs().sum(1), counted.to(gaps.dtype))


def region_level(student: Tensor, teacher: Tensor, grid: int = 7, inside: Tensor | None = None) -> Tensor:
    """Mean squared difference of the cosine similarities between all cells of a grid over each image.

    The maps are pooled by their average to grid x grid cells. A map with fewer positions than cells repeats them in
    neighbouring cells (adaptive pooling), so any size of map will do.

    Args:
        student: features N C h w.
        teacher: features of the same images, of any number of channels and size; detached here.
        grid: cells per side, 1 or more; the matrices hold grid^4 values an image.
        inside: bool or 0..1, N H W of any size: what counts. Only the part of a cell that is inside is pooled, and a
            cell without any is left out.

    Returns:
        Scalar in 0..4, the mean over the images that have a cell inside; 0 where none has.

    Raises:
        LithesegError: shapes that do not fit, or a grid below 1.
    """
    return pairwise_similarity(student, teacher, grid, inside, pooling="average")
