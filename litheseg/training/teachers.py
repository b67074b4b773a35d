"""Who teaches: each teacher answers, for a width about to run and a stream of rows, what it should imitate.

A teacher sees the step's images (`begin`) and what each width computed (`observe`); it never passes a gradient on. Its
lessons are at the labels' size, and computed once per step. Of an unlabelled image it is asked before mixing, and its
answer is mixed as the image was; what it makes of the mixed image itself is in the lesson as "mixed_logits" and
"mixed_features", for the losses that compare whole images. It does not know which loss uses its lessons.

Papers: SlimSeg (Xue et al., ACM MM 2022): the next wider width; Universally Slimmable Networks (Yu & Huang, ICCV
2019): the widest; Mean Teacher (Tarvainen & Valpola, NeurIPS 2017): an exponential moving average; MGD (Qin et al.,
ECCV 2022): frozen networks; UniMatch (Yang et al., CVPR 2023) and cross pseudo supervision (Chen et al., CVPR 2021): a
network as it is now.

Usage:
    >>> teacher = NextWider()
    >>> teacher.begin(Step.of(batch))
    >>> lesson = teacher.lesson(0.5, "labelled")  # None for the widest
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor, nn

from litheseg.models import SegmentationModel
from litheseg.models.base import resample, resize
from litheseg.models.upsampling import upsample_labels
from litheseg.nn import get_width, set_width
from litheseg.training.streams import LABELLED, PERTURBED, UNLABELLED, LazyOutputs, Outputs, Step

__all__ = ["Ema", "Frozen", "Live", "NetworkTeacher", "NextWider", "Teacher", "Widest", "at_size"]


def at_size(outputs: Outputs, size: torch.Size) -> Outputs:
    """Logits and border logits resampled to `size` (H, W); the others as they are.

    Made float and contiguous while they are small: softmax over the channels of a channels_last tensor is slow.
    """
    full = ("logits", "boundary")
    return {
        name: resample(value.float().contiguous(), size) if name in full else value for name, value in outputs.items()
    }


class Teacher(nn.Module, ABC):
    """Base of all teachers; widths run widest first."""

    def begin(self, step: Step) -> None:
        """A step begins."""

    @abstractmethod
    def lesson(self, width: float, stream: str) -> Outputs | None:
        """What `width` should imitate on a stream's rows, detached; None when there is nothing to imitate."""

    def observe(self, width: float, parts: dict[str, Outputs]) -> None:
        """`width` computed these outputs, by stream."""

    def update(self, model: nn.Module) -> None:
        """The optimizer has moved the model's weights."""


def _detached(parts: dict[str, Outputs]) -> dict[str, Outputs]:
    return {stream: {name: value.detach() for name, value in outputs.items()} for stream, outputs in parts.items()}


class NextWider(Teacher):
    """Stepwise downward: each width learns from the next wider one of the same step."""

    def __init__(self) -> None:
        super().__init__()
        self._previous: dict[str, Outputs] = {}

    def begin(self, step: Step) -> None:
        """Forget the last step."""
        self._previous = {}

    def lesson(self, width: float, stream: str) -> Outputs | None:
        """The outputs of the width that ran just before."""
        return self._previous.get(stream)

    def observe(self, width: float, parts: dict[str, Outputs]) -> None:
        """Become the lesson of the next narrower width."""
        self._previous = _detached(parts)


class Widest(Teacher):
    """In-place distillation: every width learns from the widest one of the same step."""

    def __init__(self) -> None:
        super().__init__()
        self._widest: dict[str, Outputs] = {}

    def begin(self, step: Step) -> None:
        """Forget the last step."""
        self._widest = {}

    def lesson(self, width: float, stream: str) -> Outputs | None:
        """The outputs of the width that ran first."""
        return self._widest.get(stream)

    def observe(self, width: float, parts: dict[str, Outputs]) -> None:
        """Keep the first."""
        self._widest = self._widest or _detached(parts)


