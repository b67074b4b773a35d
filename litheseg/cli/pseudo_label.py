"""`litheseg pseudo-label`: label images, and choose which to correct by hand."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from litheseg.cli.options import device_option, json_option, max_pixels_option, parse_width
from litheseg.cli.printing import complain, print_json, show
from litheseg.cli.stopping import sigterm_stops, stop_status, stopped_by
from litheseg.labelling.pseudo import EXPORTS, PseudoLabels, pseudo_label

__all__ = ["add", "run"]


_SHOWN = 20  # failures


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="MODEL", help="a model file, such as runs/NAME/model.safetensors")
    parser.add_argument("folder", metavar="DIR", help="the images, also in folders below it")
    parser.add_argument("--output", required=True, metavar="DIR", help="where masks, confidence and ranking go")
    parser.add_argument("--width", type=parse_width, metavar="W", help="one of the bundle's [the widest]")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="T", help="ignore less sure pixels, 0..1 [0]")
    parser.add_argument("--choose", type=int, default=20, metavar="N", help="images to correct [20]")
    parser.add_argument("--export", choices=EXPORTS, default="none", help="what the chosen ones are written for [none]")
    parser.add_argument("--force", action="store_true", help="label anew, and replace results that exist")
    max_pixels_option(parser)
    device_option(parser)
    json_option(parser)
    parser.epilog = """examples:
  litheseg pseudo-label model.safetensors photos/ --output labelled/ --choose 50 --export cvat
  litheseg pseudo-label model.safetensors photos/ --output labelled/ --threshold 0.9     (and nothing to correct)

The ranking is in labelled/ranking.csv, uncertain images that are unlike each other first. What exists is kept: a run
that was stopped goes on with the same command. The output is a data set too: --data.root labelled/.
"""


def run(args: Namespace) -> int:
    """Do it and print what came of it."""
    try:
        result = _label(args)
    except KeyboardInterrupt as stop:
        return complain(f"stopped by {stopped_by(stop)}; the same command goes on", stop_status(stop))
    for _, reason in result.failed[:_SHOWN]:
        complain(reason, 1)
    if len(result.failed) > _SHOWN:
        complain(f"{len(result.failed) - _SHOWN} more could not be labelled; --json lists all", 1)
    if args.json:
        print_json({**asdict(result), "ranking": str(result.ranking), "export": str(result.export or "") or None})
    else:
        _print(result, args)
    return 1 if result.failed else 0


def _label(args: Namespace) -> PseudoLabels:
    with (
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar,
        sigterm_stops(),
    ):
        task = bar.add_task("labelling", total=None)
        return pseudo_label(
            args.bundle,
            args.folder,
            args.output,
            width=args.width,
            threshold=args.threshold,
            choose=args.choose,
            export=args.export,
            force=args.force,
            device=args.device,
            max_pixels=args.max_pixels,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )


def _print(result: PseudoLabels, args: Namespace) -> None:
    kept = f", {result.skipped} kept as they were (--force replaces them)" if result.skipped else ""
    show(f"{result.images} images: {result.written} files written to {args.output}{kept}")
    show(f"ranking {result.ranking}: to correct first {', '.join(result.chosen[:5]) or 'none'}")
    if result.export:
        show(f"export  {result.export}")
        print("\ncorrect it, export it, and then:")
        classes = Path(args.output) / "classes.yaml"
        show(f"  litheseg import-labels EXPORT --images {args.folder} --classes {classes} --output corrected")
