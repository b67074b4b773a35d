"""`litheseg data`: fetch, make, describe and split data sets."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from litheseg.cli.options import data_argument, json_option, parse_size
from litheseg.cli.printing import print_json, show
from litheseg.data import choose_labelled, describe, fetch, make_streets
from litheseg.data.download import CAMVID_URL

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    fetch = actions.add_parser("fetch", help="download a public data set", description="Download a public data set.")
    fetch.add_argument("name", help="camvid")
    fetch.add_argument("folder", metavar="DIR")
    fetch.add_argument("--url", help="another archive (zip or tar)")
    fetch.add_argument("--sha256", help="the archive's checksum")
    make = actions.add_parser("make", help="write procedural scenes as files", description="Write scenes as files.")
    make.add_argument("name", choices=("streets",), help="streets")
    make.add_argument("folder", metavar="DIR")
    make.add_argument("--train", type=int, default=300, metavar="N", help="training scenes [300]")
    make.add_argument("--val", type=int, default=60, metavar="N", help="validation scenes [60]")
    make.add_argument("--size", type=parse_size, default=(180, 240), metavar="HxW", help="of the images [180x240]")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="another one gives other scenes [0]")
    info = actions.add_parser("info", help="splits, classes and licence", description="What a data set holds.")
    data_argument(info)
    json_option(info)
    split = actions.add_parser("split", help="choose which images count as labelled", description="Write a list file.")
    data_argument(split)
    split.add_argument("--ratio", metavar="R", help="labelled share, such as 1/8")
    split.add_argument("--count", type=int, metavar="N", help="number of labelled images")
    split.add_argument("--seed", type=int, default=0, metavar="N", help="another one chooses others [0]")
    split.add_argument("--output", required=True, metavar="FILE", help="the list file, one id a line")
    parser.epilog = """examples:
  litheseg data fetch camvid data/camvid
  litheseg data make streets data/streets --train 300 --val 60
  litheseg data info data/camvid
  litheseg data split data/camvid --ratio 1/8 --output few.txt      (then: train --data.labelled few.txt)
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    if args.action == "fetch":
        show(str(fetch(args.name, args.folder, url=args.url or CAMVID_URL, sha256=args.sha256)))
    elif args.action == "make":
        options = {"train": args.train, "val": args.val, "size": args.size, "seed": args.seed}
        folder = make_streets(args.folder, **options, progress=True)
        show(f"{folder}: {args.train} training and {args.val} validation scenes")
    elif args.action == "info":
        _data_info(describe(args.data, args.source), args.json)
    else:
        options = {"output": args.output, "ratio": args.ratio, "count": args.count, "seed": args.seed}
        chosen = choose_labelled(args.data, args.source, **options)
        labelled, total = len(chosen.labelled), len(chosen.labelled) + len(chosen.unlabelled)
        show(f"{args.output}: {labelled} of {total} training images; use it as --data.labelled")


def _data_info(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return print_json(facts)
    counts = ", ".join(f"{split} {count}" for split, count in facts["splits"].items())
    for name, value in {**facts, "splits": counts, "classes": ", ".join(facts["classes"])}.items():
        show(f"{name + ':':<10}{value or '-'}")
