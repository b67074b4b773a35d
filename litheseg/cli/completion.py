"""Completion of commands and options in bash, zsh and fish, by a script that shtab writes from the commands' parsers.

The script is written once, and pressing the tab key starts no Python. It knows commands and options of this install: a
command whose packages are missing is completed by its name only.

Usage:
    $ litheseg --install-completion           # for the shell in use; or: --install-completion zsh
    $ litheseg --show-completion bash > litheseg.bash
"""

from __future__ import annotations

import importlib
import os
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from litheseg.cli.parsing import build_parser
from litheseg.errors import LithesegError, MissingExtraError
from litheseg.files import atomic_path
from litheseg.progress import work

__all__ = ["SHELLS", "complete_shell"]

SHELLS = ("bash", "zsh", "fish")


def complete_shell(words: Sequence[str], commands: Sequence[str]) -> None:
    """Print the script, or write it where the shell looks for it and say what is left to do.

    Args:
        words: --show-completion or --install-completion, and the shell; by default the one that SHELL names.
        commands: names of all commands.

    Raises:
        LithesegError: a shell that is not known, or a folder that cannot be written to.
        MissingExtraError: shtab is not installed.
    """
    option, *shells = words or [""]
    shells = shells or [Path(os.environ.get("SHELL", "")).name]
    if len(shells) > 1 or shells[0] not in SHELLS:
        unknown = " ".join(shells)
        raise LithesegError(f"no completion for the shell '{unknown}'; write `litheseg {option} bash`, zsh or fish")
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise MissingExtraError("shtab", None, f"`litheseg {option}`") from error
    with work("collecting options"):
        script = shtab.complete(_whole_parser(commands, shtab.FILE), shells[0])
    if option == "--show-completion":
        print(script)
        return
    path, activate = _place(shells[0])
    with atomic_path(path) as unfinished:
        unfinished.write_text(f"{script}\n", encoding="utf-8")
    print(f"wrote    {path}\nuse it   {activate}\nupdate   run this again after an update of litheseg")


def _place(shell: str) -> tuple[Path, str]:
    """Where the shell looks for scripts of the user, and what the user has to do."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    if shell == "bash":
        path = Path(os.environ.get("BASH_COMPLETION_USER_DIR") or data / "bash-completion") / "completions/litheseg"
        return path, f"open a new shell; without the package bash-completion, add to ~/.bashrc: source '{path}'"
    if shell == "zsh":
        line = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"
        return home / ".zfunc/_litheseg", f"add to ~/.zshrc, if it is not there, and open a new shell: {line}"
    return config / "fish/completions/litheseg.fish", "open a new shell"


def _whole_parser(commands: Sequence[str], files: Any) -> ArgumentParser:
    """All commands as parsers below one, which nothing but the script is made of."""
    parser = ArgumentParser(prog="litheseg")
    parser.add_argument("--version", action="store_true", help="print the version")
    for option in ("--install-completion", "--show-completion"):
        parser.add_argument(option, choices=SHELLS, help="complete commands and options by the tab key")
    parsers = parser.add_subparsers()
    for name in commands:
        try:
            module = importlib.import_module(f"litheseg.cli.{name.replace('-', '_')}")
        except ModuleNotFoundError:  # a command that this install has no packages for
            parsers.add_parser(name, help="")
            continue
        functions = [getattr(module, entry) for entry in module.__all__]
        if len(functions) == 1:
            _add(parsers, name, functions[0], module.__doc__, files)
            continue
        actions = parsers.add_parser(name, help=_first_line(module.__doc__)).add_subparsers()
        for function in functions:
            _add(actions, function.__name__.rstrip("_"), function, function.__doc__, files)
    return parser


def _add(parsers: Any, name: str, function: Any, about: str | None, files: Any) -> None:
    """A command or action, with files for every value that is none of a few."""
    parent = build_parser(function, name, "")
    parser = parsers.add_parser(name, help=_first_line(about), parents=[parent], add_help=False)
    if name == "train":
        for field in _recipe_fields():
            parser.add_argument(f"--{field}")
    for action in parser._actions:
        if action.nargs != 0 and not action.choices:
            action.complete = files  # type: ignore[attr-defined]


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]


def _recipe_fields() -> list[str]:
    try:
        from litheseg.training.recipe import load_recipe, recipe_to_dict
    except ModuleNotFoundError:  # the box trains nothing
        return []
    return list(_fields(recipe_to_dict(load_recipe("slimseg"))))


def _fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of a recipe's fields."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
