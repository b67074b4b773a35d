"""`litheseg train`: train a network that runs at several widths."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from litheseg.cli.printing import print_next, print_table
from litheseg.errors import LithesegError, TrainingError
from litheseg.models.bundle import load_bundle
from litheseg.report.card import width_rows, width_table
from litheseg.training.recipe import Recipe, load_recipe
from litheseg.training.recipe_help import recipe_help

__all__ = ["add", "run"]

_EPILOG = """examples:
  litheseg train --recipe slimseg --data.root data/camvid --data.size "[360,480]" --output runs/camvid
  litheseg train --recipe slimseg --data.source streets --trainer.epochs 20     (procedural scenes, no files)
  litheseg train --recipe mine.yaml --optimizer.lr=5e-4 --widths "[1,.5]"
  litheseg train ... --resume                       go on after Ctrl-C, a crash or a reboot

A recipe is a YAML file with the fields below; each can be changed by an option (--a.b=value or --a.b value).
`litheseg recipes NAME` prints one. In brackets: the value where a recipe says nothing.

recipe fields:
"""


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--recipe", default="slimseg", help="name (see `litheseg recipes`) or .yaml file [slimseg]")
    parser.add_argument("--output", metavar="DIR", help="the run's folder [runs/RECIPE]")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint")
    parser.epilog = _EPILOG + recipe_help(Recipe())


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    from litheseg.report.run_report import report_run  # Lightning takes its time, which --help need not wait for
    from litheseg.training.ranks import is_first_process
    from litheseg.training.run import train

    recipe = load_recipe(args.recipe, args.overrides)
    result = train(recipe, args.output or Path("runs") / recipe.name, resume=args.resume)
    if not is_first_process():
        return
    try:
        report = report_run(result.folder, command=args.line)
    except LithesegError as error:
        raise TrainingError(
            f"{error}. The model is whole, {result.bundle}; the same command with --resume writes the report"
        ) from error
    print_table(width_table(width_rows(load_bundle(result.bundle).header)))
    print_next(result.bundle, report, tuple(result.scores))
