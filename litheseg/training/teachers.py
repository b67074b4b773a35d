"""Teachers: each gives the outputs that a width about to run should imitate on a group of rows.

A kind of teacher is a dataclass: its fields are the arguments in a recipe (`teachers: {NAME: {kind: ema, decay:
0.99}}`), `build` makes the module that teaches. To add one, write both; its kind is all that registers it.

A teacher sees the step's images (`begin`) and what each width computed (`observe`); no gradient passes through it. One
that learns itself has a `loss`, which is added to the student's. Outputs are at the labels' size, and computed once per
step. A teacher runs on an unlabelled image before mixing, and its outputs are mixed as the image was; for losses that
compare whole images it runs on the mixed image itself (`MIXED`).

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
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeInt
from torch import Tensor, nn

from litheseg.data.transforms import channel_constants
from litheseg.errors import RecipeError
from litheseg.losses.loss import BelowOne
from litheseg.masks.image_format import ImageFormat
from litheseg.models import SegmentationModel
from litheseg.models.base import resample, resize
from litheseg.models.bundle import BundleHeader, load_bundle
from litheseg.models.upsampling import upsample_labels
from litheseg.nn import get_width, set_width
from litheseg.training.config import ModelConfig, OptimizerConfig, TrainerConfig
from litheseg.training.layout import gains_from_bfloat16, lay_out
from litheseg.training.streams import LABELLED, MIXED, PERTURBED, UNLABELLED, LazyOutputs, Outputs, Step

if TYPE_CHECKING:
    from litheseg.data.datamodule import SegmentationData  # reading a recipe needs no Lightning

__all__ = [
    "TEACHERS",
    "Ema",
    "Frozen",
    "FrozenConfig",
    "Live",
    "NetworkTeacher",
    "NextWider",
    "Setting",
    "Teacher",
    "TeacherConfig",
    "TeacherInput",
    "Widest",
    "at_size",
    "require_classes",
    "require_images",
]

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
        sees = _teacher_input(self.bundle, bundle.header, setting.data)
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


def require_classes(path: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    """Refuse a teacher, the file at `path`, whose classes are not those of the data, with the first that differs."""
    if theirs == ours:
        return
    differing = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
    what = f"'{differing[0]}' where the data has '{differing[1]}'" if differing else f"{len(theirs)} classes"
    raise RecipeError(
        f"teacher {path} knows {what} (the data has {len(ours)} classes); choose a teacher that was trained on the "
        "same classes in the same order"
    )


def require_images(path: str, theirs: ImageFormat, ours: ImageFormat) -> None:
    """Refuse a teacher, the file at `path`, that takes other images than those of the data."""
    if theirs.kind != ours.kind:
        raise RecipeError(
            f"teacher {path} takes images of {theirs}, and the data has {ours}; choose a teacher that was trained on "
            "such images"
        )


def _teacher_input(path: str, header: BundleHeader, data: SegmentationData) -> TeacherInput:
    """Turns the data's views into the teacher's own; the change of scale is known only where both resize."""
    scale = (1.0, 1.0)
    if header.resizes and data.size:
        scale = (header.size[0] / data.size[0], header.size[1] / data.size[1])
    elif header.resizes or data.size:
        how = ["at their own size", "resized to {}x{}"]
        theirs, ours = how[header.resizes].format(*header.size), how[bool(data.size)].format(*data.size or ())
        warnings.warn(
            f"teacher {path} knows images {theirs}, and here they are {ours}: it may see everything at another scale; "
            "give --data.size as it was trained with"
        )
    return TeacherInput(data.images.mean, data.images.std, header.mean, header.std, scale)


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
    def output(self, width: float, view: str) -> Outputs | None:
        """What `width` should imitate on a stream's rows (or MIXED), detached; None where there is nothing."""

    def observe(self, width: float, parts: dict[str, Outputs]) -> None:
        """`width` computed these outputs, by stream."""

    def loss(self, step: Step) -> Tensor | None:
        """What it minimises itself, by the student's optimizer; None for one that does not learn."""
        return None

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


Channels = tuple[float, ...]


class TeacherInput:
    """From the student's views to the teacher's.

    Padding outside the image, 0 in the student's views, is 0 in the teacher's too: the mean colour that either was
    trained with. A pixel counts as padding if it has the student's mean colour in all channels, exactly.

    Args:
        mean: per channel, of the student's images over their scale.
        std: likewise; > 0.
        own_mean: the teacher's.
        own_std: likewise; > 0.
        scale: height and width of the teacher's images over those of the student's.
    """

    def __init__(
        self, mean: Channels, std: Channels, own_mean: Channels, own_std: Channels, scale: tuple[float, float] = (1, 1)
    ) -> None:
        self._student, self._teacher, self._scale = (tuple(mean), tuple(std)), (tuple(own_mean), tuple(own_std)), scale

    def __call__(self, image: Tensor) -> Tensor:
        """Float NChw to NCHW; the very tensor where student and teacher agree."""
        with torch.autocast(image.device.type, enabled=False):
            return self._zoomed(self._normalised(image))

    def _normalised(self, image: Tensor) -> Tensor:
        if self._student == self._teacher:
            return image
        (centre, gain), (own_centre, own_gain) = (
            channel_constants(*values, image.device) for values in (self._student, self._teacher)
        )
        inside = (image != 0).any(1, keepdim=True)
        return (image.float() / gain + centre).sub_(own_centre).mul_(own_gain).mul_(inside).to(image.dtype)

    def _zoomed(self, image: Tensor) -> Tensor:
        if self._scale == (1, 1):
            return image
        size = tuple(max(1, round(pixels * scale)) for pixels, scale in zip(image.shape[-2:], self._scale, strict=True))
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
