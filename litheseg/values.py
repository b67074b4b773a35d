"""How values are written, on the command line and elsewhere: 360x480, 1,.5, 20MB, 20ms.

A type such as `Size` annotates a parameter that takes the real value, here a pair of integers, and also says how it is
read from text: commands are built from functions whose parameters have such types.

Usage:
    >>> parse_size("360x480")
    (360, 480)
    >>> parse_duration("20ms")
    20.0
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import yaml

from litheseg.errors import LithesegError, WidthError

__all__ = [
    "Bytes",
    "Counts",
    "Duration",
    "Names",
    "Numbers",
    "Quantity",
    "Size",
    "Sizes",
    "Width",
    "Widths",
    "Written",
    "YamlMapping",
    "check_width",
    "parse_bytes",
    "parse_counts",
    "parse_duration",
    "parse_mapping",
    "parse_names",
    "parse_numbers",
    "parse_quantity",
    "parse_size",
    "parse_sizes",
    "parse_width",
    "parse_widths",
]

_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*"
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}


@dataclass(frozen=True)
class Written:
    """How a value is written, for use in `typing.Annotated`.

    Attributes:
        parse: reads it from text; raises a `LithesegError` that says what to write instead.
        like: what stands for it in help: HxW.
        show: writes it as `parse` reads it.
        choices: the texts that there are; empty for any.
    """

    parse: Callable[[str], Any]
    like: str | None = None
    show: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()


def check_width(width: float) -> float:
    """`width` as a float in (0, 1].

    Raises:
        WidthError: it is not.
    """
    if not 0.0 < float(width) <= 1.0:
        raise WidthError(f"width {width} is outside (0, 1]; it is the fraction of channels to keep, such as 0.5")
    return float(width)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels: ``360x480``.

    Raises:
        LithesegError: something else.
    """
    parts = text.lower().strip("[]()").replace(",", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise LithesegError(f"'{text}' is no size; write height x width in pixels, such as 360x480")
    return int(parts[0]), int(parts[1])


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Several sizes, each once: ``180x240,136x184``."""
    return tuple(dict.fromkeys(parse_size(part) for part in text.strip("[]()").split(",")))


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them, in brackets or not: ``1,.5``.

    Raises:
        LithesegError: something else.
    """
    try:
        return tuple(float(part) for part in text.strip("[]()").split(","))
    except ValueError as error:
        raise LithesegError(f"'{text}' is no list of numbers; write e.g. 1,.5") from error


def parse_counts(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, each once: ``1,4``.

    Raises:
        LithesegError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise LithesegError(f"'{text}' is no list of whole numbers above 0; write e.g. 1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_names(text: str) -> tuple[str, ...]:
    """Words with commas between them: ``onnx,openvino``."""
    return tuple(part.strip() for part in text.split(","))


def parse_widths(text: str) -> tuple[float, ...]:
    """Fractions of the channels, in (0, 1]: ``1,.5``.

    Raises:
        WidthError: a number that is none.
        LithesegError: no numbers.
    """
    return tuple(check_width(value) for value in parse_numbers(text))


def parse_width(text: str) -> float:
    """One fraction in (0, 1].

    Raises:
        LithesegError: none, or several.
    """
    widths = parse_widths(text)
    if len(widths) != 1:
        raise LithesegError(f"'{text}' is more than one width")
    return widths[0]


def parse_duration(text: str) -> float:
    """Milliseconds of ``20ms``, ``0.05s``, or of one image at ``15fps``.

    Raises:
        LithesegError: no unit, an unknown one, or no number above 0.
    """
    found = re.fullmatch(_NUMBER + r"([a-zµ]*)", text.strip().lower())
    value, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if found and value > 0 and (unit in _MILLISECONDS or unit == "fps"):
        return 1e3 / value if unit == "fps" else value * _MILLISECONDS[unit]
    problem = "has no unit" if found and not unit else "is no time"
    raise LithesegError(f"'{text}' {problem}; write a time such as 20ms or a rate such as 15fps")


def parse_bytes(text: str) -> int:
    """Bytes of ``50MB`` (10^6) or ``50MiB`` (2^20).

    Raises:
        LithesegError: no unit, an unknown one, or no number above 0.
    """
    return _scaled(text, _BYTES, "an amount of bytes such as 50MB or 800KiB")


def parse_quantity(text: str) -> int:
    """A whole number such as ``25M``, ``1G``, ``2e9`` or ``3000``.

    Raises:
        LithesegError: something else.
    """
    return _scaled(text, _SCALES, "a number such as 25M, 1G or 3000")


def parse_mapping(text: str) -> dict[str, Any]:
    """A mapping in YAML: ``{up: bilinear}``.

    Raises:
        LithesegError: something else.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise LithesegError(f"'{text}' is no mapping; write e.g. '{{up: bilinear}}'")
    return content


def _scaled(text: str, units: Mapping[str, float], wanted: str) -> int:
    found = re.fullmatch(_NUMBER + r"([a-z]*)", text.strip().lower())
    if not found or found[2] not in units or float(found[1]) <= 0:
        raise LithesegError(f"'{text}' is no amount; write {wanted}")
    return round(float(found[1]) * units[found[2]])


def _short(amount: float) -> str:
    """25M of 25,000,000."""
    unit, scale = next(((unit, scale) for unit, scale in (("G", 1e9), ("M", 1e6)) if amount >= scale), ("", 1.0))
    return f"{amount / scale:g}{unit}"


def _with_commas(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


Size = Annotated[tuple[int, int], Written(parse_size, "HxW", lambda size: f"{size[0]}x{size[1]}")]
Sizes = Annotated[Sequence[tuple[int, int]], Written(parse_sizes, "HxW,HxW")]
Width = Annotated[float, Written(parse_width, "W")]
Widths = Annotated[Sequence[float], Written(parse_widths, "W,W", _with_commas)]
Numbers = Annotated[Sequence[float], Written(parse_numbers, "X,X", _with_commas)]
Counts = Annotated[Sequence[int], Written(parse_counts, "N,N", _with_commas)]
Names = Annotated[Sequence[str], Written(parse_names, "A,B", ",".join)]
Duration = Annotated[float, Written(parse_duration, "TIME", lambda value: f"{value:g}ms")]
Bytes = Annotated[int, Written(parse_bytes, "BYTES", lambda value: f"{_short(value)}B")]
Quantity = Annotated[int, Written(parse_quantity, "N", _short)]
YamlMapping = Annotated[dict[str, Any], Written(parse_mapping, "YAML")]
