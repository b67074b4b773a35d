"""`litheseg doctor`: find what is wrong with a data set."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from litheseg.cli.options import data_argument, json_option, max_pixels_option, parse_size
from litheseg.cli.printing import console
from litheseg.data.doctor import diagnose_path

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    data_argument(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="look at N samples of each split only")
    parser.add_argument(
        "--crop", type=parse_size, metavar="HxW", help="that training will use; smaller images are named"
    )
    max_pixels_option(parser)
    json_option(parser)
    parser.epilog = """exit status: 0 training can go on, 1 it cannot.

examples:
  litheseg doctor data/camvid
  litheseg doctor data/mine --source folder --crop 512x512 --json
"""


def run(args: Namespace) -> int:
    """Do it and print what came of it."""
    options = {"limit": args.limit, "crop": args.crop, "max_pixels": args.max_pixels}
    report = diagnose_path(args.data, args.source, progress=sys.stderr.isatty(), **options)
    if args.json:
        print(report.to_json())
    else:
        console().print(report.render())
    return 0 if report.ok else 1
