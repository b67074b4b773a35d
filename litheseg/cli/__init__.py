"""The command line: it parses, calls the function of the same name, and prints what that returns.

A command is a module with ``SUMMARY``, ``add(parser)``, which declares its options, and ``run(args)``, which does it
and returns the exit status: 0 (or None) for success, 1 where a part failed or a check says no. Wrong usage and errors
that the user can mend give 2 and one line on stderr, Ctrl-C 130. With `--json`, standard output holds JSON only.

Usage:
    $ litheseg train --recipe slimseg --data.root camvid --output runs/slimseg
    $ litheseg evaluate runs/slimseg/model.safetensors --widths 1,.6,.25
"""

from __future__ import annotations

import difflib
import logging
import os
import shlex
import sys
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from litheseg import __version__
from litheseg.cli import (
    convert,
    data,
    demo,
    doctor,
    evaluate,
    export,
    fit,
    import_labels,
    import_weights,
    measure,
    models,
    predict,
    profile,
    pseudo_label,
    recipes,
    report,
    serve,
    train,
    video,
)
from litheseg.cli.printing import complain
from litheseg.errors import LithesegError, did_you_mean

__all__ = ["COMMANDS", "build_parser", "main"]

COMMANDS: Mapping[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "profile": profile,
    "fit": fit,
    "measure": measure,
    "predict": predict,
    "video": video,
    "serve": serve,
    "pseudo-label": pseudo_label,
    "import-labels": import_labels,
    "doctor": doctor,
    "data": data,
    "convert": convert,
    "import-weights": import_weights,
    "models": models,
    "recipes": recipes,
    "report": report,
    "demo": demo,
}

_OVERRIDABLE = ("train", "demo")  # commands that take recipe fields as options
_EPILOG = """examples:
  litheseg demo                                     see all of it in a few minutes, offline
  litheseg doctor data/mine                         is my data fit for training?
  litheseg train --recipe slimseg --data.root data/mine --output runs/mine
  litheseg evaluate runs/mine/model.safetensors
  litheseg predict runs/mine/model.safetensors photos/ --output labelled/ --width 0.5
  litheseg COMMAND --help                           options and examples of a command
"""


class _Parser(ArgumentParser):
    """Complains in one line and says where help is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"formatter_class": RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **kwargs)

    def reject(self, argument: str) -> NoReturn:
        """Complain about an argument that the command does not know, with the nearest that it does."""
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise LithesegError(f"unknown option {name}.{hint} See `{self.prog} --help`.")

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _keep_quiet()
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return complain("stopped by Ctrl-C", 130)
    except LithesegError as error:
        return complain(str(error), error.exit_status)
    except BrokenPipeError:  # `litheseg models | head`: whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> ArgumentParser:
    """The parser of all commands; `args.command` says which one was given."""
    parser = _Parser(prog="litheseg", description="One segmentation network, every budget.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"litheseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, command in COMMANDS.items():
        summary = command.SUMMARY
        own = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.add(own)
        own.set_defaults(parser=own)
    return parser


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise LithesegError(f"unknown command '{argv[0]}'.{did_you_mean(argv[0], COMMANDS)}")
    try:
        args, rest = build_parser().parse_known_args(argv)
    except SystemExit as stop:  # --help, --version, or wrong usage, all of which argparse has printed
        return int(stop.code or 0)
    if rest and args.command not in _OVERRIDABLE:
        args.parser.reject(rest[0])
    args.overrides = rest
    args.line = shlex.join(["litheseg", *argv])
    return COMMANDS[args.command].run(args) or 0


def _keep_quiet() -> None:
    """Leave out other libraries' advice on hardware, loaders and loggers; what litheseg says itself stays."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("lightning", "torch", "tensorboard"):
        warnings.filterwarnings("ignore", module=rf"{module}\b.*")
