"""Loss terms: the losses of this package as modules that a training task adds up, once per width and step.

A term takes a `StepContext`, which holds what one width produced, what its teacher said, and the labels. It does not
know which width this is, who the teacher is, or which other terms there are. The sum over terms is the training task's
business, their names in recipes and logs too.

Papers: see the functions that each term calls.

Usage:
    >>> terms = [CrossEntropyTerm(weights), KLTerm(temperature=2.0), BoundaryBandTerm(radius=3, scale=0.5)]
    >>> context = StepContext(outputs, teacher, mask, width=0.5)
    >>> loss = sum(term(context) for term in terms)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.errors import ModelError, TrainingError
from litheseg.losses.boundary import boundary_head_loss, boundary_mask
from litheseg.losses.distillation import (
    channel_wise_distillation,
    kl_divergence,
    pixel_divergence,
    require_pair,
)
from litheseg.losses.segmentation import (
    cross_entropy,
    dice_loss,
    lovasz_softmax,
    ohem_cross_entropy,
    pixel_weights,
    require_same_size,
    weighted_mean,
)
from litheseg.masks.classes import IGNORE_INDEX

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
]


@dataclass
class StepContext:
    """What one width of one step hands to its loss terms.

    Attributes:
        outputs: the student's tensors by name: "logits" N K H W and, if there, "boundary" N 1 H W at the mask's size,
            "aux" N K h w at its own. `log_probabilities` are kept here as well.
        teacher: the same from the teacher, or None for a width that has none (the widest, in stepwise distillation).
        mask: int64 N H W, 255 ignored.
        width: the student's fraction of channels, in (0, 1].
        bands: what `band` has computed. Hand one dict to all contexts of a step (`dataclasses.replace` does), and the
            band of each mask is computed once per step rather than once per width and term.
    """

    outputs: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    mask: Tensor
    width: float = 1.0
    bands: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    # Not handed on by `dataclasses.replace`, so it cannot outlive the mask or the logits it was computed from.
    _pixel_losses: Tensor | None = field(default=None, init=False, repr=False)
    _relabelled: dict[int, StepContext] = field(default_factory=dict, init=False, repr=False)

    def output(self, name: str) -> Tensor:
        """The student's tensor `name`; a `ModelError` if the model gave none."""
        return _named(self.outputs, name, "the model")

    def taught(self, name: str) -> Tensor:
        """The teacher's tensor `name`; a `ModelError` if it gave none, a `TrainingError` if there is no teacher."""
        if self.teacher is None:
            raise TrainingError(f"width {self.width} has no teacher to take '{name}' from; set one, or drop this term")
        return _named(self.teacher, name, "the teacher")

    def band(self, radius: int) -> Tensor:
        """`boundary_mask(mask, radius)`, bool N H W, computed at the first call."""
        key = (radius, id(self.mask))  # no other mask can take this id while the dict holds the mask
        if key not in self.bands:
            self.bands[key] = self.mask, boundary_mask(self.mask, radius)
        return self.bands[key][1]

    def relabelled(self, mask: Tensor) -> StepContext:
        """The same context with other labels; one and the same for each mask."""
        if id(mask) not in self._relabelled:  # kept with the context that it names, so the id stays its own
            self._relabelled[id(mask)] = replace(self, mask=mask)
        return self._relabelled[id(mask)]

    def log_probabilities(self) -> Tensor:
        """Log-softmax of the student's logits, float N K H W; kept in `outputs`, where a narrower width finds it."""
        return _log_probabilities(self.outputs, self.output("logits"))

    def taught_log_probabilities(self) -> Tensor:
        """Log-softmax of the teacher's logits, detached float N K H W."""
        assert self.teacher is not None
        return _log_probabilities(self.teacher, self.taught("logits")).detach()

    def pixel_losses(self) -> Tensor:
        """Cross entropy of each pixel, float N H W, 0 where ignored; computed once per width for all terms."""
        if self._pixel_losses is None:
            require_same_size(self.output("logits"), self.mask)
            self._pixel_losses = F.nll_loss(
                self.log_probabilities(), self.mask, ignore_index=IGNORE_INDEX, reduction="none"
            )
        return self._pixel_losses


class Term(nn.Module, ABC):
    """One addend of the training loss; calling it gives the scaled loss, a scalar.

    A new term implements `_loss`.

    Attributes:
        needs_teacher: whether it reads `StepContext.teacher`; it then gives 0 for a context without one.
        scale: factor of this term in the sum.
    """

    needs_teacher: bool = False

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    @abstractmethod
    def _loss(self, context: StepContext) -> Tensor:
        """The unscaled loss, scalar."""

    def forward(self, context: StepContext) -> Tensor:
        """The scaled loss, a float scalar; 0 for a teacher's term without a teacher."""
        if self.needs_teacher and context.teacher is None:
            return context.mask.new_zeros((), dtype=torch.float32)
        return self.scale * self._loss(context)

    def extra_repr(self) -> str:
        """What `print(term)` shows."""
        return f"scale={self.scale}"


