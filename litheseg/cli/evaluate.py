"""`litheseg evaluate`: score a model on labelled images."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from litheseg.cli.options import (
    bundle_argument,
    data_options,
    device_option,
    json_option,
    parse_floats,
    parse_size,
    widths_option,
)
from litheseg.cli.printing import print_json, print_table
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.models.bundle import load_bundle
from litheseg.report.terminal import class_table, scores_table

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    data_options(parser)
    parser.add_argument("--split", default="val", help="which images [val]")
    widths_option(parser, "those to score; ones in between are calibrated on training images first [all of the bundle]")
    parser.add_argument("--save", metavar="FILE", help="write the bundle with the calibrated widths to this file")
    parser.add_argument("--mode", choices=("whole", "sliding"), default="whole", help="whole images or windows [whole]")
    parser.add_argument("--window", type=parse_size, metavar="HxW", help="of --mode sliding")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--scales", type=parse_floats, default=(1.0,), metavar="S,S", help="average over these scales [1]"
    )
    parser.add_argument("--band-radius", type=int, default=3, metavar="PX", help="of the boundary-band mIoU [3]")
    device_option(parser)
    json_option(parser)
    parser.epilog = """examples:
  litheseg evaluate runs/camvid/model.safetensors
  litheseg evaluate model.safetensors --data data/camvid --widths 1,.6,.25 --save model-6.safetensors
  litheseg evaluate model.safetensors --mode sliding --window 360x480 --flip --scales .75,1,1.25
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    bundle = load_bundle(args.bundle)
    views = {name: getattr(args, name) for name in ("mode", "window", "flip", "scales", "band_radius", "device")}
    options = {name: getattr(args, name) for name in ("source", "split", "widths", "save")}
    result = evaluate_bundle(bundle, args.data, **options, **views)
    if args.json:
        scores = {f"{width:g}": score.to_dict() for width, score in result.scores.items()}
        facts = {"bundle": args.bundle, "data": result.data, "split": result.split, "calibrated": result.calibrated}
        return print_json({**facts, "scores": scores})
    if result.calibrated:
        widths = ", ".join(f"{width:g}" for width in result.calibrated)
        kept = f"kept in {args.save}" if args.save else "not kept; --save FILE keeps it"
        print(f"width {widths}: batch-norm statistics measured on training images ({kept})")
    print_table(scores_table(result.scores), f"{args.bundle} on {result.data} {result.split}")
    print_table(class_table(result.scores, bundle.header.classes.names))
