"""The kinds of teachers: each gives the outputs that a width about to run should imitate on a group of rows.

Papers: SlimSeg (Xue et al., ACM MM 2022): the next wider width; Universally Slimmable Networks (Yu & Huang, ICCV
2019): the widest; Mean Teacher (Tarvainen & Valpola, NeurIPS 2017): an exponential moving average; MGD (Qin et al.,
ECCV 2022): frozen networks; UniMatch (Yang et al., CVPR 2023) and cross pseudo supervision (Chen et al., CVPR 2021): a
network as it is now.

Usage:
    >>> teacher = NextWider()
    >>> teacher.begin(Step.of(batch))
    >>> outputs = teacher.output(0.5, "labelled")  # None for the widest
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jsonargparse.typing import NonNegativeInt
from torch import Tensor, nn

from litheseg.losses.loss import BelowOne
from litheseg.models import SegmentationModel
from litheseg.models.bundle import load_bundle
from litheseg.nn import get_width, set_width
from litheseg.training.config import ModelConfig, OptimizerConfig
from litheseg.training.layout import gains_from_bfloat16, lay_out
from litheseg.training.streams import LABELLED, MIXED, UNLABELLED, Outputs, Step
from litheseg.training.teacher import NetworkTeacher, Setting, Teacher, TeacherConfig
from litheseg.training.teacher_input import require_classes, require_images, teacher_input

__all__ = ["Ema", "Frozen", "FrozenConfig", "Live", "NextWider", "Widest"]


@dataclass(frozen=True)
class NextWiderConfig(TeacherConfig, kind="next-wider"):
    """The next wider width of the same step (SlimSeg)."""

    within = True

    def build(self, setting: Setting) -> Teacher:
        """See `TeacherConfig`."""
        return NextWider()


@dataclass(frozen=True)
class WidestConfig(TeacherConfig, kind="widest"):
    """The widest width of the same step (Universally Slimmable Networks)."""

    within = True

    def build(self, setting: Setting) -> Teacher:
        """See `TeacherConfig`."""
        return Widest()


@dataclass(frozen=True)
class FrozenConfig(TeacherConfig, kind="frozen"):
    """A finished network; one that is not there yet is trained first.

    Attributes:
        bundle: its model file.
        width: the width at which it runs.
        model: what is trained first where there is no bundle, from the same images.
        recipe: how that is done: cps (MGD), unimatch-v2, supervised, ...
        epochs: of that training; 0 for the run's own.
        optimizer: of that training; None for the run's own.
    """

    bundle: str | None = None
    width: float = 1.0
    model: ModelConfig | None = None
    recipe: str = "cps"
    epochs: NonNegativeInt = 0
    optimizer: OptimizerConfig | None = None

    def build(self, setting: Setting) -> Teacher:
        """See `TeacherConfig`.

        Raises:
            RecipeError: its classes are not those of the data.
            BundleError: the bundle cannot be read.
        """
        assert self.bundle is not None, "teachers without a bundle have been trained"
        bundle = load_bundle(self.bundle)
        require_classes(self.bundle, bundle.header.classes.names, setting.data.classes.names)
        require_images(self.bundle, bundle.header.images, setting.data.images)
        plain = bundle.plain(self.width)
        assert isinstance(plain, SegmentationModel)
        lay_out(plain, setting.trainer)
        sees = teacher_input(self.bundle, bundle.header, setting.data)
        return Frozen(plain, setting.asked, bfloat16=gains_from_bfloat16(setting.trainer), sees=sees)


@dataclass(frozen=True)
class EmaConfig(TeacherConfig, kind="ema"):
    """A moving average of the network itself (Mean Teacher).

    Attributes:
        decay: per step.
        width: the width at which it runs.
    """

    decay: BelowOne = 0.999
    width: float = 1.0

    def build(self, setting: Setting) -> Teacher:
        """See `TeacherConfig`."""
        return Ema(setting.student, self.decay, self.width, setting.asked)


@dataclass(frozen=True)
class SelfConfig(TeacherConfig, kind="self"):
    """The network as it is, on unlabelled images before they are altered (UniMatch).

    Attributes:
        width: the width at which it runs.
    """

    width: float = 1.0

    def build(self, setting: Setting) -> Teacher:
        """See `TeacherConfig`."""
        return Live(setting.student, self.width, setting.asked)


@dataclass(frozen=True)
class PeerConfig(TeacherConfig, kind="peer"):
    """A second network of the same architecture, trained beside the first (cross pseudo supervision).

    Attributes:
        width: the width at which it runs.
    """

    width: float = 1.0

    def build(self, setting: Setting) -> Teacher:
        """See `TeacherConfig`."""
        assert setting.peer is not None, "a run with such a teacher has two networks"
        return Live(setting.peer, self.width, setting.asked)


class NextWider(Teacher):
    """Stepwise downward: each width learns from the next wider one of the same step."""

    def __init__(self) -> None:
        super().__init__()
        self._previous: dict[str, Outputs] = {}

    def begin(self, step: Step) -> None:
        """Forget the last step."""
        self._previous = {}

    def output(self, width: float, view: str) -> Outputs | None:
        """The outputs of the width that ran just before."""
        return self._previous.get(UNLABELLED if view == MIXED else view)

    def observe(self, width: float, parts: dict[str, Outputs]) -> None:
        """Become the teacher of the next narrower width."""
        self._previous = _detached(parts)


class Widest(NextWider):
    """In-place distillation: every width learns from the widest one of the same step."""

    def observe(self, width: float, parts: dict[str, Outputs]) -> None:
        """Keep the outputs of the first, widest width."""
        self._previous = self._previous or _detached(parts)


def _detached(parts: dict[str, Outputs]) -> dict[str, Outputs]:
    return {stream: {name: value.detach() for name, value in outputs.items()} for stream, outputs in parts.items()}


class _Apart:
    """Holds a network outside the module that uses it, so that it is not saved, averaged or copied with that module."""

    def __init__(self, model: SegmentationModel) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, object]) -> _Apart:
        return self


class Frozen(NetworkTeacher):
    """A finished network, plain; nothing of it is trained.

    It has a file of its own, so checkpoints leave it out: the two of the paper would add 570 MB to each.

    Args:
        model: the network.
        asked: see `NetworkTeacher`.
        bfloat16: compute in half precision, which is for devices that are faster in it.
        sees: turns the student's images into the network's own input; None where they are the same.
    """

    def __init__(
        self,
        model: SegmentationModel,
        asked: Collection[str] = (LABELLED,),
        *,
        bfloat16: bool = False,
        sees: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(asked)
        self._apart, self._bfloat16 = _Apart(model.requires_grad_(False)), bfloat16
        self._sees = sees

    @property
    def model(self) -> SegmentationModel:
        """The network, on the device of its last input."""
        return self._apart.model

    def _outputs(self, image: Tensor) -> Outputs:
        if next(self.model.parameters()).device != image.device:  # once; to walk all layers takes milliseconds
            self.model.to(image.device)
        image = image if self._sees is None else self._sees(image)
        with torch.autocast(image.device.type, torch.bfloat16) if self._bfloat16 else nullcontext():
            return self.model.eval().outputs(image)


class Ema(NetworkTeacher):
    """An exponential moving average of the student itself, at one width; batch-norm statistics are copied."""

    def __init__(
        self, model: SegmentationModel, decay: float, width: float, asked: Collection[str] = (LABELLED,)
    ) -> None:
        super().__init__(asked)
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0
        set_width(self.model, width)

    def _outputs(self, image: Tensor) -> Outputs:
        return self.model.eval().outputs(image)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the student; faster in the first steps, while the average still holds random weights."""
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
        """Restore the number of updates."""
        self.steps = int(state)


class Live(NetworkTeacher):
    """A network as it is now: the student itself, or a peer that is trained beside it.

    It runs in evaluation mode, which leaves its batch-norm statistics alone. It is not part of this module: its
    own task moves it between devices and saves it.
    """

    def __init__(self, model: SegmentationModel, width: float, asked: Collection[str] = (UNLABELLED,)) -> None:
        super().__init__(asked)
        self._network = (model,)  # in a tuple, so that it is not registered here
        self._width = width

    def _outputs(self, image: Tensor) -> Outputs:
        (model,) = self._network
        before, training = get_width(model), model.training
        set_width(model, self._width)
        try:
            return model.eval().outputs(image)
        finally:
            set_width(model, before)
            model.train(training)
