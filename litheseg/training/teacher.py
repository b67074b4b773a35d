"""What teachers have in common: what recipes say of one, what it is built from, and when it runs.

A kind of teacher is a dataclass: its fields are the arguments in a recipe (`teachers: {NAME: {kind: ema, decay:
0.99}}`), `build` makes the module that teaches. To add one, write both; its kind is all that registers it.

A teacher sees the step's images (`begin`) and what each width computed (`observe`); no gradient passes through it. One
that learns itself has a `loss`, which is added to the student's. Outputs are at the labels' size, and computed once per
step. A teacher runs on an unlabelled image before mixing, and its outputs are mixed as the image was; for losses that
compare whole images it runs on the mixed image itself (`MIXED`).

Usage:
    >>> teacher = TEACHERS["next-wider"]().build(setting)
    >>> teacher.begin(Step.of(batch))
    >>> outputs = teacher.output(0.5, "labelled")  # None for the widest
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from litheseg.models import SegmentationModel
from litheseg.models.base import resample, resize
from litheseg.models.upsampling import upsample_labels
from litheseg.training.config import TrainerConfig
from litheseg.training.streams import LABELLED, MIXED, PERTURBED, UNLABELLED, LazyOutputs, Outputs, Step

if TYPE_CHECKING:
    from litheseg.data.loading.datamodule import SegmentationData  # reading a recipe needs no Lightning

__all__ = ["TEACHERS", "NetworkTeacher", "Setting", "Teacher", "TeacherConfig", "at_size"]

TEACHERS: dict[str, type[TeacherConfig]] = {}  # by the kind that recipes name


@dataclass(frozen=True)
class Setting:
    """What a teacher may be built from.

    Attributes:
        asked: the images it must run on: labelled, unlabelled, perturbed or mixed.
        student: the network that it teaches.
        peer: the network that is trained beside the student, if there is one.
        data: the run's images.
        trainer: where the run computes.
    """

    asked: frozenset[str]
    student: SegmentationModel
    peer: SegmentationModel | None
    data: SegmentationData
    trainer: TrainerConfig


@dataclass(frozen=True)
class TeacherConfig(ABC):
    """Base of what recipes say of a teacher; a subclass is one kind.

    Attributes:
        kind: in recipes.
        within: whether it is a part of the student itself, in the same step: it needs no further images.
        needs_labels: whether it teaches on labelled images only.
    """

    needs_labels = False
    within = False  # without annotations, as in `Loss`
    kind = ""

    def __init_subclass__(cls, kind: str, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.kind = kind
        TEACHERS[kind] = cls

    @abstractmethod
    def build(self, setting: Setting) -> Teacher:
        """The module that teaches."""


class Teacher(nn.Module, ABC):
    """Base of all teachers; widths run widest first."""

    def begin(self, step: Step) -> None:
        """A step begins."""

    @abstractmethod
    def output(self, width: float, view: str) -> Outputs | None:
        """What `width` should imitate on a stream's rows (or MIXED), detached; None where there is nothing."""

    def observe(self, width: float, parts: dict[str, Outputs]) -> None:
        """`width` computed these outputs, by stream."""

    def loss(self, step: Step) -> Tensor | None:
        """What it minimises itself, by the student's optimizer; None for one that does not learn."""
        return None

    def update(self, model: nn.Module) -> None:
        """The optimizer has moved the model's weights."""


class NetworkTeacher(Teacher):
    """A network that runs once a step, for all widths, in evaluation mode and without gradient.

    Args:
        asked: the images it is run on: labelled, unlabelled, perturbed or mixed.
    """

    def __init__(self, asked: Collection[str]) -> None:
        super().__init__()
        self._asked = frozenset(asked)
        self._outputs_of: dict[str, Outputs] = {}

    @abstractmethod
    def _outputs(self, image: Tensor) -> Outputs:
        """What the network makes of N x 3 x H x W, in evaluation mode."""

    @torch.no_grad()
    def begin(self, step: Step) -> None:
        """Run the network, on all images at once."""
        images = self._images(step)
        outputs = self._outputs(torch.cat(list(images.values()))) if images else {}
        counts = [len(image) for image in images.values()]
        parts = dict(zip(images, _split(outputs, counts), strict=True))
        self._outputs_of = {view: LazyOutputs(later) for view, later in self._later(step, parts).items()}

    def output(self, width: float, view: str) -> Outputs | None:
        """The same for every width."""
        return self._outputs_of.get(view)

    def _images(self, step: Step) -> dict[str, Tensor]:
        """The images for each entry of `asked`."""
        images = {LABELLED: step.labelled} if LABELLED in self._asked else {}
        if step.weak is not None and self._asked - {LABELLED}:
            images["weak"] = step.weak
        if step.mixed is not None and MIXED in self._asked:
            images[MIXED] = step.mixed
        return images

    def _later(self, step: Step, parts: dict[str, Outputs]) -> dict[str, dict[str, Callable[[], Tensor]]]:
        """By entry of `asked`: the outputs that can be read, and what computes them."""
        later = {LABELLED: _readings(parts[LABELLED], step.size)} if LABELLED in parts else {}
        if "weak" not in parts:
            return later
        weak = LazyOutputs(_readings(parts["weak"], step.size))
        later[UNLABELLED] = {name: partial(_apply, step.mix, weak, name) for name in ("labels", "logits")}
        if MIXED in parts:
            later[MIXED] = {**_readings(parts[MIXED], step.size), "labels": later[UNLABELLED]["labels"]}
        if PERTURBED in step.masks:
            rows = itemgetter(slice(len(step.masks[PERTURBED])))
            later[PERTURBED] = {name: partial(_apply, rows, weak, name) for name in ("labels", "logits")}
        return {view: values for view, values in later.items() if view in self._asked}


def at_size(outputs: Outputs, size: torch.Size) -> Outputs:
    """Logits and border logits resampled to `size` (H, W); the others as they are.

    Made float and contiguous while they are small: softmax over the channels of a channels_last tensor is slow.
    """
    full = ("logits", "boundary")
    return {
        name: resample(value.float().contiguous(), size) if name in full else value for name, value in outputs.items()
    }


def _readings(outputs: Outputs, size: torch.Size) -> dict[str, Callable[[], Tensor]]:
    """What can be read of a network's outputs: the tensors of `at_size`, and the most likely classes, uint8 N H W."""
    readings: dict[str, Callable[[], Tensor]] = {name: partial(_full, outputs, name, size) for name in outputs}
    if "logits" in outputs:
        readings["labels"] = partial(_labels, outputs["logits"], size)
    return readings


def _full(outputs: Outputs, name: str, size: torch.Size) -> Tensor:
    return at_size({name: outputs[name]}, size)[name]


def _labels(logits: Tensor, size: torch.Size) -> Tensor:
    """The most likely class of each pixel; on a CPU without forming full-size logits."""
    if logits.device.type == "cpu":
        return upsample_labels(logits.float(), (size[0], size[1]))
    return resize(logits.float(), size).max(1).indices.to(torch.uint8)


def _apply(function: Callable[[Tensor], Tensor], outputs: Outputs, name: str) -> Tensor:
    return function(outputs[name])


def _split(outputs: Outputs, counts: list[int]) -> list[Outputs]:
    pieces = {name: value.split(counts) for name, value in outputs.items()}
    return [{name: piece[index] for name, piece in pieces.items()} for index in range(len(counts))]
