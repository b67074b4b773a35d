"""`litheseg profile`: count and time a model at every width."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from litheseg.cli.options import bundle_argument, device_option, json_option, parse_size, widths_option
from litheseg.cli.printing import console, print_json, print_table
from litheseg.cost import compare_dense, layer_pairs, layer_table, profile, render, render_pairs
from litheseg.deploy.bundle import load_bundle
from litheseg.report.terminal import layer_pairs_table, layers_table

__all__ = ["SUMMARY", "add", "run"]

SUMMARY = "count and time a model at every width"


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    widths_option(parser, "those to measure; any in the trained range [all of the bundle]")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="of the input [the size it was trained at]")
    parser.add_argument("--layers", action="store_true", help="also the layers of the first width")
    parser.add_argument("--dense", action="store_true", help="beside the same network, its grouped convolutions dense")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads [all]")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed passes per width [20]")
    device_option(parser)
    json_option(parser)
    parser.epilog = """examples:
  litheseg profile runs/camvid/model.safetensors --size 512x1024 --threads 1
  litheseg profile model.safetensors --widths 1,.5 --layers
  litheseg profile grouped.safetensors --dense --layers              (what do its grouped convolutions save?)
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    bundle = load_bundle(args.bundle)
    size = args.size or bundle.header.size
    title = f"{args.bundle} at {size[0]}x{size[1]}, batch 1, {args.device}"
    measuring = {name: getattr(args, name) for name in ("device", "threads", "repeats")}
    if args.dense:
        pairs = compare_dense(bundle, args.widths, size, **measuring)
        beside = layer_pairs(bundle.plain(1.0), size) if args.layers else ()
        tables = render_pairs(pairs, title), layer_pairs_table(beside)
        rows, layers = [pair.to_dict() for pair in pairs], [pair.to_dict() for pair in beside]
    else:
        measured = profile(bundle, args.widths, size, **measuring)
        alone = layer_table(bundle.plain(1.0), size) if args.layers else ()
        tables = render(measured, title), layers_table(alone)
        rows, layers = [asdict(row) for row in measured], [asdict(layer) for layer in alone]
    if args.json:
        content = {"bundle": args.bundle, "size": size, "widths": rows}
        return print_json({**content, "layers": layers} if args.layers else content)
    console().print(tables[0])
    if args.layers:
        print_table(tables[1], "layers at width 1")
