"""The exceptions that users meet.

Every message names what was wrong (the file, the value) and the remedy. Anything else that escapes litheseg is a bug
in litheseg; the command line therefore prints a `LithesegError` as one line and everything else as a traceback.

Usage:
    >>> raise DataError("masks/a.png: label 12 is outside the 11 classes; add it to 'ignore' in classes.yaml")
    Traceback (most recent call last):
    litheseg.errors.DataError: masks/a.png: label 12 is outside the 11 classes; add it to 'ignore' in classes.yaml
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = [
    "BundleError",
    "DataError",
    "DownloadError",
    "FolderInUseError",
    "Interrupted",
    "LithesegError",
    "MissingExtraError",
    "ModelError",
    "RankError",
    "RecipeError",
    "TrainingError",
    "WidthError",
    "did_you_mean",
    "first_line",
    "innermost",
    "listed",
    "printable",
]

# Categories of Unicode that a terminal may obey, or cannot show: controls, directions of writing, bytes that are no
# UTF-8, separators of lines. Joiners are part of many scripts.
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"


class LithesegError(Exception):
    """Base of all errors that a user can mend; the message says how.

    Attributes:
        exit_status: what the command line ends with.
    """

    exit_status = 2


class BundleError(LithesegError):
    """A model file that is corrupted, truncated, foreign or too new."""


class DataError(LithesegError):
    """Images, masks or class lists that cannot be used as they are."""


class DownloadError(LithesegError):
    """A file that cannot be had from where it lies, or is another one there."""


class FolderInUseError(LithesegError):
    """A folder that another process is writing."""


class Interrupted(LithesegError):
    """The user stopped the work; it is saved, and the message says how to go on."""

    exit_status = 130


class MissingExtraError(LithesegError):
    """A package that is not installed.

    Args:
        package: its name.
        extra: of litheseg, which brings it; None for a package that every install has.
        purpose: what needs it.
    """

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        remedy = package if extra is None else f"'litheseg[{extra}]'"
        super().__init__(f"{purpose} needs the package '{package}': pip install {remedy}")


class ModelError(LithesegError):
    """An architecture that cannot be built, slimmed or extracted as asked."""


class RecipeError(LithesegError):
    """A recipe key or value that does not exist or does not fit."""


class TrainingError(LithesegError):
    """A training run that cannot go on."""


class RankError(TrainingError):
    """A process of a distributed run that ended before the run did."""

    exit_status = 1


class WidthError(LithesegError):
    """A width outside (0, 1], or one that the model was not trained or calibrated for."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'ddrnet'?"``, or the list of choices when nothing is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else f" Choose from: {', '.join(known)}."


def innermost(error: BaseException) -> BaseException:
    """The error that others were raised from, one after the other."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """What an error of another library says, in a line: the first of its message, or its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first names and how many more there are: ``"a, b, c and 7 more"``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def printable(text: str) -> str:
    r"""Text that a stranger chose, such as a file's name, as a terminal may show it.

    What a terminal would obey (escape sequences, line breaks, directions of writing) and what is no UTF-8 is written as
    in Python: ``\x1b``, ``\n``, ``\udcff``.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _OBEYED and char not in _JOINERS
        else char
        for char in text
    )
