"""Recipes: every choice of one training run, from a YAML file and the command line to what the task runs.

A recipe holds the widths, teachers, objectives and changes of structure of a run; it holds no code, so a paper is a
YAML file in `litheseg/recipes`:

    widths: [1, 0.5]
    teachers:
      wider: {kind: next-wider}
    objectives:
      labels: {loss: cross-entropy}
      kl: {loss: kl, teacher: wider, weight: 3}

Usage:
    >>> recipe = load_recipe("slimseg", ["--data.root=camvid", "--objectives.kl.weight=3"])
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt

from litheseg.bundle.model_file import read_model_file
from litheseg.errors import RecipeError, did_you_mean
from litheseg.losses import LOSSES, Loss
from litheseg.losses.supervised import CrossEntropy, DeepSupervision
from litheseg.training import assisted  # noqa: F401 - so that its kind of teacher is known
from litheseg.training.checks import check_together
from litheseg.training.config import DataConfig, GroupingConfig, ModelConfig, OptimizerConfig, TrainerConfig
from litheseg.training.options import check_keys, load_yaml, put, read_options
from litheseg.training.streams import COMPLEMENTARY, LABELLED, MIXED, UNLABELLED
from litheseg.training.teacher import TEACHERS, TeacherConfig

__all__ = ["Objective", "Recipe", "check_recipe", "load_recipe", "recipe_names", "recipe_to_dict", "recipe_yaml"]

_COMPARISONS = {">": "above", ">=": "at least", "<": "below", "<=": "at most"}


@dataclass(frozen=True)
class Objective:
    """One addend of what training minimises.

    Attributes:
        loss: which one; a recipe gives its name, and its own arguments beside the fields here.
        teacher: the name of the teacher that it learns from; None for the labels.
        on: the images that it is for: labelled; unlabelled; complementary (unlabelled ones, while each of two views
            drops the half of the encoder's features that the other keeps); perturbed (unlabelled ones before mixing,
            while half of the encoder's features are dropped); all (labelled ones and, if there are any, unlabelled
            ones, each with a mean of its own); None for what the loss is made for.
        weight: factor in the sum; 0 leaves it out.
        warmup: share of all steps over which the weight rises from 0.
        widths: all, or the widest alone: then the others learn from their teachers only.
    """

    loss: Loss
    teacher: str | None = None
    on: Literal["labelled", "unlabelled", "complementary", "perturbed", "all"] | None = None
    weight: NonNegativeFloat = 1.0
    warmup: ClosedUnitInterval = 0.0
    widths: Literal["all", "widest"] = "all"

    @property
    def streams(self) -> tuple[str, ...]:
        """The groups of a step's images that it is summed over."""
        on = self.on or self.loss.on
        return (LABELLED, UNLABELLED) if on == "all" else (on,)

    def view(self, stream: str) -> str:
        """The images that the teacher runs on for this stream."""
        if stream in (UNLABELLED, COMPLEMENTARY):  # the same images; a teacher drops no features
            return MIXED if self.loss.whole_images else UNLABELLED
        return stream


def _from_labels() -> dict[str, Objective]:
    return {"labels": Objective(CrossEntropy()), "aux": Objective(DeepSupervision(), weight=0.4)}


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        name: how the run is called.
        widths: the fractions of channels that are trained, in (0, 1], each with batch-norm statistics of its own.
        sandwich: train the widest, the narrowest and so many random other widths in each step; None for all of them.
        calibrate: further widths made usable after training by recalibrating batch norm.
        model: which network.
        data: which images.
        teachers: who teaches besides the labels, by name.
        objectives: what is minimised, by name; logs show these names.
        grouping: how grouped convolutions come about.
        optimizer: how weights move.
        trainer: how long, where, and what is kept.
    """

    name: str = "supervised"
    widths: tuple[float, ...] = (1.0,)
    sandwich: NonNegativeInt | None = None
    calibrate: tuple[float, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    teachers: Mapping[str, TeacherConfig] = field(default_factory=dict)
    objectives: Mapping[str, Objective] = field(default_factory=_from_labels)
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def minimised(self) -> dict[str, Objective]:
        """The objectives whose weight is above 0."""
        return {name: objective for name, objective in self.objectives.items() if objective.weight}

    def asked(self, teacher: str) -> frozenset[str]:
        """The images that a teacher runs on, for all objectives that learn from it."""
        mine = [objective for objective in self.minimised.values() if objective.teacher == teacher]
        return frozenset(objective.view(stream) for objective in mine for stream in objective.streams)


# --- reading ---------------------------------------------------------------------------------------------------------


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


def _folder() -> Any:
    return resources.files("litheseg") / "recipes"


def load_recipe(name: str, overrides: list[str] | None = None, *, init: str | None = None) -> Recipe:
    """Read a recipe and change what `overrides` say.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        overrides: command-line style, such as ``["--trainer.epochs=40", "--widths=[1,.5]", "--objectives.kl=null"]``.
        init: a trained model (its file, ``zoo:NAME`` or ``hf:OWNER/NAME``) to start from: the network is then its.

    Raises:
        BundleError: `init` cannot be read.
        RecipeError: an unknown recipe or key, or a value of the wrong type or range; the message names it.
    """
    try:
        values = load_yaml(recipe_yaml(name)) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {name} must be a mapping of sections such as 'model:' and 'trainer:'")
    check_keys(values, Recipe, name)
    values.setdefault("objectives", recipe_to_dict(Recipe())["objectives"])
    if init is not None:
        values["model"] = _model_of(init, values.get("model", {}).get("args", {}))
    for path, value in read_options(overrides or [], Recipe):
        put(values, path, value)
    return _parse(values)


def _model_of(init: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a recipe for the network of a trained model, with the heads for training that `args` ask for."""
    header = read_model_file(init).header
    own = {name: value for name, value in header.architecture["args"].items() if not name.endswith("_head")}
    heads = {name: value for name, value in args.items() if name.endswith("_head")}
    efficient = header.architecture.get("efficient", {})
    section = {"name": header.architecture["name"], "args": {**own, **heads}, "efficient": efficient}
    return {**section, "divisor": header.divisor, "weights": init}


