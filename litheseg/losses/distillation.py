"""Learning from another network's logits and features: pixels, channels, images, regions, and variation within classes.

Pure tensor functions, and next to them the losses that recipes name. The teacher is always detached. Images,
regions and features are compared by both networks' outputs on the *same* image; cosines are compared, not features,
so that student and teacher may differ in channels and scale, and no projection between them is learned. A vector of
length 0 has no direction: its cosines are 0, and no gradient passes through it.

Papers:
- Hinton et al. (2015, arXiv 1503.02531): temperature and its square; SlimSeg (Xue et al., ACM MM 2022): from width to
  width, averaged over labelled pixels.
- Channel-wise distillation (Shu et al., ICCV 2021, equations 3 and 4).
- MGD (Qin et al., ECCV 2022, arXiv 2208.10169): image and region level, as in its released code. That code *sums* the
  image level over the 2 images of each GPU; here it is the mean over images, so the paper's weight of it (lambda 1:
  0.001 on Cityscapes, 0.002 on VOC) is to be doubled.
- Structured distillation (Liu et al., CVPR 2019): pair-wise similarity. The patches are those of its released code, in
  which no gradient passes the vectors' lengths: here the formula's own gradient is taken.
- Intra-class feature variation (Wang et al., ECCV 2020). The released code of both weighs them 1 and 200.

Usage:
    >>> loss = cross_entropy(narrow, mask) + kl_divergence(narrow, wide, mask)
    >>> loss = 0.002 * image_level(logits, deep_logits) + 100 * region_level(features, wide_features)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable

from litheseg.errors import LithesegError
from litheseg.losses.consistency import teacher_labels
from litheseg.losses.loss import Loss, StepContext, full_precision, require_same_size, weighted_mean
from litheseg.masks.classes import IGNORE_INDEX

__all__ = [
    "KL",
    "ChannelWise",
    "ImageLevel",
    "IntraClass",
    "Pairwise",
    "RegionLevel",
    "channel_wise_distillation",
    "image_level",
    "intra_class_variation",
    "kl_divergence",
    "pairwise_similarity",
    "pixel_divergence",
    "region_level",
]

_NEVER = -1e30  # a logit whose softmax is exactly 0 and whose logarithm is still finite
_SHORTEST = 1e-6  # a vector below this length has no direction


@dataclass(frozen=True)
class KL(Loss, name="kl"):
    """T^2 KL(teacher || student) of the class distributions, averaged over the labelled pixels.

    Attributes:
        temperature: T.
    """

    needs_teacher = True
    on = "all"
    temperature: PositiveFloat = 1.0

    def _loss(self, context: StepContext) -> Tensor:
        _require_pair(context.output("logits"), context.teacher_output("logits"), self.temperature)
        require_same_size(context.output("logits"), context.mask)
        ours = context.log_probabilities(self.temperature)
        theirs = context.teacher_log_probabilities(self.temperature).to(ours.dtype)
        return self.temperature**2 * weighted_mean(pixel_divergence(ours, theirs), context.inside.to(ours.dtype))


@dataclass(frozen=True)
class ChannelWise(Loss, name="channel-wise"):
    """Channel-wise distillation of the logits over the labelled pixels; the paper weighs it by 3.

    Attributes:
        temperature: of the distribution over the positions; the paper's is 4.
    """

    needs_teacher = True
    on = "all"
    temperature: PositiveFloat = 4.0

    def _loss(self, context: StepContext) -> Tensor:
        student, teacher = context.output("logits"), context.teacher_output("logits")
        return channel_wise_distillation(student, teacher, self.temperature, context.mask)


@dataclass(frozen=True)
class ImageLevel(Loss, name="image-level"):
    """MGD's image level: how far each class's mean logit is from the teacher's; use twice the paper's weight."""

    needs_teacher = True
    on = "unlabelled"
    whole_images = True

    def _loss(self, context: StepContext) -> Tensor:
        return image_level(context.output("logits"), context.teacher_output("logits"), context.inside)


@dataclass(frozen=True)
class RegionLevel(Loss, name="region-level"):
    """MGD's region level: which regions of the features are alike; the paper weighs it by 100 or 50.

    Attributes:
        grid: regions per side.
    """

    needs_teacher = True
    on = "unlabelled"
    whole_images = True
    grid: PositiveInt = 7

    def _loss(self, context: StepContext) -> Tensor:
        return region_level(context.output("features"), context.teacher_output("features"), self.grid, context.inside)


@dataclass(frozen=True)
class Pairwise(Loss, name="pairwise"):
    """Pair-wise similarity of patches of the features.

    Attributes:
        nodes: patches per side.
    """

    needs_teacher = True
    on = "all"
    whole_images = True
    nodes: PositiveInt = 2

    def _loss(self, context: StepContext) -> Tensor:
        student, teacher = context.output("features"), context.teacher_output("features")
        return pairwise_similarity(student, teacher, self.nodes, context.inside)


@dataclass(frozen=True)
class IntraClass(Loss, name="intra-class"):
    """How like each pixel's feature is to its class's mean feature; on unlabelled images by the teacher's labels."""

    needs_teacher = True
    on = "all"
    whole_images = True

    def _loss(self, context: StepContext) -> Tensor:
        labels = context.mask if context.labelled else teacher_labels(context)
        num_classes = context.output("logits").shape[1]
        return intra_class_variation(
            context.output("features"), context.teacher_output("features"), labels, num_classes
        )


def kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(teacher || student) between the class distributions of pixels, averaged over those that count.

    Averaged over pixels, not over images (`batchmean` would make it grow with the image's area); T^2 keeps the
    gradient's scale when T changes.

    Args:
        student: logits N K H W.
        teacher: logits N K H W.
        mask: int64 N H W whose ignored pixels are left out; None to use all.
        temperature: T > 0.
    """
    mask = torch.zeros_like(student[:, 0], dtype=torch.int64) if mask is None else mask
    return KL(temperature)(StepContext({"logits": student}, mask, {"logits": teacher}))


def channel_wise_distillation(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    """T^2 * KL(teacher || student) between the distributions of channels over the positions, averaged over channels.

    Each channel becomes a softmax over its H * W positions: where it is active counts, not how strongly. Images
    without a position that counts are left out of the mean.

    Args:
        student: logits or features, N C H W.
        teacher: N C H W.
        temperature: T > 0; the paper uses 4.
        mask: int64 N H W whose ignored positions are left out of the softmax; None to use all.
    """
    _require_pair(student, teacher, temperature)
    teacher = teacher.detach()
    counted = torch.ones(len(student), device=student.device)
    if mask is not None:
        require_same_size(student, mask)
        ignored = (mask == IGNORE_INDEX)[:, None]
        student, teacher = (full_precision(x).masked_fill(ignored, _NEVER) for x in (student, teacher))
        counted = 1.0 - ignored.flatten(1).all(1).float()
    ours = _log_softmax(student.flatten(2), 2, temperature)
    theirs = _log_softmax(teacher.flatten(2), 2, temperature).to(ours.dtype)
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2).mean(1)
    return temperature**2 * weighted_mean(divergence, counted.to(divergence.dtype))


def pixel_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each pixel, from log-probabilities N K H W of one float type: N H W.

    No gradient reaches the teacher. The same as `F.kl_div`, in half the passes over memory: at the size of the labels,
    these are most of what distillation costs.
    """
    divergence: Tensor = _PixelDivergence.apply(student, teacher.detach())
    return divergence


class _PixelDivergence(torch.autograd.Function):
    """Keeps the teacher's probabilities: they are the gradient but for its sign."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        probabilities = teacher.exp()
        ctx.save_for_backward(probabilities)
        return (teacher - student).mul_(probabilities).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (probabilities,) = ctx.saved_tensors
        return probabilities * gradient.neg()[:, None], None


def _require_pair(student: Tensor, teacher: Tensor, temperature: float) -> None:
    """Raise a `LithesegError` unless both are of one shape N C H W and the temperature is above 0."""
    if student.shape != teacher.shape or student.ndim != 4:
        raise LithesegError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be the same N C H W; "
            "resize one to the other, and give both the same classes"
        )
    if not temperature > 0:
        raise LithesegError(f"a distillation temperature of {temperature} is not possible; use more than 0")


def _log_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    logits = full_precision(logits)
    return F.log_softmax(logits if temperature == 1.0 else logits / temperature, axis)


def image_level(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over images of the sum over classes of |mean logit of the student - mean logit of the teacher|.

    Args:
        student: logits N K H W; the paper's are at the size of the input.
        teacher: logits N K H W.
        weights: bool, or float of 0 or more, N H W: how much a pixel counts in its image's mean. An image without a
            pixel that counts is left out.
    """
    _require_pair(student, teacher, 1.0)
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
        teacher: features of the same images, of any number of channels and size.
        grid: cells per side; the matrices hold grid^4 values an image.
        inside: bool or 0..1, N H W of any size: what counts. Only the part of a cell that is inside is pooled, and a
            cell without any is left out, as is an image without any cell.
    """
    return pairwise_similarity(student, teacher, grid, inside, pooling="average")


def pairwise_similarity(
    student: Tensor,
    teacher: Tensor,
    nodes: int = 2,
    inside: Tensor | None = None,
    *,
    pooling: Literal["average", "max"] = "max",
) -> Tensor:
    """Mean squared difference of the cosines between all nodes of an image.

    A node is a patch of the map, pooled; `nodes` patches to each side cover it, which is the paper's patch of half the
    sides for 2. Where a side is no multiple of `nodes`, patches overlap by a pixel (adaptive pooling), and on smaller
    maps they repeat pixels: the nodes of student and teacher cover the same parts of the image whatever the sizes.

    Args:
        student: features N C h w.
        teacher: features of the same images, of any number of channels and size.
        nodes: per side; the matrices of cosines hold nodes^4 values an image.
        inside: bool or 0..1, N H W of any size: what counts. Positions outside are not pooled, and a node that has none
            inside is left out. A position of the map counts by the share of it that is inside ("max": if any is).
        pooling: "max" or "average".
    """
    _require_maps(student, teacher, inside)
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
    antialiased) where they differ. Pixels without a label are left out, of the mean too; the released code
    counts them as equal.

    Args:
        student: features N C h w.
        teacher: features of the same images, of any number of channels and size.
        mask: int64 N H W of any size: classes, or 255 for ignored pixels.
        num_classes: pixels with this label or above are ignored.
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
