"""`litheseg fit`: the most accurate deployable model within a budget, found by measuring."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from litheseg.budget.fit import FIT_FILE, fit
from litheseg.bundle.exported import PRECISIONS, RUNTIMES
from litheseg.cli.options import (
    bundle_argument,
    data_options,
    fps_option,
    json_option,
    parse_counts,
    parse_size,
    parse_sizes,
    widths_option,
)
from litheseg.cli.printing import print_json, print_table, say

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    _budget_options(parser)
    _choice_options(parser)
    data_options(parser)
    parser.add_argument("--split", default="val", help="which images measure accuracy [val]")
    parser.add_argument("--image", type=parse_size, metavar="HxW", help="of the camera's images [those of the data]")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="timings of another machine: `litheseg measure`")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="which grouped layers stay dense [measured]")
    parser.add_argument("--fresh", action="store_true", help="forget the timings of earlier fits")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="what is kept between fits [~/.cache/litheseg/budget]"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="export, fit.json, frontier.png")
    parser.add_argument("--force", action="store_true", help="replace a fit that is there")
    json_option(parser)
    parser.epilog = """Times are end to end, from an image of the camera to its mask of the same size, on this machine;
keep it quiet meanwhile. What is chosen is timed again, beside its rivals, before it is promised. One image follows the
other at once; where they come from a camera, cores rest in between and take longer: say at which rate, with --fps.

examples:
  litheseg fit runs/camvid/model.safetensors --budget 20ms --output deployed
  litheseg fit model.safetensors --budget 15fps --percentile 99 --threads 1 --runtime openvino --output deployed
  litheseg fit model.safetensors --budget 30ms --fps 15 --output deployed               (a camera of 15 images a second)
  litheseg fit model.safetensors --budget 10ms --sizes 180x240,136x184 --model-size 2MB --min-miou 0.5 --output out
  litheseg fit model.safetensors --budget 20ms --measured measurements.json --reserve 4ms --output for-the-box
"""


def _budget_options(parser: ArgumentParser) -> None:
    parser.add_argument("--budget", required=True, metavar="TIME", help="20ms or 15fps")
    parser.add_argument("--percentile", type=float, default=95.0, metavar="P", help="that must be within it [95]")
    parser.add_argument("--reserve", metavar="TIME", help="of it, for what is not timed [0ms]")
    fps_option(parser)
    parser.add_argument("--memory", metavar="SIZE", help="activations and weights, e.g. 50MB")
    parser.add_argument("--model-size", metavar="SIZE", help="of the weights, e.g. 2MB")
    parser.add_argument("--macs", metavar="N", help="multiply-accumulates, e.g. 1G")
    parser.add_argument("--min-miou", type=float, metavar="X", help="refuse less, e.g. 0.6")


def _choice_options(parser: ArgumentParser) -> None:
    widths_option(parser, "to choose among [those of the model, and between them where that may pay]")
    parser.add_argument(
        "--sizes", type=parse_sizes, metavar="HxW,HxW", help="the network's input [training size, 3/4 and 1/2 of it]"
    )
    parser.add_argument("--runtime", type=_names, metavar="R,R", help=f"{', '.join(RUNTIMES)} [installed]")
    parser.add_argument(
        "--precision",
        type=_names,
        metavar="P,P",
        help=f"{', '.join(PRECISIONS)} [fp32, int8 where it can]",
    )
    parser.add_argument(
        "--threads", type=parse_counts, metavar="N,N", help="CPU threads [all cores, half of them, one]"
    )


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    names = (
        *("budget", "output", "percentile", "reserve", "fps", "memory", "model_size", "macs", "min_miou", "widths"),
        *("sizes", "runtime", "precision", "threads", "data", "source", "split", "image", "measured", "plan", "fresh"),
        *("cache", "force"),
    )
    options = {name: getattr(args, name) for name in names}
    result = fit(args.bundle, **options, command=args.line, progress=say)
    if args.json:
        return print_json(json.loads((args.output / FIT_FILE).read_text()))
    print_table(result.table(), f"the frontier ({result.scored})")
    for note in result.found.notes:
        print(f"note: {note}")
    print(f"\nchosen  {result.sentence()}")
    print(f"deploy  {result.deployed}\nplot    {args.output / 'frontier.png'}\nall     {args.output / FIT_FILE}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
