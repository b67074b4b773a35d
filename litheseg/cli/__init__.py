"""The command line: it parses, calls the function of the same name, and prints what that returns.

A command is a module with ``add(parser)``, which declares its options, and ``run(args)``, which does it and returns the
exit status: 0 (or None) for success, 1 where a part failed or a check says no. Wrong usage and errors
that the user can mend give 2 and one line on stderr, Ctrl-C 130. With `--json`, standard output holds JSON only.

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
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from litheseg import __version__
from litheseg.cli.printing import complain
from litheseg.errors import LithesegError, MissingExtraError, did_you_mean, printable

__all__ = ["COMMANDS", "build_parser", "main"]

COMMANDS: Mapping[str, str] = {
    "train": "train a network that runs at several widths",
    "evaluate": "score a model on labelled images",
    "export": "write networks for ONNX Runtime, OpenVINO and torch.export, proven equal",
    "profile": "count a model at every width, and time it end to end",
    "fit": "find the most accurate model within a budget, by measuring, and export it",
    "measure": "write a kit that times a model on a machine without litheseg",
    "predict": "label images",
    "video": "label a video, a sequence of images, a camera or a stream",
    "serve": "segment images over HTTP, with a page to try it",
    "pseudo-label": "label images, and choose which to correct by hand",
    "import-labels": "read corrected labels back as a data set",
    "doctor": "find what is wrong with a data set",
    "data": "fetch, make, describe and split data sets",
    "convert": "turn a dense or gradual model into a grouped one",
    "import-weights": "make a model file of weights from elsewhere",
    "models": "list the architectures",
    "recipes": "list the recipes",
    "report": "compare models on one page",
    "demo": "train, measure and report a small model in a few minutes, offline",
}
"""What each command is for. It is the module of the same name, which is imported when the command is named."""

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
        import difflib

        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise LithesegError(f"unknown option {name}.{hint} See `{self.prog} --help`.")

    def error(self, message: str) -> NoReturn:
        print(f"error: {printable(message)} (see `{self.prog} --help`)", file=sys.stderr)
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


def build_parser(commands: Iterable[str] = COMMANDS) -> ArgumentParser:
    """The parser of all commands; `args.command` says which one was given.

    Args:
        commands: those whose options are wanted; only their modules are imported.

    Raises:
        MissingExtraError: a command that this install has no packages for.
    """
    parser = _Parser(prog="litheseg", description="One segmentation network, every budget.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"litheseg {__version__}")
    listed = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, summary in COMMANDS.items():
        own = listed.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        own.set_defaults(parser=own)
        if name in commands:
            _module(name).add(own)
    return parser


def _run(argv: list[str]) -> int:
    named = [argv[0]] if argv and not argv[0].startswith("-") else []
    if named and named[0] not in COMMANDS:
        raise LithesegError(f"unknown command '{argv[0]}'.{did_you_mean(argv[0], COMMANDS)}")
    try:
        args, rest = build_parser(named).parse_known_args(argv)
    except SystemExit as stop:  # --help, --version, or wrong usage, all of which argparse has printed
        return int(stop.code or 0)
    if rest and args.command not in _OVERRIDABLE:
        args.parser.reject(rest[0])
    args.overrides = rest
    args.line = shlex.join(["litheseg", *argv])
    try:
        return _module(args.command).run(args) or 0
    except ModuleNotFoundError as error:
        raise _missing(error, args.command) from error


def _module(command: str) -> Any:
    try:
        return importlib.import_module(f"litheseg.cli.{command.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise _missing(error, command) from error


def _missing(error: ModuleNotFoundError, command: str) -> Exception:
    """What to say of a package that is not there; a module of our own that is missing is a bug, and stays one."""
    package = (error.name or "litheseg").partition(".")[0]
    return error if package == "litheseg" else MissingExtraError(package, "train", f"`litheseg {command}`")


def _keep_quiet() -> None:
    """Leave out other libraries' advice on hardware, loaders and loggers; what litheseg says itself stays."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("lightning", "torch", "tensorboard", "PIL"):
        warnings.filterwarnings("ignore", module=rf"{module}\b.*")
