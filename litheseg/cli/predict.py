"""`litheseg predict`: label images."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from rich.console import Console
from rich.progress import Progress

from litheseg.cli.options import bundle_argument, device_option, json_option, parse_width
from litheseg.cli.printing import complain, print_json
from litheseg.runtime.files import predict

__all__ = ["SUMMARY", "add", "run"]

SUMMARY = "label images"


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images and folders of images")
    parser.add_argument("--output", required=True, metavar="DIR", help="where NAME.png and NAME_overlay.png go")
    parser.add_argument("--width", type=parse_width, metavar="W", help="one of the bundle's [the widest]")
    parser.add_argument("--kind", choices=("mask", "overlay", "both"), default="mask", help="what to write [mask]")
    parser.add_argument("--force", action="store_true", help="replace results that exist")
    device_option(parser)
    json_option(parser)
    parser.epilog = """examples:
  litheseg predict model.safetensors street.jpg --output out/ --kind both
  litheseg predict model.safetensors photos/ --output out/ --width 0.25
"""


def run(args: Namespace) -> int:
    """Do it and print what came of it."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("labelling", total=None)
        summary = predict(
            args.bundle,
            args.inputs,
            args.output,
            width=args.width,
            kind=args.kind,
            force=args.force,
            device=args.device,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )
    for _, reason in summary.failed:
        complain(reason, 1)
    if args.json:
        print_json(asdict(summary))
    else:
        kept = f", {summary.skipped} kept as they were (--force replaces them)" if summary.skipped else ""
        print(f"{summary.images} images: {summary.written} files written to {args.output}{kept}")
    return 1 if summary.failed else 0
