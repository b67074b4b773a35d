"""`litheseg demo`: train, measure and report a small model in a few minutes, offline."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from litheseg.cli.printing import print_next, print_table
from litheseg.demo import run_demo
from litheseg.models.bundle import load_bundle
from litheseg.report.card import width_table

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--output", default="runs/demo", metavar="DIR", help="the run's folder [runs/demo]")
    parser.add_argument("--force", action="store_true", help="begin anew instead of reusing a finished run")
    parser.epilog = "It takes every recipe field too, such as --trainer.epochs 5 (see `litheseg recipes demo`).\n"


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    result = run_demo(args.output, args.overrides, force=args.force)
    if result.reused:
        print(f"{args.output} holds a finished demo: nothing was trained (--force begins anew)")
    print_table(width_table(result.rows))
    print_next(result.bundle, result.report, load_bundle(result.bundle).header.available_widths)
