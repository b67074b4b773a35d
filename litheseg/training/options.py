"""What recipe files and options on the command line say, as plain values whose names are checked.

Usage:
    >>> list(read_options(["--trainer.epochs=40", "--widths", "[1,.5]"], Recipe))
    [(['trainer', 'epochs'], '40'), (['widths'], '[1,.5]')]
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from litheseg.errors import RecipeError, did_you_mean

__all__ = ["check_keys", "load_yaml", "put", "read_options"]

_BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """With the booleans of YAML 1.2, true and false: `on` is the name of a field."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def load_yaml(text: str) -> Any:
    """The values in a text."""
    return yaml.load(text, _Loader)


def check_keys(values: dict[str, Any], kind: Any, where: str) -> None:
    """Refuse keys that the dataclass `kind` does not have; `where` is for messages."""
    known = _sections(kind)
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{where}: unknown key '{key}'.{did_you_mean(str(key), known)}")
        if known[key] is not None:
            if not isinstance(value, dict):
                raise RecipeError(f"{where}: '{key}' must be a section, not {value!r}")
            if known[key] is not dict:
                check_keys(value, known[key], f"{where}: {key}")


def _sections(kind: Any) -> dict[str, Any]:
    """Field names of a dataclass, and of those that are sections the dataclass, or dict for named entries."""
    known: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        factory = item.default_factory
        known[item.name] = factory if dataclasses.is_dataclass(factory) else None
        if item.name in ("teachers", "objectives"):
            known[item.name] = dict
    return known


def read_options(overrides: list[str], kind: Any) -> Iterator[tuple[list[str], Any]]:
    """The path and the value of each ``--a.b=value`` or ``--a.b value``; texts are left to the types of the fields.

    Args:
        overrides: the options.
        kind: the dataclass that has the fields.

    Raises:
        RecipeError: no option, an unknown one, or one without a value.
    """
    words = iter(overrides)
    for word in words:
        if not word.startswith("--"):
            raise RecipeError(f"'{word}' is no option; an option begins with --, such as --trainer.epochs=40")
        option, equals, text = word[2:].partition("=")
        path = option.split(".")
        _check_option(path, kind)
        if not equals:
            text = next(words, "--")
        if text.startswith("--"):
            raise RecipeError(f"--{option} needs a value, as in --{option}=VALUE")
        try:
            value = load_yaml(text)
        except yaml.YAMLError:
            value = text
        yield path, value if value is None or isinstance(value, dict) else text


def _check_option(path: list[str], kind: Any) -> None:
    """Refuse an option that does not exist, with the nearest that does."""
    name, whole = f"--{'.'.join(path)}", kind
    for depth, key in enumerate(path):
        known = _sections(kind)
        if key not in known:
            choices = [f"--{'.'.join([*path[:depth], field])}" for field in known]
            hint = _did_you_mean_one_of_a_section(key, whole) if len(path) == 1 else did_you_mean(name, choices)
            raise RecipeError(f"unknown option {name}.{hint}")
        kind = known[key]
        if kind is None or kind is dict:
            return


def _did_you_mean_one_of_a_section(name: str, kind: Any) -> str:
    """A hint where the section was left out: ``epochs`` is ``--trainer.epochs``."""
    options = list(_all_options(kind, "--"))
    same = [option for option in options if option.endswith(f".{name}")]
    near = same or difflib.get_close_matches(f"--{name}", ["--recipe", "--output", "--resume", *options], n=1)
    return f" Did you mean {' or '.join(near)}?" if near else " `litheseg train --help` lists all."


def _all_options(kind: Any, prefix: str) -> Iterator[str]:
    for name, nested in _sections(kind).items():
        yield from _all_options(nested, f"{prefix}{name}.") if nested not in (None, dict) else [f"{prefix}{name}"]


def put(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the value at a path of nested mappings."""
    for key in path[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[path[-1]] = value
