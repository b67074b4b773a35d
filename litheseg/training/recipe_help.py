"""What `litheseg train --help` says of a recipe's fields, from the docstrings of their dataclasses.

Usage:
    >>> print(recipe_help(Recipe()))
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from typing import Any

from litheseg.training.config import Recipe

__all__ = ["recipe_help"]

_INDENT = 32
_COLUMNS = 110


def recipe_help(recipe: Recipe) -> str:
    """Every field with its meaning and its value in `recipe`, grouped by section."""
    return "\n".join(_section("", recipe)).strip("\n")


def _section(prefix: str, config: Any) -> list[str]:
    described = _attributes(inspect.getdoc(type(config)) or "")
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    lines = []
    if prefix:
        title = (inspect.getdoc(type(config)) or prefix).splitlines()[0]
        lines += ["", f"{prefix[:-1]}: {title}"]
    for name, value in values.items():
        if not dataclasses.is_dataclass(value):
            lines += _field(f"--{prefix}{name}", described.get(name, "how the run is called"), value)
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            lines += _section(f"{prefix}{name}.", value)
    return lines


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


def _attributes(doc: str) -> dict[str, str]:
    """Name -> text of the docstring's section "Attributes" or "Args"."""
    _, _, body = doc.partition("Attributes:\n") if "Attributes:\n" in doc else doc.partition("Args:\n")
    result: dict[str, str] = {}
    name = ""
    for line in body.splitlines():
        if line and not line.startswith(" "):
            break
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name, text = start.groups()
            result[name] = text
        elif name:
            result[name] = f"{result[name]} {line.strip()}".strip()
    return result