class NetworkTeacher(Teacher):
    """A network that runs once a step, for all widths, in evaluation mode and without gradient.

    Args:
        streams: those that it is asked about; images of others are not run.
        mixed: whether it also runs on the mixed images themselves.
    """

    def __init__(self, streams: Collection[str] = (LABELLED,), *, mixed: bool = False) -> None:
        super().__init__()
        self._streams, self._mixed = frozenset(streams), mixed
        self._lessons: dict[str, Outputs] = {}

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
        self._lessons = {stream: LazyOutputs(later) for stream, later in self._answers(step, parts).items()}

    def lesson(self, width: float, stream: str) -> Outputs | None:
        """The same for every width."""
        return self._lessons.get(stream)

    def _images(self, step: Step) -> dict[str, Tensor]:
        """Those that it must see for what it is asked."""
        images = {LABELLED: step.labelled} if LABELLED in self._streams else {}
        if step.weak is not None and self._streams & {UNLABELLED, PERTURBED}:
            images["weak"] = step.weak
        if step.mixed is not None and self._mixed:
            images["mixed"] = step.mixed
        return images

    def _answers(self, step: Step, parts: dict[str, Outputs]) -> dict[str, dict[str, Callable[[], Tensor]]]:
        """By stream: what can be read of the lesson, and what computes it."""
        answers = {LABELLED: _readings(parts[LABELLED], step.size)} if LABELLED in parts else {}
        if "weak" not in parts:
            return answers
        weak = LazyOutputs(_readings(parts["weak"], step.size))
        if UNLABELLED in self._streams:
            mixed = _readings(parts.get("mixed", {}), step.size)
            answers[UNLABELLED] = {
                **{name: partial(_apply, step.mix, weak, name) for name in ("labels", "logits")},
                **{f"mixed_{name}": mixed[name] for name in mixed},
            }
        if PERTURBED in self._streams and PERTURBED in step.masks:
            rows = itemgetter(slice(len(step.masks[PERTURBED])))
            answers[PERTURBED] = {name: partial(_apply, rows, weak, name) for name in ("labels", "logits")}
        return answers


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


class _Apart:
    """Holds a network that is no part of the module that asks it, so is not saved, averaged or copied with it."""

    def __init__(self, model: SegmentationModel) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, object]) -> _Apart:
        return self


class Frozen(NetworkTeacher):
    """A finished network, plain; nothing of it is trained.

    It has a file of its own, so checkpoints leave it out: the two of the paper would add 570 MB to each.

    Args:
        model: the network.
        streams: see `NetworkTeacher`.
        mixed: likewise.
        bfloat16: compute in half precision, which is for devices that are faster in it.
        sees: turns the student's images into those that the network knows; None where they are the same.
    """

    def __init__(
        self,
        model: SegmentationModel,
        streams: Collection[str] = (LABELLED,),
        *,
        mixed: bool = False,
        bfloat16: bool = False,
        sees: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(streams, mixed=mixed)
        self._apart, self._bfloat16 = _Apart(model.requires_grad_(False)), bfloat16
        self._sees = sees

    @property
    def model(self) -> SegmentationModel:
        """The network, on the device of the images that it saw last."""
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
        self, model: SegmentationModel, decay: float, width: float, streams: Collection[str] = (LABELLED,)
    ) -> None:
        super().__init__(streams)
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0
        set_width(self.model, width)

    def _outputs(self, image: Tensor) -> Outputs:
        return self.model.eval().outputs(image)

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


class Live(NetworkTeacher):
    """A network as it is now: the student itself, or a peer that is trained beside it.

    In evaluation mode, so that looking does not move its batch-norm statistics. It is not part of this module: whoever
    trains it moves and saves it.
    """

    def __init__(self, model: SegmentationModel, width: float, streams: Collection[str] = (UNLABELLED,)) -> None:
        super().__init__(streams)
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
