"""A recipe: every choice of one training run, as frozen dataclasses with checked types.

A recipe names values on four independent axes (which widths run, who teaches, which terms are summed, how the structure
changes); it holds no code, so a paper is a YAML file in `litheseg/recipes`. It does not know how anything is built.

Usage:
    >>> recipe = load_recipe("slimseg", ["--data.root=camvid", "--trainer.epochs=40"])
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from litheseg.data.transforms import Augment
from litheseg.errors import RecipeError, did_you_mean
from litheseg.nn.efficient import Efficient
from litheseg.training.checks import check_recipe

__all__ = [
    "DataConfig",
    "GroupingConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "TeacherConfig",
    "TrainerConfig",
    "WidthConfig",
    "add_recipe_arguments",
    "check_recipe",
    "load_recipe",
    "recipe_names",
    "recipe_to_dict",
    "recipe_yaml",
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
        labelled: train on a part of the labels: a ratio ("1/8"), a count ("46") or a list file.
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
    labelled: str | None = None
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
    """Who teaches a width besides the labels.

    Attributes:
        kind: none; next-wider or widest (of the same step); frozen (a bundle); ema (a moving average of the model).
        bundle: the frozen teacher's file.
        width: the width at which a frozen or EMA teacher runs.
        decay: of the EMA, per step.
    """

    kind: Literal["none", "next-wider", "widest", "frozen", "ema"] = "none"
    bundle: str | None = None
    width: float = 1.0
    decay: float = 0.999


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
        epochs: passes over the training images.
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
        keep: the epoch that goes into the bundle: last (honest) or best on val.
        threads: CPU threads; 0 for torch's own choice.
        loggers: csv, tensorboard, wandb.
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


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: str = "supervised"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    widths: WidthConfig = field(default_factory=WidthConfig)
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with litheseg."""
    return tuple(sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".yaml")))


def recipe_yaml(name: str) -> str:
    """The text of a recipe: one of litheseg's by name, or a file's.

    Raises:
        RecipeError: there is neither.
    """
    if name in recipe_names():
        return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    raise RecipeError(f"unknown recipe '{name}'.{did_you_mean(name, recipe_names())} Or give the path of a .yaml file.")


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and change what `overrides` say.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        overrides: command-line style, such as ``["--trainer.epochs=40", "--widths.values=[1,.5]"]``.

    Raises:
        RecipeError: an unknown recipe or key, or a value of the wrong type or range; the message names it.
    """
    parser = _parser()
    try:
        defaults = yaml.safe_load(recipe_yaml(name)) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name} is no valid YAML: {error}") from error
    if not isinstance(defaults, dict):
        raise RecipeError(f"recipe {name} must be a mapping of sections such as 'model:' and 'trainer:'")
    _check_keys(defaults, Recipe, name)
    _check_overrides(overrides or [])
    config = parser.parse_object(defaults)
    config = parser.parse_args(overrides or [], namespace=config)
    return _instantiate(parser, config)


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Give a parser one option per recipe field, with the docstrings as help."""
    parser.add_class_arguments(Recipe)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values, fit for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    result: dict[str, Any] = plain(dataclasses.asdict(recipe))
    return result


class _RecipeParser(ArgumentParser):
    """A parser whose complaints are `RecipeError`s."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise RecipeError(_tidy(message)) from ex


@functools.cache  # reading the docstrings takes a while
def _parser() -> _RecipeParser:
    parser = _RecipeParser(prog="litheseg train", exit_on_error=False)
    add_recipe_arguments(parser)
    return parser


def _tidy(message: str) -> str:
    """The parser's message as one line."""
    return "recipe: " + " ".join(message.split()) + " (see `litheseg train --help`)"


def _folder() -> Any:
    return resources.files("litheseg") / "recipes"


def _instantiate(parser: ArgumentParser, config: Namespace) -> Recipe:
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)  # the old name goes in jsonargparse 5
    from_config = instantiate(config)
    recipe = Recipe(**{item.name: getattr(from_config, item.name) for item in dataclasses.fields(Recipe)})
    check_recipe(recipe)
    return recipe


def _known_keys(kind: Any) -> dict[str, Any]:
    """Field names and types of a (possibly nested) dataclass."""
    hints = {item.name: item.default_factory for item in dataclasses.fields(kind)}
    return {name: factory if dataclasses.is_dataclass(factory) else None for name, factory in hints.items()}


def _check_keys(values: dict[str, Any], kind: Any, where: str) -> None:
    known = _known_keys(kind)
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{where}: unknown key '{key}'.{did_you_mean(str(key), known)}")
        if known[key] is not None:
            if not isinstance(value, dict):
                raise RecipeError(f"{where}: '{key}' must be a section, not {value!r}")
            _check_keys(value, known[key], f"{where}: {key}")


def _check_overrides(overrides: list[str]) -> None:
    """Point at the first option that does not exist, with the nearest that does."""
    for option in overrides:
        if not option.startswith("--"):
            continue
        path = option[2:].split("=", 1)[0].split(".")
        kind: Any = Recipe
        for depth, key in enumerate(path):
            known = _known_keys(kind)
            key = key.rstrip("+")
            if key not in known:
                prefix = ".".join(path[:depth])
                choices = [f"--{prefix}.{name}" if prefix else f"--{name}" for name in known]
                name = f"--{'.'.join(path)}"
                raise RecipeError(f"unknown option {name}.{did_you_mean(name, choices)}")
            if known[key] is None:
                break  # a plain value or a free mapping: the parser checks the rest
            kind = known[key]
