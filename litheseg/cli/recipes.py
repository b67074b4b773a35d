"""`litheseg recipes`: list the recipes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from litheseg.training.recipe import recipe_names, recipe_yaml

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", help="print this one")
    parser.epilog = "example:\n  litheseg recipes slimseg > mine.yaml\n"


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    if args.name is not None:
        print(recipe_yaml(args.name), end="")
        return
    for name in recipe_names():
        comment = " ".join(line[2:] for line in recipe_yaml(name).splitlines() if line.startswith("# "))
        print(f"{name:<18}{comment.partition('. ')[0].rstrip('.')}.")
