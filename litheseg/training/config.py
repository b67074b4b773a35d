"""Every choice of one training run, as frozen dataclasses with checked types.

They hold values only: `litheseg.training.recipe` reads them from files and command lines, `checks` refuses what does
not fit together, `build` makes objects of them. The docstrings are what `litheseg train --help` shows.

Usage:
    >>> Recipe(model=ModelConfig("erfnet"), trainer=TrainerConfig(epochs=40))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from litheseg.data.transforms import Augment
from litheseg.data.views import UnlabelledViews
from litheseg.masks.reading import MAX_PIXELS
from litheseg.nn.efficient import Efficient

__all__ = [
    "DataConfig",
    "GroupingConfig",
    "LossConfig",
    "MgdConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "TeacherConfig",
    "TrainerConfig",
    "TutorConfig",
    "WidthConfig",
]


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: one of `litheseg models`.
        args: its keyword arguments, such as {base: 16}.
        efficient: cheaper convolutions laid over it.
        weights: a state dict (.safetensors, or .pt without code) to start from, of the plain or of the elastic model.
    """

    name: str = "ddrnet"
    args: dict[str, Any] = field(default_factory=dict)
    efficient: Efficient = field(default_factory=Efficient)
    weights: str | None = None


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
        labelled: train on a part of the labels: a ratio ("1/8"), a count ("46") or a list file.
        unlabelled: images without labels that are learned from as well: a folder of them, or rest for the training
            images that `labelled` leaves out; None for labels only. A step then has `batch_size` of either.
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
    batch_size: int = 8
    leave_out: str | None = None
    labelled: str | None = None
    unlabelled: str | None = None
    views: UnlabelledViews = field(default_factory=UnlabelledViews)
    unreadable: float = 0.1
    absent_classes: bool = False
    steps: int = 0
    max_pixels: int = MAX_PIXELS
    cache: Literal["ram", "device", "none"] = "ram"
    workers: int = 0
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class WidthConfig:
    """Which capacities one training run yields.

    Attributes:
        values: widths with batch-norm statistics of their own, each in (0, 1].
        sampling: "all" runs every one in each step; "sandwich" the widest, the narrowest and `samples` random others.
        samples: how many random others.
        calibrate: further widths made usable after training by recalibrating batch norm.
        divisor: channels are rounded to multiples of it.
    """

    values: tuple[float, ...] = (1.0,)
    sampling: Literal["all", "sandwich"] = "all"
    samples: int = 2
    calibrate: tuple[float, ...] = ()
    divisor: int = 8


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
    stages: tuple[int, ...] = ()
    start: float = 0.1
    length: float = 0.4
    hold: float = 0.05
    steps: int = 4
    assignment: Literal["contiguous", "magnitude"] = "contiguous"
    refresh: int = 0
    off_block: Literal["project", "decay", "free"] = "project"
    off_block_decay: float = 0.01
    recalibrate: bool = True

    @property
    def end(self) -> float:
        """Share of all steps after which every stage is over."""
        stages = len(self.stages) + 1
        return self.start + stages * self.length + (stages - 1) * self.hold


@dataclass(frozen=True)
class TeacherConfig:
    """Who teaches a width besides the labels; what is taught is in `loss`.

    Attributes:
        kind: none; next-wider or widest (of the same step); frozen (a bundle); ema (a moving average of the model);
            self (the model as it is, on images before they are altered: UniMatch); peer (a second network of the same
            architecture, trained beside it: cross pseudo supervision).
        bundle: the frozen teacher's file.
        width: the width at which a frozen, EMA, peer or self teacher runs.
        decay: of the EMA, per step.
    """

    kind: Literal["none", "next-wider", "widest", "frozen", "ema", "self", "peer"] = "none"
    bundle: str | None = None
    width: float = 1.0
    decay: float = 0.999


@dataclass(frozen=True)
class TutorConfig:
    """One of the two finished networks that teach together, and the weight of each of its lessons.

    Attributes:
        bundle: its file; without one it is trained first, from the same images.
        width: the width at which it runs.
        model: what is trained where there is no bundle.
        pixel_labelled: weight of the cross entropy to its labels, on labelled images.
        pixel_unlabelled: the same on unlabelled images.
        image: weight of the image level: each class's mean logit.
        region: weight of the region level: which regions are alike.
        boundary: weight of the cross entropy over the band around the borders of its labels, on unlabelled images.
    """

    bundle: str | None = None
    width: float = 1.0
    model: ModelConfig = field(default_factory=ModelConfig)
    pixel_labelled: float = 0.0
    pixel_unlabelled: float = 0.0
    image: float = 0.0
    region: float = 0.0
    boundary: float = 0.0

    @property
    def teaches(self) -> bool:
        """Whether any weight is above 0."""
        return any((self.pixel_labelled, self.pixel_unlabelled, self.image, self.region, self.boundary))


