"""The help of `litheseg train --help` on a recipe's fields, from the docstrings of their dataclasses.

Usage:
    >>> print(recipe_help(Recipe()))
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from typing import Any

import docstring_parser

from litheseg.losses import LOSSES
from litheseg.training.recipe import Objective, Recipe, recipe_to_dict
from litheseg.training.teacher import TEACHERS

__all__ = ["recipe_help"]

_INDENT = 32
_COLUMNS = 110


def recipe_help(recipe: Recipe) -> str:
    """Every field with its meaning and its value in `recipe`, by section; then each loss and each kind of teacher."""
    lines = _section("", "", recipe)
    lines += ["", "objectives.NAME: one addend of what training minimises."]
    values = {item.name: item.default for item in dataclasses.fields(Objective)}
    lines += _fields("--objectives.NAME.", Objective, {**values, "loss": " | ".join(LOSSES)})
    for name, loss in LOSSES.items():
        lines += _section("--objectives.NAME.", f"objectives.NAME, loss {name}", loss())
    for kind, teacher in TEACHERS.items():
        lines += _section("--teachers.NAME.", f"teachers.NAME, kind {kind}", teacher())
    return "\n".join(lines).strip("\n")


def _section(prefix: str, title: str, config: Any) -> list[str]:
    """A dataclass: its title, its fields, and those that are sections of their own."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    if isinstance(config, Recipe):
        values |= {name: recipe_to_dict(config)[name] for name in ("teachers", "objectives")}
    lines = ["", f"{title}: {(inspect.getdoc(type(config)) or '').splitlines()[0]}"] if title else []
    plain = {name: value for name, value in values.items() if not dataclasses.is_dataclass(value)}
    lines += _fields(prefix or "--", type(config), plain)
    for name in [name for name in values if name not in plain]:
        path = f"{prefix.removeprefix('--')}{name}"
        lines += _section(f"--{path}.", path, values[name])
    return lines


def _fields(prefix: str, kind: Any, values: dict[str, Any]) -> list[str]:
    parameters = docstring_parser.parse(inspect.getdoc(kind) or "").params
    described = {item.arg_name: " ".join((item.description or "").split()) for item in parameters}
    return [line for name, value in values.items() for line in _field(f"{prefix}{name}", described[name], value)]


def _field(option: str, meaning: str, value: Any) -> list[str]:
    text = f"{meaning} [{_shown(value)}]".strip()
    lines = textwrap.wrap(text, _COLUMNS - _INDENT, break_long_words=False)
    left = f"  {option}"
    if len(left) > _INDENT - 2:
        return [left, *(" " * _INDENT + line for line in lines)]
    return [left.ljust(_INDENT) + lines[0], *(" " * _INDENT + line for line in lines[1:])]


def _shown(value: Any) -> str:
    """A value as one would type it."""
    if value is None or isinstance(value, str):
        return str(value)
    return json.dumps(value, default=str).replace('"', "")
