"""What a loss is, what it may read, and how all of them average.

A loss is one class in one file. Its fields are the arguments that a recipe gives it, with their ranges as types; its
class attributes say which images it is for and what it needs. To add one, write such a class: its name in recipes
registers it.

Means go over the *global* batch of a distributed run, so labels may be spread unevenly over the processes; each of them
must call the same losses in the same order. All losses compute in float32 (float64 stays float64) whatever autocast
says, leave out pixels labelled 255, and are exactly 0 with zero gradient where no pixel counts.

Usage:
    >>> @dataclass(frozen=True)
    ... class SquaredError(Loss, name="squared-error"):
    ...     needs_teacher = True
    ...     margin: NonNegativeFloat = 0.0
    ...
    ...     def _loss(self, context):
    ...         gap = (context.output("logits") - context.teacher_output("logits")).abs() - self.margin
    ...         return weighted_mean(gap.clamp_min(0).square().mean(1), context.inside.float())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jsonargparse.typing import restricted_number_type
from torch import Tensor

from litheseg.errors import LithesegError, ModelError
from litheseg.masks.classes import IGNORE_INDEX

if TYPE_CHECKING:
    BelowOne = float
else:
    BelowOne = restricted_number_type("BelowOne", float, [(">=", 0), ("<", 1)])

__all__ = [
    "LOSSES",
    "BelowOne",
    "Loss",
    "StepContext",
    "Weighting",
    "full_precision",
    "pixel_weights",
    "require_same_size",
    "sum_over_processes",
    "weighted_mean",
]

Weighting = Literal["log", "median", "none"]  # of classes, see `litheseg.losses.class_weights`

LOSSES: dict[str, type[Loss]] = {}  # by the name that recipes use


class Loss(ABC):
    """Base of all losses; subclasses are frozen dataclasses.

    Attributes:
        needs_teacher: whether it reads a teacher's outputs; else it reads the images' own labels.
        on: the images that it is for where a recipe does not say.
        whole_images: whether it needs both networks' outputs on the very same image. For a CutMixed image, a teacher
            otherwise runs on the images before mixing, and its outputs are mixed.
        name: in recipes.
        head: the training-only part of the model that it reads, if any. The model is built with its "boundary_head" if
            a loss reads that; a loss on its "aux_head" is left out of models that have none.
    """

    # Without annotations: in the file of a subclass, where types are read, theirs would need the same imports.
    needs_teacher = False
    on = "labelled"
    whole_images = False
    head = ""
    name = ""

    def __init_subclass__(cls, name: str, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.name = name
        LOSSES[name] = cls

    def __call__(self, context: StepContext) -> Tensor:
        """The loss, a float scalar."""
        return self._loss(context)

    @abstractmethod
    def _loss(self, context: StepContext) -> Tensor: ...


@dataclass
class StepContext:
    """What one width of one step hands to its losses; whatever several of them need is computed once.

    Attributes:
        outputs: the student's tensors by name: "logits" N K H W and, if there, "boundary" N 1 H W at the mask's size,
            "aux" N K h w and "features" N C h w at their own.
        mask: int64 N H W, 255 ignored: labels, or 0 for whatever is inside an unlabelled image.
        teacher: the same from the teacher, or None.
        labelled: whether `mask` holds labels.
        class_weights: float [K] by weighting; what is not there weighs all classes alike.
        bands: what `band` has found; hand one dict to all contexts of a step.
    """

    outputs: dict[str, Tensor]
    mask: Tensor
    teacher: dict[str, Tensor] | None = None
    labelled: bool = True
    class_weights: Mapping[str, Tensor] = field(default_factory=dict)
    bands: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _pixel_losses: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def inside(self) -> Tensor:
        """Bool N H W: the pixels that count."""
        return self.mask != IGNORE_INDEX

    def output(self, name: str) -> Tensor:
        """The student's tensor `name`; a `ModelError` if the model gave none."""
        return _named(self.outputs, name, "the model")

    def teacher_output(self, name: str) -> Tensor:
        """The teacher's tensor `name`; a `ModelError` if it gave none."""
        assert self.teacher is not None, "the recipe was checked"
        return _named(self.teacher, name, "the teacher")

    def log_probabilities(self, temperature: float = 1.0) -> Tensor:
        """Log-softmax of the student's logits, float N K H W; kept in `outputs`, where a narrower width finds it."""
        return _log_probabilities(self.outputs, self.output("logits"), temperature)

    def teacher_log_probabilities(self, temperature: float = 1.0) -> Tensor:
        """Log-softmax of the teacher's logits, detached float N K H W."""
        assert self.teacher is not None, "the recipe was checked"
        return _log_probabilities(self.teacher, self.teacher_output("logits"), temperature).detach()

    def pixel_losses(self, labels: Tensor) -> Tensor:
        """Cross entropy of each pixel to `labels` (int64 N H W), float N H W, 0 where they are 255."""
        if id(labels) not in self._pixel_losses:  # no other labels can take this id while the dict holds them
            require_same_size(self.output("logits"), labels)
            losses = F.nll_loss(self.log_probabilities(), labels, ignore_index=IGNORE_INDEX, reduction="none")
            self._pixel_losses[id(labels)] = labels, losses
        return self._pixel_losses[id(labels)][1]

    def pixel_weights(self, labels: Tensor, weighting: Weighting) -> Tensor:
        """`pixel_weights` of these labels by the data's own class weights."""
        return pixel_weights(labels, self.class_weights.get(weighting), self.output("logits").shape[1])


