"""Recipes: reading every choice of one training run from a YAML file and the command line.

A recipe names values on four independent axes (which widths run, who teaches, which terms are summed, how the structure
changes); it holds no code, so a paper is a YAML file in `litheseg/recipes`. It does not know how anything is built.

Usage:
    >>> recipe = load_recipe("slimseg", ["--data.root=camvid", "--trainer.epochs=40"])
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from litheseg.errors import RecipeError, did_you_mean
from litheseg.training.checks import check_recipe
from litheseg.training.config import Recipe

__all__ = [
    "add_recipe_arguments",
    "load_recipe",
    "recipe_names",
    "recipe_to_dict",
    "recipe_yaml",
]


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
                hint = _did_you_mean_one_of_a_section(key) if len(path) == 1 else did_you_mean(name, choices)
                raise RecipeError(f"unknown option {name}.{hint}")
            if known[key] is None:
                break  # a plain value or a free mapping: the parser checks the rest
            kind = known[key]


def _did_you_mean_one_of_a_section(name: str) -> str:
    """A hint for whoever left out the section: ``epochs`` is ``--trainer.epochs``."""
    options = list(_options(Recipe, "--"))
    same = [option for option in options if option.endswith(f".{name}")]
    near = same or difflib.get_close_matches(f"--{name}", ["--recipe", "--output", "--resume", *options], n=1)
    return f" Did you mean {' or '.join(near)}?" if near else " `litheseg train --help` lists all."


def _options(kind: Any, prefix: str) -> Iterator[str]:
    """All options of a (possibly nested) dataclass."""
    for name, nested in _known_keys(kind).items():
        yield from _options(nested, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
