"""Commands from functions: parameters become options, annotations their types, docstrings the help.

Of a command's function, parameters without a default are arguments (``/`` before them keeps one with a default an
argument too), and keyword-only ones are options: `max_pixels` is `--max-pixels`, a flag that is True by default is
`--no-check`, a sequence may be given several times. Types such as `litheseg.values.Size` say how text is read.
`command` adds the options of the function that does the work; the command passes them on as ``**options``.
Parameters that cannot be written as text, such as callbacks, are no options.

Usage:
    >>> @command(evaluate)
    ... def score(model: Path, *, json: bool = False, **options: Any) -> None:
    ...     print(evaluate(model, **options))
    >>> parser = build_parser(score, "litheseg score", "Score a model.")
    >>> call(score, parser, ["model.safetensors", "--widths", "1,.5"])()
"""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from litheseg.errors import LithesegError
from litheseg.values import Written

__all__ = ["Option", "build_parser", "call", "command", "docstring_args", "options_of"]

Function = TypeVar("Function", bound=Callable[..., Any])

_PLACEHOLDERS = {int: "N", float: "X", Path: "PATH"}
_LINE = "command"  # the parameter that is given the shell command


@dataclass(frozen=True)
class Option:
    """A parameter that can be written.

    Attributes:
        name: of the parameter.
        kind: of the parameter, as `inspect` has it.
        default: `inspect.Parameter.empty` if it has to be given.
        written: how a value is.
        several: whether there may be several values.
        help: from the docstring.
    """

    name: str
    kind: Any
    default: Any
    written: Written | type[bool]
    several: bool
    help: str

    @property
    def is_argument(self) -> bool:
        """Given by its position, not by its name."""
        required = self.default is inspect.Parameter.empty
        return self.kind is inspect.Parameter.POSITIONAL_ONLY or (
            required and self.kind is not inspect.Parameter.KEYWORD_ONLY
        )


