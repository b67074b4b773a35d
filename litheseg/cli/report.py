"""`litheseg report`: compare models on one page."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from litheseg.cli.options import data_options
from litheseg.report.run_report import write_report

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="model files, best of the same classes")
    data_options(parser)
    parser.add_argument("--split", default="val", help="which images [val]")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page [report.html]")
    parser.add_argument("--no-latency", dest="latency", action="store_false", help="do not measure milliseconds")
    parser.epilog = """example:
  litheseg report runs/a/model.safetensors runs/b/model.safetensors --data data/camvid --output compare.html
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    names = ("output", "data", "source", "split", "latency")
    print(write_report(args.bundles, **{name: getattr(args, name) for name in names}, command=args.line))
