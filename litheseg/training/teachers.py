"""Who teaches: each teacher answers, for a width about to run, with the outputs that it should imitate.

A teacher sees the step's images (`begin`) and what each width computed (`observe`); it never passes a gradient on. Its
lessons are at the labels' size, and computed once per step. It does not know which loss uses them.

Papers: SlimSeg (Xue et al., ACM MM 2022): the next wider width; Universally Slimmable Networks (Yu & Huang, ICCV 2019):
the widest; Mean Teacher (Tarvainen & Valpola, NeurIPS 2017): an exponential moving average.

Usage:
    >>> teacher = NextWider()
    >>> teacher.begin(image, mask.shape[-2:])
    >>> lesson = teacher.lesson(0.5)  # None for the widest
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from litheseg.models import SegmentationModel
from litheseg.models.base import resize
from litheseg.nn import set_width

__all__ = ["Ema", "Frozen", "NextWider", "Nobody", "Outputs", "Teacher", "Widest", "at_size"]

Outputs = dict[str, Tensor]


def at_size(outputs: Outputs, size: torch.Size) -> Outputs:
    """Logits and border logits resampled to `size` (H, W); the others as they are.

    Made float and contiguous while they are small: softmax over the channels of a channels_last tensor is slow.
    """
    full = ("logits", "boundary")
    return {
        name: resize(value.float().contiguous(), size) if name in full else value for name, value in outputs.items()
    }


class Teacher(nn.Module, ABC):
    """Base of all teachers; widths run widest first."""

    def begin(self, image: Tensor, size: torch.Size) -> None:
        """A step begins with these images (N x 3 x H x W, normalised); its labels are of `size` (H, W)."""

    @abstractmethod
    def lesson(self, width: float) -> Outputs | None:
        """What `width` should imitate, detached; None when there is nothing to imitate."""

    def observe(self, width: float, outputs: Outputs) -> None:
        """`width` computed these outputs."""

    def update(self, model: nn.Module) -> None:
        """The optimizer has moved the model's weights."""


class Nobody(Teacher):
    """Labels only."""

    def lesson(self, width: float) -> Outputs | None:
        """None."""
        return None


def _detached(outputs: Outputs) -> Outputs:
    return {name: value.detach() for name, value in outputs.items()}


class NextWider(Teacher):
    """Stepwise downward: each width learns from the next wider one of the same step."""

    def __init__(self) -> None:
        super().__init__()
        self._previous: Outputs | None = None

    def begin(self, image: Tensor, size: torch.Size) -> None:
        """Forget the last step."""
        self._previous = None

    def lesson(self, width: float) -> Outputs | None:
        """The outputs of the width that ran just before."""
        return self._previous

    def observe(self, width: float, outputs: Outputs) -> None:
        """Become the lesson of the next narrower width."""
        self._previous = _detached(outputs)


class Widest(Teacher):
    """In-place distillation: every width learns from the widest one of the same step."""

    def __init__(self) -> None:
        super().__init__()
        self._widest: Outputs | None = None

    def begin(self, image: Tensor, size: torch.Size) -> None:
        """Forget the last step."""
        self._widest = None

    def lesson(self, width: float) -> Outputs | None:
        """The outputs of the width that ran first."""
        return self._widest

    def observe(self, width: float, outputs: Outputs) -> None:
        """Keep the first."""
        if self._widest is None:
            self._widest = _detached(outputs)


class Frozen(Teacher):
    """A finished network, plain, in evaluation mode; it runs once a step, for all widths."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self._outputs: Outputs = {}

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode: its batch-norm statistics are those it was trained with."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def begin(self, image: Tensor, size: torch.Size) -> None:
        """Run the teacher."""
        self._outputs = at_size(self.model.outputs(image), size)

    def lesson(self, width: float) -> Outputs | None:
        """The same for every width."""
        return self._outputs


class Ema(Frozen):
    """An exponential moving average of the student itself, at one width; batch-norm statistics are copied."""

    def __init__(self, model: SegmentationModel, decay: float, width: float) -> None:
        super().__init__(copy.deepcopy(model))
        self.decay = decay
        self.steps = 0
        set_width(self.model, width)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the student; faster in the first steps, when the average is still of random weights."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - decay)
        for my_buffer, their_buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            my_buffer.copy_(their_buffer)

    def get_extra_state(self) -> Tensor:
        """The number of updates, so that a resumed run goes on exactly."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self.steps = int(state)
