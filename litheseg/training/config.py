"""The sections of a recipe that say on what, for how long and by which optimizer a network is trained.

Frozen dataclasses with typed ranges, which hold for recipes from files and command lines; `litheseg.training.recipe`
puts them together with teachers and objectives. The docstrings are what `litheseg train --help` shows.

Usage:
    >>> Recipe(model=ModelConfig("erfnet"), trainer=TrainerConfig(epochs=40))
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from litheseg.data.loading.transforms import Augment
from litheseg.data.loading.views import UnlabelledViews
from litheseg.errors import RecipeError
from litheseg.losses.loss import BelowOne
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.opening import MAX_PIXELS
from litheseg.nn.efficient import Efficient

__all__ = ["DataConfig", "GroupingConfig", "ModelConfig", "OptimizerConfig", "TrainerConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: one of `litheseg models`.
        args: its keyword arguments, such as {base: 16}.
        efficient: cheaper convolutions laid over it.
        weights: what to start from: a trained model (its file, zoo:NAME or hf:OWNER/NAME), of other widths or classes
            if need be; or a state dict (.safetensors, or .pt without code) of the plain or of the elastic model.
        divisor: channels of narrower widths are rounded to multiples of it.
    """

    name: str = "segmenter"
    args: dict[str, Any] = field(default_factory=dict)
    efficient: Efficient = field(default_factory=Efficient)
    weights: str | None = None
    divisor: PositiveInt = 8

    def for_images(self, images: ImageFormat) -> ModelConfig:
        """The network with an input for each channel.

        Raises:
            RecipeError: the arguments ask for another number.
        """
        asked = self.args.get("in_channels", images.channels)
        if asked != images.channels:
            raise RecipeError(
                f"model.args has in_channels {asked}, but the images have {images}; leave in_channels out: the data "
                "decides"
            )
        return self if images.channels == 3 else replace(self, args={**self.args, "in_channels": images.channels})


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are fed.

    Attributes:
        source: camvid, cityscapes, voc, folder, streets, or auto (by the layout of `root`).
        root: the data's folder; streets needs none.
        options: further arguments of the source, such as {val_fraction: 0.1}.
        size: (H, W) that images are resized to; None keeps their own.
        crop: (H, W) of the training views; None for `size`.
        batch_size: of one step, over all processes.
        leave_out: validate on this sequence of the training images, and train without it: a name that their ids begin
            with, such as "0016E5"; the data set's own val split is not used then.
        fold: validate on one of several folds of the training images, and train without it: "2/3" is the second of
            three; over all of them each image is scored once. What the source's hold_out keeps together stays together.
        labelled: train on a part of the labels: a ratio ("1/8"), a count ("46") or a list file.
        unlabelled: images without labels that are learned from as well: a folder of them, a video (one frame a second,
            or every tenth of "drive.mp4:10"), or rest for the training images that `labelled` leaves out; None for
            labels only. A step then has `batch_size` of either.
        views: how unlabelled images are shown.
        unreadable: share of the unlabelled files that may be unreadable; they are left out.
        absent_classes: go on where a class has no pixel in the labelled images.
        steps: per epoch; 0 for one pass over the unlabelled images, or over the labelled ones where those are all.
        max_pixels: of an image, width times height by its header; a larger one is an error, or unreadable.
        cache: where decoded images stay: ram, device or none.
        workers: decoding processes with cache none.
        augment: how training views vary.
    """

    source: str = "auto"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    batch_size: PositiveInt = 8
    leave_out: str | None = None
    fold: str | None = None
    labelled: str | None = None
    unlabelled: str | None = None
    views: UnlabelledViews = field(default_factory=UnlabelledViews)
    unreadable: ClosedUnitInterval = 0.1
    absent_classes: bool = False
    steps: NonNegativeInt = 0
    max_pixels: int = MAX_PIXELS
    cache: Literal["ram", "device", "none"] = "ram"
    workers: NonNegativeInt = 0
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class GroupingConfig:
    """How the model's grouped convolutions come about: dense at first, grouped at the end.

    Attributes:
        shape: of alpha, the factor on the weights between groups, from 1 to 0: linear, cosine, exponential, step; none
            trains the grouped layers as they are.
        where: which of the model's grouped layers begin dense (as model.efficient.where).
        stages: groups on the way, such as [2, 4] for dense -> 2 -> 4 -> the model's own.
        start: share of all steps before alpha begins to fall, in [0, 1).
        length: share of all steps in which it falls, in each stage; 0 is one-shot pruning.
        hold: share of all steps between two stages.
        steps: drops of the shape "step".
        assignment: which channels share a group: contiguous blocks as they come (the paper), or magnitude, which
            relabels channels at `start` so that the largest weights are inside the blocks.
        refresh: how many more times the first stage relabels, evenly spread over it.
        off_block: what keeps the weights between groups from growing while they fade: project holds their size at that
            of the weights inside, decay shrinks them in every step, free does nothing.
        off_block_decay: share that "decay" takes away in a step.
        recalibrate: whether batch norm is measured anew when alpha has reached 0.
    """

    shape: Literal["none", "linear", "cosine", "exponential", "step"] = "none"
    where: str = "all"
    stages: tuple[PositiveInt, ...] = ()
    start: BelowOne = 0.1
    length: BelowOne = 0.4
    hold: BelowOne = 0.05
    steps: PositiveInt = 4
    assignment: Literal["contiguous", "magnitude"] = "contiguous"
    refresh: NonNegativeInt = 0
    off_block: Literal["project", "decay", "free"] = "project"
    off_block_decay: BelowOne = 0.01
    recalibrate: bool = True

    @property
    def end(self) -> float:
        """Share of all steps after which every stage is over."""
        stages = len(self.stages) + 1
        return self.start + stages * self.length + (stages - 1) * self.hold


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        name: adamw or sgd (momentum, Nesterov).
        lr: peak learning rate.
        weight_decay: not applied to normalisation and biases.
        momentum: of SGD, or beta1 of AdamW.
        schedule: of the learning rate after the warm-up; poly falls with a power of 0.9.
        warmup: share of all steps over which the rate rises linearly from 0, in [0, 1).
        clip: largest gradient norm; 0 for no clipping.
        encoder: factor on the learning rate of the encoder: 0.1, say, for one that brings good weights; 0 leaves its
            weights as they are.
        decoder: factor on the learning rate of all else in a network whose encoder brings pretrained weights: it begins
            from nothing, and learns from them.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    momentum: BelowOne = 0.9
    schedule: Literal["poly", "cosine", "one-cycle", "constant"] = "poly"
    warmup: BelowOne = 0.05
    clip: NonNegativeFloat = 0.0
    encoder: NonNegativeFloat = 1.0
    decoder: NonNegativeFloat = 3.0


@dataclass(frozen=True)
class TrainerConfig:
    """How long, where, and what is kept.

    Attributes:
        epochs: passes over the training images (the unlabelled ones where there are any).
        minutes: most minutes that training takes, validation included: epochs for which there is no time are left out,
            and the schedules end with the last one; 0 for no limit.
        seed: of weights, order, augmentation and dropout.
        precision: 32-true, bf16-mixed or 16-mixed.
        accelerator: auto, cpu, gpu.
        devices: processes per node ("auto" for all GPUs, one on the CPU).
        nodes: machines.
        channels_last: memory layout of the convolutions.
        compile: run the model through torch.compile.
        ema: decay of an average of the weights that is kept instead of the last ones; 0 for none.
        early_stop: stop after this many validations without a better mean mIoU; 0 for never.
        val_every: epochs between validations (the last epoch always is one).
        keep: the epoch that goes into the bundle: last, or best, which is chosen on val and so scores too well there.
        threads: CPU threads; 0 for torch's own choice.
        loggers: csv, tensorboard, mlflow, wandb.
        baseline: with unlabelled images, train the same network on the labels alone first, to compare.
    """

    epochs: PositiveInt = 100
    minutes: NonNegativeFloat = 0.0
    seed: NonNegativeInt = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    nodes: PositiveInt = 1
    channels_last: bool = True
    compile: bool = False
    ema: BelowOne = 0.0
    early_stop: NonNegativeInt = 0
    val_every: PositiveInt = 5
    keep: Literal["last", "best"] = "last"
    threads: NonNegativeInt = 0
    loggers: tuple[Literal["csv", "tensorboard", "mlflow", "wandb"], ...] = ("csv", "tensorboard")
    baseline: bool = True
