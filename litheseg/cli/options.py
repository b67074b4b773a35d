"""Options that several commands share, and the types of what is typed behind them."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING, Any

import yaml

from litheseg.bundle.header import check_width
from litheseg.errors import WidthError
from litheseg.masks.reading import MAX_PIXELS

if TYPE_CHECKING:
    from litheseg.data.source import Source

__all__ = [
    "bundle_argument",
    "data_argument",
    "data_options",
    "device_option",
    "fps_option",
    "json_option",
    "max_pixels_option",
    "open_data",
    "parse_amount",
    "parse_counts",
    "parse_floats",
    "parse_mapping",
    "parse_size",
    "parse_sizes",
    "parse_width",
    "parse_widths",
    "widths_option",
]

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def bundle_argument(parser: ArgumentParser) -> None:
    """The model file."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a model file, such as runs/NAME/model.safetensors")


def data_argument(parser: ArgumentParser) -> None:
    """The folder of a data set, and its kind."""
    parser.add_argument("data", nargs="?", metavar="DATA", help="the folder of the data; none for --source streets")
    _source_option(parser)


def data_options(parser: ArgumentParser) -> None:
    """Another data set than the one that the model was trained on."""
    parser.add_argument("--data", metavar="DIR", help="the folder of the data [what the model was trained on]")
    _source_option(parser)


def widths_option(parser: ArgumentParser, meaning: str) -> None:
    """Several widths."""
    parser.add_argument("--widths", type=parse_widths, metavar="W,W", help=meaning)


def device_option(parser: ArgumentParser) -> None:
    """Where to run."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... [cpu]")


def fps_option(parser: ArgumentParser) -> None:
    """The pace of images that are timed."""
    parser.add_argument(
        "--fps", type=float, metavar="N", help="images a second, as of a camera [no pause between them]"
    )


def json_option(parser: ArgumentParser) -> None:
    """Print JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def max_pixels_option(parser: ArgumentParser) -> None:
    """The largest image."""
    parser.add_argument(
        "--max-pixels",
        type=parse_amount,
        default=MAX_PIXELS,
        metavar="N",
        help=f"of an image, width times height, by its header; larger ones are refused [{MAX_PIXELS // 1_000_000}M]",
    )


def parse_amount(text: str) -> int:
    """``20MB``, ``500k``, ``25M``: decimal units."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?", text.strip().lower())
    if match is None:
        raise ArgumentTypeError(f"'{text}' is no amount; write e.g. 500k or 20M")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_floats(text: str) -> tuple[float, ...]:
    """``1,.5``, in brackets or not."""
    try:
        return tuple(float(part) for part in text.strip("[]()").split(","))
    except ValueError as error:
        raise ArgumentTypeError(f"'{text}' is no list of numbers; write e.g. 1,.5") from error


def parse_counts(text: str) -> tuple[int, ...]:
    """Whole numbers above 0: ``1,4``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ArgumentTypeError(f"'{text}' is no list of numbers of threads; write e.g. 1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_widths(text: str) -> tuple[float, ...]:
    """Fractions in (0, 1]: ``1,.5``."""
    try:
        return tuple(check_width(value) for value in parse_floats(text))
    except WidthError as error:
        raise ArgumentTypeError(str(error)) from error


def parse_width(text: str) -> float:
    """One fraction in (0, 1]."""
    values = parse_widths(text)
    if len(values) != 1:
        raise ArgumentTypeError(f"'{text}' is more than one width")
    return values[0]


def parse_mapping(text: str) -> dict[str, Any]:
    """A mapping in YAML: ``{up: bilinear}``."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise ArgumentTypeError(f"'{text}' is no mapping; write e.g. '{{up: bilinear}}'")
    return content


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels: ``360x480``."""
    parts = text.lower().strip("[]()").replace(",", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ArgumentTypeError(f"'{text}' is no size; write height x width in pixels, such as 360x480")
    return int(parts[0]), int(parts[1])


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Several: ``180x240,136x184``."""
    return tuple(dict.fromkeys(parse_size(part) for part in text.strip("[]()").split(",")))


def open_data(args: Namespace) -> Source:
    """What `data_argument` named."""
    from litheseg.data import open_source

    limit = {"max_pixels": args.max_pixels} if hasattr(args, "max_pixels") else {}
    return open_source(args.source, args.data, **limit)


def _source_option(parser: ArgumentParser) -> None:
    from litheseg.data import SOURCES  # the box has no data sets

    parser.add_argument("--source", choices=("auto", *SOURCES), default="auto", help="kind of data [auto]")
