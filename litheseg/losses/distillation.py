"""Learning from another network's logits: pixel-wise KL and channel-wise distillation.

Pure tensor functions. The teacher is always detached, so no gradient reaches it. They do not know who the teacher is;
`litheseg.training.teachers` does.

Papers: Hinton et al. (2015, arXiv 1503.02531) for temperature and its square; SlimSeg (Xue et al., ACM MM 2022) for
stepwise downward distillation, where it is averaged over labelled pixels; channel-wise knowledge distillation (Shu et
al., ICCV 2021, equations 3 and 4).

Usage:
    >>> loss = cross_entropy(narrow, mask) + kl_divergence(narrow, wide, mask)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from litheseg.errors import LithesegError
from litheseg.losses.segmentation import require_same_size, weighted_mean
from litheseg.masks.classes import IGNORE_INDEX

__all__ = ["channel_wise_distillation", "kl_divergence", "pixel_divergence", "require_pair"]

_NEVER = -1e30  # a logit whose softmax is exactly 0 and whose logarithm is still finite


def kl_divergence(student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(teacher || student) between each pixel's class distributions, averaged over the labelled pixels.

    Averaged over pixels, not over images (`batchmean` would make it grow with the image's area); T^2 keeps the
    gradient's scale when T changes.

    Args:
        student: logits N K H W.
        teacher: logits N K H W; detached here.
        mask: int64 N H W whose ignored pixels are left out; None to use all pixels (unlabelled images).
        temperature: T > 0.

    Returns:
        Scalar, 0 or more; 0 when no pixel is labelled.

    Raises:
        LithesegError: shapes that do not fit, or a temperature of 0 or less.
    """
    require_pair(student, teacher, temperature)
    if mask is not None:
        require_same_size(student, mask)
    ours = _log_softmax(student, 1, temperature)
    theirs = _log_softmax(teacher.detach(), 1, temperature).to(ours.dtype)
    divergence = pixel_divergence(ours, theirs)
    weights = torch.ones_like(divergence) if mask is None else (mask != IGNORE_INDEX).to(divergence.dtype)
    return temperature**2 * weighted_mean(divergence, weights)


def channel_wise_distillation(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    """T^2 * KL(teacher || student) between each channel's distributions over the positions, averaged over channels.

    Each channel becomes a softmax over its H * W positions: where it is active counts, not how strongly.

    Args:
        student: logits or features, N C H W.
        teacher: N C H W; detached here.
        temperature: T > 0; the paper uses 4.
        mask: int64 N H W whose ignored positions are left out of the softmax; None to use all positions.

    Returns:
        Scalar, 0 or more, averaged over channels and over the images that have a labelled pixel; 0 when none has.

    Raises:
        LithesegError: shapes that do not fit, or a temperature of 0 or less.
    """
    require_pair(student, teacher, temperature)
    teacher = teacher.detach()
    counted = torch.ones(len(student), device=student.device)
    if mask is not None:
        require_same_size(student, mask)
        ignored = (mask == IGNORE_INDEX)[:, None]
        student, teacher = (_precise(x).masked_fill(ignored, _NEVER) for x in (student, teacher))
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


def require_pair(student: Tensor, teacher: Tensor, temperature: float) -> None:
    """Raise a `LithesegError` unless both are of one shape N C H W and the temperature is above 0."""
    if student.shape != teacher.shape or student.ndim != 4:
        raise LithesegError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be the same N C H W; "
            "resize one to the other, and give both the same classes"
        )
    if not temperature > 0:
        raise LithesegError(f"a distillation temperature of {temperature} is not possible; use more than 0")


def _log_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    logits = _precise(logits)
    return F.log_softmax(logits if temperature == 1.0 else logits / temperature, axis)


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