class _WeightedTerm(Term, ABC):
    """A term with class weights, kept as a buffer so that they move with the model but stay out of checkpoints."""

    class_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None = None, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.register_buffer("class_weights", class_weights, persistent=False)


class CrossEntropyTerm(_WeightedTerm):
    """`cross_entropy` of the logits; `class_weights` [K] come from `litheseg.losses.class_weights`."""

    def _loss(self, context: StepContext) -> Tensor:
        weights = pixel_weights(context.mask, self.class_weights, context.output("logits").shape[1])
        return weighted_mean(context.pixel_losses(), weights)


class OhemTerm(_WeightedTerm):
    """`ohem_cross_entropy` of the logits; see there for `threshold` and `min_kept`."""

    def __init__(
        self,
        class_weights: Tensor | None = None,
        threshold: float = 0.7,
        min_kept: int | None = None,
        *,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_weights, scale=scale)
        self.threshold, self.min_kept = threshold, min_kept

    def _loss(self, context: StepContext) -> Tensor:
        return ohem_cross_entropy(
            context.output("logits"), context.mask, self.class_weights, self.threshold, self.min_kept
        )


class DiceTerm(Term):
    """`dice_loss` of the logits."""

    def _loss(self, context: StepContext) -> Tensor:
        return dice_loss(context.output("logits"), context.mask)


class LovaszTerm(Term):
    """`lovasz_softmax` of the logits."""

    def _loss(self, context: StepContext) -> Tensor:
        return lovasz_softmax(context.output("logits"), context.mask)


class AuxTerm(_WeightedTerm):
    """`cross_entropy` of the auxiliary head's logits, by default at 0.4 (PSPNet and DDRNet).

    At the head's own resolution, with the nearest labels: a training aid needs no full-size logits.
    """

    def __init__(self, class_weights: Tensor | None = None, *, scale: float = 0.4) -> None:
        super().__init__(class_weights, scale=scale)

    def _loss(self, context: StepContext) -> Tensor:
        logits = context.output("aux")
        labels = F.interpolate(context.mask[:, None].to(torch.uint8), size=logits.shape[-2:], mode="nearest-exact")
        return cross_entropy(logits, labels[:, 0].long(), self.class_weights)


class BoundaryBandTerm(_WeightedTerm):
    """`band_weighted_cross_entropy` of the logits within `radius` pixels of a label border; added to another term."""

    def __init__(self, class_weights: Tensor | None = None, radius: int = 3, *, scale: float = 1.0) -> None:
        super().__init__(class_weights, scale=scale)
        self.radius = radius

    def _loss(self, context: StepContext) -> Tensor:
        weights = pixel_weights(context.mask, self.class_weights, context.output("logits").shape[1])
        return weighted_mean(context.pixel_losses(), weights * context.band(self.radius))


class BoundaryHeadTerm(Term):
    """`boundary_head_loss` of the model's boundary head."""

    def __init__(self, radius: int = 1, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.radius = radius

    def _loss(self, context: StepContext) -> Tensor:
        return boundary_head_loss(context.output("boundary"), context.mask, band=context.band(self.radius))


class KLTerm(Term):
    """`kl_divergence` to the teacher's logits, over the labelled pixels."""

    needs_teacher = True

    def __init__(self, temperature: float = 1.0, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.temperature = temperature

    def _loss(self, context: StepContext) -> Tensor:
        if self.temperature != 1.0:
            return kl_divergence(context.output("logits"), context.taught("logits"), context.mask, self.temperature)
        require_pair(context.output("logits"), context.taught("logits"), self.temperature)
        require_same_size(context.output("logits"), context.mask)
        divergence = pixel_divergence(context.log_probabilities(), context.taught_log_probabilities())
        return weighted_mean(divergence, (context.mask != IGNORE_INDEX).float())


class ChannelWiseTerm(Term):
    """`channel_wise_distillation` of the logits, over the labelled pixels; the paper scales it by 3."""

    needs_teacher = True

    def __init__(self, temperature: float = 4.0, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.temperature = temperature

    def _loss(self, context: StepContext) -> Tensor:
        student, teacher = context.output("logits"), context.taught("logits")
        return channel_wise_distillation(student, teacher, self.temperature, context.mask)


def _log_probabilities(tensors: dict[str, Tensor], logits: Tensor) -> Tensor:
    if "log_probabilities" not in tensors:
        tensors["log_probabilities"] = F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), 1)
    return tensors["log_probabilities"]


def _named(tensors: dict[str, Tensor], name: str, owner: str) -> Tensor:
    if name not in tensors:
        raise ModelError(
            f"{owner} gives no '{name}', only {', '.join(sorted(tensors))}; "
            f"build it with that head, run it in training mode, or drop the loss term that needs '{name}'"
        )
    return tensors[name]
