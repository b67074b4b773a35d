"""`litheseg convert`: turn a dense or gradual model into a grouped one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from litheseg.cli.options import data_options, json_option
from litheseg.cli.printing import print_json, print_table
from litheseg.errors import LithesegError
from litheseg.models.bundle import load_bundle
from litheseg.nn.efficient import Efficient
from litheseg.report.terminal import kept_table, scores_table

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", help="a gradual run's folder, or a dense model file to cut")
    parser.add_argument("--output", required=True, metavar="FILE", help="the grouped model file")
    parser.add_argument("--groups", type=int, help="of the cut: 2 or more, 0 for depthwise")
    parser.add_argument(
        "--where", default="all", help='which layers are cut: a role, a kernel, a pattern, as in "encoder,1x1" [all]'
    )
    parser.add_argument(
        "--assignment",
        choices=["contiguous", "magnitude"],
        default="magnitude",
        help="which channels share a group: as they come, or so that the largest weights stay [magnitude]",
    )
    data_options(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    json_option(parser)
    parser.epilog = """examples:
  litheseg convert runs/dg4 --output dg4.safetensors            a gradual run that was stopped after alpha reached 0
  litheseg convert dense.safetensors --groups 4 --where encoder,1x1 --data data/camvid --output cut.safetensors

A finished gradual run needs no conversion: its model.safetensors is grouped. Cutting a dense model costs accuracy,
which the table shows; `litheseg train --recipe gradual-grouping` avoids most of it.
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    from litheseg.training.convert import convert_run, cut_bundle  # Lightning takes its time

    kept: dict[str, float] = {}
    if Path(args.model).is_dir():
        if args.groups is not None:
            raise LithesegError(f"{args.model} is a run, which says itself what it ends as; leave out --groups")
        scores = convert_run(args.model, args.output, force=args.force)
    else:
        if args.groups is None:
            raise LithesegError("say what the dense model is to become: --groups 4 --where encoder,1x1, say")
        efficient = Efficient(groups=args.groups, shuffle=False, where=args.where)
        options = {"assignment": args.assignment, "data": args.data, "source": args.source, "force": args.force}
        cut = cut_bundle(load_bundle(args.model), args.output, efficient, **options)
        scores, kept = cut.scores, cut.kept
    if args.json:
        facts = {"bundle": args.output, "kept": kept}
        return print_json({**facts, "scores": {f"{width:g}": score.to_dict() for width, score in scores.items()}})
    if kept:
        print_table(kept_table(kept), "squared weights that the cut left")
    print_table(scores_table(scores), args.output)