# --- from plain values to a recipe, and back -------------------------------------------------------------------------


def _parse(values: Mapping[str, Any]) -> Recipe:
    """The recipe of these values, checked; entries of None are left out."""
    sections = {name: value for name, value in values.items() if name not in ("teachers", "objectives")}
    teachers = {
        name: kind(**_checked(path, rest, kind))
        for name, path, kind, rest in _entries("teachers", values, "kind", TEACHERS)
    }
    objectives = {
        name: _objective(path, kind, rest) for name, path, kind, rest in _entries("objectives", values, "loss", LOSSES)
    }
    recipe = Recipe(**_checked("", sections, Recipe), teachers=teachers, objectives=objectives)
    check_together(recipe)
    return recipe


def _objective(path: str, loss: type[Loss], values: dict[str, Any]) -> Objective:
    checked = _checked(path, values, loss, Objective)
    own = {item.name: checked.pop(item.name) for item in dataclasses.fields(cast(Any, loss))}
    return Objective(loss(**own), **checked)


def _entries(
    section: str, values: Mapping[str, Any], key: str, registry: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Of each entry of a section: its name, its path, the class that it names by `key`, and its other values."""
    entries = {name: entry for name, entry in (values.get(section) or {}).items() if entry is not None}
    for name, entry in entries.items():
        path = f"{section}.{name}"
        if not isinstance(entry, dict) or key not in entry:
            hint = did_you_mean(name, [other for other in entries if other != name])
            raise RecipeError(f"{path} does not name its {key}.{hint} To add it, set --{path}.{key}")
        if entry[key] not in registry:
            hint = did_you_mean(str(entry[key]), registry) or f" Choose from {', '.join(registry)}."
            raise RecipeError(f"--{path}.{key} '{entry[key]}' does not exist.{hint}")
        yield name, path, registry[entry[key]], {name: value for name, value in entry.items() if name != key}


def _checked(path: str, values: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """The arguments of dataclasses, each of its type and range, with defaults for those that are missing."""
    known = [item.name for kind in kinds for item in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise RecipeError(f"--{path}.{name}: there is no '{name}' here.{did_you_mean(name, known)}")
    try:
        found = copy.deepcopy(_parsed(_Values(values), *kinds))
    except ArgumentError as error:
        raise RecipeError(_readable(str(error), path)) from error
    return {name: _without_range(getattr(found, name)) for name in known if name in found}


def _without_range(value: Any) -> Any:
    """Plain numbers for those of a type with a range, which checkpoints could not hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: _without_range(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, (list, tuple)):
        return type(value)(_without_range(entry) for entry in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value) if isinstance(value, int) else float(value)
    return value


class _Values(dict[str, Any]):
    """Plain values that are equal where they are written alike: 1 is neither 1.0 nor true."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(self))

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)


@functools.lru_cache(1000)  # a build asks for the same recipe eight times, and the parser is slow
def _parsed(values: _Values, *kinds: type) -> Any:
    parser = _parser(*kinds)
    instantiate = getattr(parser, "instantiate", parser.instantiate_classes)  # the old name goes in jsonargparse 5
    return instantiate(parser.parse_object(dict(values)))


@functools.cache  # reading the docstrings takes a while
def _parser(*kinds: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    for kind in kinds:
        parser.add_class_arguments(kind, skip={"teachers", "objectives", "loss"})
    return parser


def _readable(message: str, path: str) -> str:
    """The parser's message as one line that names the option and the range."""
    text = " ".join(message.split())
    prefix = f"{path}." if path else ""
    text = re.sub(r'Parser key "([\w.]+)": ', lambda match: f"--{prefix}{match[1]}: ", text)
    found = re.search(
        r"(--[\w.-]+): .*?Not of type (\w+): (\S+) does not conform to restriction (.*?)( Given value.*)?$", text
    )
    if found:
        option, kind, value, limits = found.groups()[:4]
        words = re.sub(r"v([<>]=?)", lambda match: f"{_COMPARISONS[match[1]]} ", limits)
        return f"{option} {value} is out of range; give {'at least 1' if kind == 'PositiveInt' else words}"
    return f"recipe: {text} (see `litheseg train --help`)"


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values, fit for YAML and JSON, as recipe files have them."""

    def entry(objective: Objective) -> dict[str, Any]:
        fields = {name: value for name, value in vars(objective).items() if name != "loss"}
        return {"loss": objective.loss.name, **fields, **vars(objective.loss)}

    values = {item.name: getattr(recipe, item.name) for item in dataclasses.fields(recipe)}
    values["teachers"] = {name: {"kind": teacher.kind, **vars(teacher)} for name, teacher in recipe.teachers.items()}
    values["objectives"] = {name: entry(objective) for name, objective in recipe.objectives.items()}
    result: dict[str, Any] = _plain(values)
    return result


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def check_recipe(recipe: Recipe) -> None:
    """Check ranges, and that choices fit together; what only data or a model can tell is checked there.

    Raises:
        RecipeError: a value does not; the message names it and its range.
        WidthError: a width outside (0, 1].
    """
    _parse(recipe_to_dict(recipe))