def _named(tensors: dict[str, Tensor], name: str, owner: str) -> Tensor:
    if name not in tensors:
        raise ModelError(
            f"{owner} gives no '{name}', only {', '.join(sorted(tensors))}; "
            f"build it with that head, run it in training mode, or drop the objective that needs '{name}'"
        )
    return tensors[name]


def _log_probabilities(tensors: dict[str, Tensor], logits: Tensor, temperature: float) -> Tensor:
    key = f"log_probabilities/{temperature:g}"
    if key not in tensors:
        precise = full_precision(logits)
        tensors[key] = F.log_softmax(precise if temperature == 1.0 else precise / temperature, 1)
    return tensors[key]


def pixel_weights(mask: Tensor, weight: Tensor | None, num_classes: int) -> Tensor:
    """The class weight of each pixel's label, float N H W; 1 without class weights, 0 on ignored pixels.

    Raises:
        LithesegError: `weight` does not hold one value per class.
    """
    if weight is None:
        return (mask != IGNORE_INDEX).float()
    if weight.shape != (num_classes,):
        raise LithesegError(
            f"class weights of shape {tuple(weight.shape)} do not fit {num_classes} classes; give one weight per class"
        )
    table = torch.zeros(IGNORE_INDEX + 1, device=mask.device)
    table[:num_classes] = weight.to(mask.device, torch.float32)
    return table[mask.long()]  # a uint8 index would select, not look up


def require_same_size(logits: Tensor, mask: Tensor) -> None:
    """Raise a `LithesegError` unless `logits` is N K H W and `mask` N H W with the same N, H and W."""
    if logits.ndim != 4 or mask.ndim != 3 or (logits.shape[0], *logits.shape[2:]) != tuple(mask.shape):
        raise LithesegError(
            f"logits {tuple(logits.shape)} do not fit mask {tuple(mask.shape)}; "
            "give N K H W and N H W, and upsample the logits to the mask's size first"
        )


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(values * weights) / sum(weights), or 0 (with zero gradient) where all weights are 0.

    Both sums go over all processes of a distributed run; see `sum_over_processes`.
    """
    weighted, total = sum_over_processes((values * weights).sum(), weights.sum())
    return weighted / torch.where(total > 0, total, torch.ones_like(total))


def sum_over_processes(*values: Tensor) -> tuple[Tensor, ...]:
    """Each value summed over the processes of a distributed run; the values themselves in a single process.

    The gradient is the local one times the number of processes: data-parallel training takes the mean over processes,
    and so arrives at the gradient of the sum. Every process must call it equally often, with values of equal shapes.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return values
    local = torch.cat([value.flatten() for value in values])
    total = local.detach().clone()
    dist.all_reduce(total)
    scaled = local * world
    total = total + (scaled - scaled.detach())
    parts = total.split([value.numel() for value in values])
    return tuple(part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True))


def full_precision(values: Tensor) -> Tensor:
    """Float32, or float64 where `values` are."""
    return values if values.dtype == torch.float64 else values.float()
