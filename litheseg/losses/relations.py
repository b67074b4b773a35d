"""Learning from how a teacher's features relate to each other: pair-wise similarity, and variation within classes.

Cosines are compared, not features, so student and teacher may differ in channels and scale, and no projection between
them is learned. Two relations:

- `pairwise_similarity`: with f the vector of a node (a patch of the map) and a_ij = f_i . f_j / (|f_i| |f_j|), the mean
  over all pairs of nodes of one image of (a_ij(student) - a_ij(teacher))^2.
- `intra_class_variation`: with p the mean vector over the pixels of one class in one image (its prototype) and
  m_i = cos(f_i, p), the mean over the labelled pixels of (m_i(student) - m_i(teacher))^2.

Pure tensor functions that compute in float32 (float64 stays float64) whatever autocast says. The teacher is detached. A
vector of length 0 has no direction: its cosines are 0, and no gradient passes through it. Means go over the global
batch of a distributed run (see `segmentation`). They know neither networks nor where the labels come from.

Papers: structured knowledge distillation (Liu et al., CVPR 2019, pair-wise term; the patches are those of its released
code, in which no gradient passes the vectors' lengths: here the formula's own gradient is taken); intra-class feature
variation distillation (Wang et al., ECCV 2020). Their released code weighs the terms 1 and 200.

Usage:
    >>> loss = cross_entropy(logits, mask) + pairwise_similarity(features, teacher_features)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.errors import LithesegError, did_you_mean
from litheseg.losses.segmentation import weighted_mean

__all__ = ["full_precision", "intra_class_variation", "pairwise_similarity"]

_POOLINGS = ("average", "max")
_SHORTEST = 1e-6  # a vector below this length has no direction


def pairwise_similarity(
    student: Tensor, teacher: Tensor, nodes: int = 2, inside: Tensor | None = None, *, pooling: str = "max"
) -> Tensor:
    """Mean squared difference of the cosines between all nodes of an image.

    A node is a patch of the map, pooled; `nodes` patches to each side cover it, which is the paper's patch of half the
    sides for 2. Where a side is no multiple of `nodes`, patches overlap by a pixel (adaptive pooling), and on smaller
    maps they repeat pixels: the nodes of student and teacher cover the same parts of the image whatever the sizes.

    Args:
        student: features N C h w.
        teacher: features of the same images, of any number of channels and size; detached here.
        nodes: per side, 1 or more; the matrices of cosines hold nodes^4 values an image.
        inside: bool or 0..1, N H W of any size: what counts. Positions outside are not pooled, and a node that has none
            inside is left out. A position of the map counts by the share of it that is inside ("max": if any is).
        pooling: "max" or "average".

    Returns:
        Scalar in 0..4, the mean over the images that have a node; 0 where none has.

    Raises:
        LithesegError: shapes that do not fit, no node, or an unknown pooling.
    """
    _require_maps(student, teacher, inside)
    if nodes < 1:
        raise LithesegError(f"{nodes} nodes to a side cannot be compared; use 1 or more")
    if pooling not in _POOLINGS:
        raise LithesegError(f"pooling '{pooling}' does not exist.{did_you_mean(pooling, _POOLINGS)}")
    with torch.autocast(student.device.type, enabled=False):
        ours, found = _nodes(full_precision(student), nodes, inside, pooling)
        theirs, known = _nodes(full_precision(teacher.detach()), nodes, inside, pooling)
        squares = (_cosines(ours) - _cosines(theirs).to(ours.dtype)).square()
        counted = (found & known).to(squares.dtype)
        pairs = counted[:, :, None] * counted[:, None, :]
        per_image = (squares * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)
        return weighted_mean(per_image, counted.amax(1))


def intra_class_variation(student: Tensor, teacher: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """Mean squared difference of how close each pixel's feature is, by cosine, to the prototype of its class.

    The labels are taken at the student's size (nearest), and the teacher's features are resized to it (bilinear,
    antialiased) where they differ. Pixels without a label count for nothing, neither in the mean; the released code
    counts them as equal.

    Args:
        student: features N C h w.
        teacher: features of the same images, of any number of channels and size; detached here.
        mask: int64 N H W of any size: classes, or 255 for ignored pixels.
        num_classes: pixels with this label or above are ignored.

    Returns:
        Scalar in 0..4, 0 where no pixel is labelled.

    Raises:
        LithesegError: shapes that do not fit.
    """
    _require_maps(student, teacher, mask)
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = full_precision(student), full_precision(teacher.detach())
        size = ours.shape[2:]
        if theirs.shape[2:] != size:
            theirs = F.interpolate(theirs, size, mode="bilinear", antialias=True)
        labels = F.interpolate(mask[:, None].to(torch.uint8), size, mode="nearest-exact").flatten(2)
        members = labels == torch.arange(num_classes, device=labels.device)[:, None]
        squares = (_closeness(ours, members) - _closeness(theirs, members).to(ours.dtype)).square()
        return weighted_mean(squares, members.any(1).to(squares.dtype))


def full_precision(values: Tensor) -> Tensor:
    """Float32, or float64 where `values` are."""
    return values if values.dtype == torch.float64 else values.float()


def _require_maps(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> None:
    """Raise a `LithesegError` unless student and teacher are N C h w, and the mask N H W, of one N."""
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise LithesegError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} must be N C h w "
            "with the same N; hand both networks the same images"
        )
    if mask is not None and (mask.ndim != 3 or len(mask) != len(student)):
        raise LithesegError(
            f"mask {tuple(mask.shape)} does not fit features {tuple(student.shape)}; give N H W with the same N"
        )


def _nodes(features: Tensor, nodes: int, inside: Tensor | None, pooling: str) -> tuple[Tensor, Tensor]:
    """The vectors of all nodes, N C P, and which of them have a position inside, bool N P."""
    average, largest = F.adaptive_avg_pool2d, F.adaptive_max_pool2d
    if inside is None:
        pooled = (largest if pooling == "max" else average)(features, nodes).flatten(2)
        return pooled, torch.ones_like(pooled[:, 0], dtype=torch.bool)
    height, width = features.shape[2:]
    share = average(inside[:, None].to(features.dtype), (height, width))
    covered = average(share, nodes)
    counted = covered > 0
    if pooling == "max":
        pooled = largest(features.masked_fill(share == 0, torch.finfo(features.dtype).min), nodes)
    else:
        pooled = average(features * share, nodes) / torch.where(counted, covered, 1.0)
    return pooled.masked_fill(~counted, 0.0).flatten(2), counted.flatten(1)


def _cosines(vectors: Tensor) -> Tensor:
    """N P P from N C P."""
    units = _directions(vectors, 1)
    return units.transpose(1, 2) @ units


def _closeness(features: Tensor, members: Tensor) -> Tensor:
    """The cosine of each position's feature and its class's mean feature, N P; 0 for positions of no class.

    Args:
        features: N C h w.
        members: bool N K P, which positions belong to which class.
    """
    vectors, belongs = features.flatten(2), members.to(features.dtype)
    prototypes = belongs @ vectors.transpose(1, 2) / belongs.sum(2, keepdim=True).clamp_min(1)
    # All pairs of classes and positions cost less memory than a prototype, or a direction, of C channels per position.
    projections = _directions(prototypes, 2) @ vectors
    return _over_lengths((projections * belongs).sum(1), torch.linalg.vector_norm(vectors, dim=1))


def _directions(vectors: Tensor, axis: int) -> Tensor:
    """Vectors scaled to length 1 along `axis`; 0, with gradient 0, where a vector is shorter than 1e-6."""
    return _over_lengths(vectors, torch.linalg.vector_norm(vectors, dim=axis, keepdim=True))


def _over_lengths(values: Tensor, lengths: Tensor) -> Tensor:
    directed = lengths >= _SHORTEST
    return torch.where(directed, values / torch.where(directed, lengths, 1.0), 0.0)