def command(
    function: Callable[..., Any], *, without: Sequence[str] = (), exclusive: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Make a command of a function that passes options on, as ``**options``, to another.

    Args:
        function: whose options become those of the command.
        without: names of parameters that do not.
        exclusive: names of options of which one may be given.
    """

    def decorate(decorated: Function) -> Function:
        decorated.__dict__.update(passes_to=function, without=without, exclusive=exclusive)
        return decorated

    return decorate


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """All options of a command by name: its own first, then those that it passes on."""
    further, without = function.__dict__.get("passes_to"), (_LINE, *function.__dict__.get("without", ()))
    passed = {} if further is None else options_of(further)
    texts = {name: option.help for name, option in passed.items()} | docstring_args(inspect.getdoc(function) or "")
    own = {option.name: option for option in _own_options(function, texts) if option.name != _LINE}
    passed = {name: option for name, option in passed.items() if name not in (*own, *without)}
    return own | {name: replace(option, help=texts[name]) for name, option in passed.items()}


@cache
def build_parser(function: Callable[..., Any], prog: str, about: str) -> ArgumentParser:
    """The parser of one command.

    Args:
        function: of the command.
        prog: how it is called.
        about: what help says; from the section "Examples" on it stands below the options.
    """
    before, heading, after = about.partition("\nExample")
    epilog = f"example{after}" if heading else ""
    parser = _Parser(prog=prog, description=before.strip(), epilog=epilog, argument_default=SUPPRESS)
    exclusive = function.__dict__.get("exclusive", ())
    group = parser.add_mutually_exclusive_group() if exclusive else parser
    for option in options_of(function).values():
        _add(group if option.name in exclusive else parser, option)
    return parser


def call(function: Callable[..., Any], parser: ArgumentParser, words: Sequence[str], line: str = "") -> partial[Any]:
    """The call that a command line asks for.

    Args:
        function: of the command; what is unknown goes to its ``*overrides`` if it has them.
        parser: of `build_parser`.
        words: behind the command's name.
        line: the whole command, for a function that has a parameter `command`.

    Raises:
        LithesegError: wrong usage.
        SystemExit: help was asked for, and printed.
    """
    found, unknown = parser.parse_known_args(list(words))
    given = vars(found)
    parameters = inspect.signature(function).parameters
    if unknown and not any(entry.kind is inspect.Parameter.VAR_POSITIONAL for entry in parameters.values()):
        _reject(parser, unknown[0])
    if _LINE in parameters:
        given[_LINE] = line
    first = [
        given.pop(name)
        for name, entry in parameters.items()
        if entry.kind is inspect.Parameter.POSITIONAL_ONLY and name in given
    ]
    return partial(function, *first, *unknown, **given)


def docstring_args(docstring: str) -> dict[str, str]:
    """Name -> text of the section "Args" (or "Attributes") of a docstring in Google's style."""
    section = re.search(r"^(?:Args|Attributes):\n((?: .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    entries = re.split(r"^ {4}\**(\w+)(?: \(.*\))?: ", section[1] if section else "", flags=re.MULTILINE)
    # What is None in Python is left out on the command line.
    words = (" ".join(text.split()).replace("None for", "by default") for text in entries[2::2])
    texts = (re.sub(r"(?<!\.)\.$", "", text) for text in words)
    return dict(zip(entries[1::2], texts, strict=True))


class _Parser(ArgumentParser):
    """Wrong usage is one line that says where help is."""

    def __init__(self, **kwargs: Any) -> None:
        formatter = partial(RawDescriptionHelpFormatter, max_help_position=30, width=110)
        super().__init__(formatter_class=formatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise LithesegError(f"{message} (see `{self.prog} --help`)")


def _own_options(function: Callable[..., Any], texts: dict[str, str]) -> Iterator[Option]:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, inspect.unwrap(function).__globals__)
            except NameError:  # imported for type checkers only: nothing that is written
                continue
        written, several = _written(annotation)
        if written is not None:
            text = texts.get(parameter.name, "")
            yield Option(parameter.name, parameter.kind, parameter.default, written, several, text)


def _written(annotation: Any) -> tuple[Written | type[bool] | None, bool]:
    """How a value of this type is written, and whether there are several; None for what cannot be written."""
    inner = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return next((entry for entry in inner if isinstance(entry, Written)), None), False
    if origin in (Union, UnionType):
        return next((found for found in map(_written, inner) if found[0] is not None), (None, False))
    if origin is Literal:
        return Written(str, choices=inner), False
    if origin in (Sequence, Iterable):
        return _written(inner[0])[0], True
    if annotation in (str, Path, int, float):
        show = "{:g}".format if annotation is float else str
        return Written(annotation, _PLACEHOLDERS.get(annotation), show), False
    return (bool if annotation is bool else None), False


def _add(parser: Any, option: Option) -> None:
    name, written, default = option.name.replace("_", "-"), option.written, option.default
    how: dict[str, Any] = {"help": option.help.replace("%", "%%")}
    if not isinstance(written, Written):
        action = "store_false" if default is True else "store_true"
        parser.add_argument(f"--no-{name}" if default is True else f"--{name}", dest=option.name, action=action, **how)
        return
    if default not in (inspect.Parameter.empty, None, "", ()):
        how["help"] += f" [{written.show(default)}]".replace("%", "%%")
    how |= {"choices": written.choices} if written.choices else {"type": _reader(written.parse)}
    if option.is_argument:
        how |= {"nargs": "+"} if option.several else {} if default is inspect.Parameter.empty else {"nargs": "?"}
        parser.add_argument(option.name, metavar=option.name.upper(), **how)
        return
    if not written.choices:
        how["metavar"] = written.like or option.name.upper()
    how |= {"action": "append"} if option.several else {}
    parser.add_argument(f"--{name}", dest=option.name, required=default is inspect.Parameter.empty, **how)


def _reader(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse, which puts the option's name before an error of its own."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except LithesegError as error:
            raise ArgumentTypeError(str(error)) from error

    read.__name__ = getattr(parse, "__name__", "value")  # "invalid int value"
    return read


def _reject(parser: ArgumentParser, word: str) -> NoReturn:
    name = word.partition("=")[0]
    near = get_close_matches(name, parser._option_string_actions, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise LithesegError(f"unknown option {name}.{hint} See `{parser.prog} --help`.")
