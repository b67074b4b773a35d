"""`litheseg report`: compare models on one page."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from litheseg.cli.options import data_options
from litheseg.models.bundle import load_bundle
from litheseg.report.run_report import report_bundles

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
    names = _distinct_names(args.bundles)
    bundles = {name: load_bundle(path) for name, path in zip(names, args.bundles, strict=True)}
    page = report_bundles(
        bundles,
        args.output,
        data=args.data,
        source=args.source,
        split=args.split,
        latency=args.latency,
        command=args.line,
    )
    print(page)


def _distinct_names(paths: Sequence[str]) -> list[str]:
    """File names without ending; with their folder where they would be the same, as `model.safetensors` is."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [Path(path).resolve().parent.name for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