@dataclass(frozen=True)
class MgdConfig:
    """Multi-granularity distillation from two complementary teachers (MGD), besides the labels and `teacher`.

    Attributes:
        deep: the deep and thin teacher.
        wide: the shallow and wide one.
        labels: hard labels of the teachers (the paper), or soft ones.
        threshold: least probability of a teacher's hard label that counts; 0 for all (the paper).
        grid: the region level compares grid x grid regions.
        warmup: share of all steps over which the teachers' weights rise from 0.
        train_with: recipe by which teachers without a bundle are trained: cps (the paper), unimatch, mean-teacher, ...
        teacher_epochs: of their training; 0 for the run's own.
        cache: folder that keeps trained teachers for other runs; None for `teachers` beside the run's folder.
    """

    deep: TutorConfig = field(default_factory=TutorConfig)
    wide: TutorConfig = field(default_factory=TutorConfig)
    labels: Literal["hard", "soft"] = "hard"
    threshold: float = 0.0
    grid: int = 7
    warmup: float = 0.0
    train_with: str = "cps"
    teacher_epochs: int = 0
    cache: str | None = None

    @property
    def tutors(self) -> dict[str, TutorConfig]:
        """Those that teach anything, by name."""
        return {name: tutor for name, tutor in (("deep", self.deep), ("wide", self.wide)) if tutor.teaches}


@dataclass(frozen=True)
class LossConfig:
    """The terms that are summed; a weight of 0 leaves a term out.

    Attributes:
        hard_labels: whether widths that have a teacher also learn from the labels (those without one always do).
        main: the term on the labels.
        ohem_threshold: pixels whose own class is at least this likely are easy (main: ohem).
        class_weights: log is 1 / ln(c + share) (ENet), median is median frequency, none.
        class_weight_offset: c of "log".
        dice: weight of soft Dice.
        lovasz: weight of Lovasz-softmax.
        aux: weight of the cross entropy of the deep-supervision head.
        boundary_band: weight of the cross entropy over the band around label borders.
        boundary_head: weight of the auxiliary border head (training only).
        boundary_radius: half the band's thickness, in pixels of the training view.
        kl: weight of T^2 KL to the teacher.
        temperature: T.
        channel_wise: weight of channel-wise distillation to the teacher.
        channel_wise_temperature: its T.
        pairwise: weight of pairwise similarity distillation to the teacher.
        intra_class: weight of intra-class feature variation distillation to the teacher.
        pseudo: weight of the cross entropy to the teacher's labels, on unlabelled images.
        perturbed: the same on unlabelled images as they are, while half of the encoder's features are dropped.
        confidence: least probability of such a label that counts; 0 for all.
        warmup: share of all steps over which the teacher's weights rise from 0.
    """

    hard_labels: bool = True
    main: Literal["cross-entropy", "ohem"] = "cross-entropy"
    ohem_threshold: float = 0.7
    class_weights: Literal["log", "median", "none"] = "log"
    class_weight_offset: float = 1.10
    dice: float = 0.0
    lovasz: float = 0.0
    aux: float = 0.4
    boundary_band: float = 0.0
    boundary_head: float = 0.0
    boundary_radius: int = 2
    kl: float = 0.0
    temperature: float = 1.0
    channel_wise: float = 0.0
    channel_wise_temperature: float = 4.0
    pairwise: float = 0.0
    intra_class: float = 0.0
    pseudo: float = 0.0
    perturbed: float = 0.0
    confidence: float = 0.0
    warmup: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move.

    Attributes:
        name: adamw or sgd (momentum, Nesterov).
        lr: peak learning rate.
        weight_decay: not applied to normalisation and biases.
        momentum: of SGD, or beta1 of AdamW.
        schedule: of the learning rate after the warm-up.
        power: of "poly".
        warmup: share of all steps over which the rate rises linearly from 0, in [0, 1).
        clip: largest gradient norm; 0 for no clipping.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: Literal["poly", "cosine", "one-cycle", "constant"] = "poly"
    power: float = 0.9
    warmup: float = 0.05
    clip: float = 0.0


@dataclass(frozen=True)
class TrainerConfig:
    """How long, where, and what is kept.

    Attributes:
        epochs: passes over the training images (the unlabelled ones where there are any).
        seed: of weights, order, augmentation and dropout.
        precision: 32-true, bf16-mixed or 16-mixed.
        accelerator: auto, cpu, gpu.
        devices: processes per node ("auto" for all GPUs, one on the CPU).
        nodes: machines.
        strategy: Lightning's; auto, ddp.
        channels_last: memory layout of the convolutions.
        compile: run the model through torch.compile.
        ema: decay of an average of the weights that is kept instead of the last ones; 0 for none.
        early_stop: stop after this many validations without a better mean mIoU; 0 for never.
        val_every: epochs between validations (the last epoch always is one).
        keep: the epoch that goes into the bundle: last, or best, which is chosen on val and so scores too well there.
        threads: CPU threads; 0 for torch's own choice.
        loggers: csv, tensorboard, wandb.
        baseline: with unlabelled images, train the same network on the labels alone first, to compare.
    """

    epochs: int = 100
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    nodes: int = 1
    strategy: str = "auto"
    channels_last: bool = True
    compile: bool = False
    ema: float = 0.0
    early_stop: int = 0
    val_every: int = 5
    keep: Literal["last", "best"] = "last"
    threads: int = 0
    loggers: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ("csv", "tensorboard")
    baseline: bool = True


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: str = "supervised"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    widths: WidthConfig = field(default_factory=WidthConfig)
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    mgd: MgdConfig = field(default_factory=MgdConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
