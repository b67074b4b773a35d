"""The command line: it parses, calls the function of the same name, and prints what that returns.

A command is a function in the module of its name, built into options by `litheseg.cli.parsing`; the module's docstring
is its help. It returns the exit status: 0 (or None) for success, 1 if a part or a check failed. Wrong usage
and errors that the user can mend give 2 and one line on stderr, Ctrl-C 130. With `--json`, standard output holds JSON
only.

Usage:
    $ litheseg train --recipe slimseg --data.root camvid --output runs/slimseg
    $ litheseg evaluate runs/slimseg/model.safetensors --widths 1,.6,.25
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from litheseg import __version__
from litheseg.cli.printing import complain
from litheseg.errors import LithesegError, MissingExtraError, did_you_mean
from litheseg.progress import shown, work

__all__ = ["COMMANDS", "main", "read"]

COMMANDS = (
    *("build", "train", "tune", "evaluate", "robustness", "export", "profile", "fit", "measure"),
    *("predict", "video", "serve"),
    *("pseudo-label", "import-labels", "doctor", "data", "convert", "import-weights", "models", "pull", "push"),
    *("recipes", "report", "demo"),
)
"""Each is the module of its name, which is imported when the command is named."""

_HELP, _QUOTES = ("-h", "--help"), '"'
_EXAMPLES = """
examples:
  litheseg demo                                     see all of it in a few minutes, offline
  litheseg build data/mine --budget 20ms --minutes 60 --output deployed
  litheseg doctor data/mine                         is my data fit for training?
  litheseg train --recipe slimseg --data.root data/mine --output runs/mine
  litheseg evaluate runs/mine/model.safetensors
  litheseg predict runs/mine/model.safetensors photos/ --output labelled/ --width 0.5
  litheseg COMMAND --help                           options and examples of a command"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    _keep_quiet()
    try:
        with shown():
            return _run(words)
    except KeyboardInterrupt:
        return complain("stopped by Ctrl-C", 130)
    except LithesegError as error:
        return complain(str(error), error.exit_status)
    except BrokenPipeError:  # as in `litheseg models | head`: the reader has closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def read(words: Sequence[str]) -> partial[int | None]:
    """The call of a function that a command line asks for; imports the command's module only.

    Args:
        words: behind `litheseg`, the command's name first.

    Raises:
        LithesegError: wrong usage.
        MissingExtraError: a command that this install has no packages for.
        SystemExit: help was asked for, and printed.
    """
    name, *rest = words
    if name not in COMMANDS:
        raise LithesegError(f"unknown command '{name}'.{did_you_mean(name, COMMANDS)}")
    try:
        from litheseg.cli.parsing import build_parser, call

        with work("loading libraries"):
            module = importlib.import_module(f"litheseg.cli.{_module(name)}")
        prog, about, function = f"litheseg {name}", module.__doc__ or "", getattr(module, module.__all__[0])
        if len(module.__all__) > 1:
            function, *rest = _action(module, prog, rest)
            prog, about = f"{prog} {_word(function.__name__)}", _summary(function)
        parser = build_parser(function, prog, about)
        if "--help-all" in rest and hasattr(module, "help_all"):
            print(f"{parser.format_help()}\n{module.help_all()}")
            raise SystemExit(0)
        return call(function, parser, rest, shlex.join(["litheseg", *words]))
    except ModuleNotFoundError as error:
        raise _missing(error, name) from error


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"litheseg {__version__}")
        return 0
    if words and words[0] in ("--install-completion", "--show-completion"):
        from litheseg.cli.completion import complete_shell

        complete_shell(words, COMMANDS)
        return 0
    if words and words[0] in _HELP:
        print("usage: litheseg [--version | --install-completion [SHELL]] COMMAND ...")
        print("\nOne segmentation network, every budget.\n\ncommands:")
        for name in COMMANDS:
            with Path(__file__).with_name(f"{_module(name)}.py").open(encoding="utf-8") as source:
                print(f"  {name:<16}{source.readline().strip().removeprefix('r').strip(_QUOTES)}")
        print(_EXAMPLES)
        return 0
    if not words or words[0].startswith("-"):
        raise LithesegError(f"{words[0] if words else 'nothing'} is no command; `litheseg --help` lists them")
    try:
        run = read(words)
    except SystemExit:  # --help was printed
        return 0
    try:
        return run() or 0
    except ModuleNotFoundError as error:
        raise _missing(error, words[0]) from error


def _action(module: ModuleType, prog: str, words: list[str]) -> list[Any]:
    """Which of the module's functions is asked for, and the words behind its name."""
    functions = {_word(name): getattr(module, name) for name in module.__all__}
    if words and words[0] in functions:
        return [functions[words[0]], *words[1:]]
    if words and words[0] in _HELP:
        about, _, examples = (module.__doc__ or "").partition("Examples:")
        print(f"usage: {prog} ACTION ...\n\n{about}actions:")
        for name, function in functions.items():
            print(f"  {name:<8}{_summary(function)}")
        print(f"\nexamples:{examples}")
        raise SystemExit(0)
    wrong = f"unknown action '{words[0]}'.{did_you_mean(words[0], functions)}" if words else "an action is missing."
    raise LithesegError(f"{wrong} See `{prog} --help`")


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def _word(function: str) -> str:
    """The action that a function does: `import_` is `import`."""
    return function.rstrip("_")


def _module(command: str) -> str:
    return command.replace("-", "_")


def _missing(error: ModuleNotFoundError, command: str) -> Exception:
    """The error for a missing package; a missing module of litheseg is a bug and is raised again."""
    package = (error.name or "litheseg").partition(".")[0]
    return error if package == "litheseg" else MissingExtraError(package, "train", f"`litheseg {command}`")


def _keep_quiet() -> None:
    """Silence other libraries' advice on hardware, loaders and loggers, and their bars: there is one display."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("lightning", "torch", "tensorboard", "PIL"):
        warnings.filterwarnings("ignore", module=rf"{module}\b.*")
