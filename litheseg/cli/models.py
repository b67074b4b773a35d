"""`litheseg models`: list the architectures."""

from __future__ import annotations

import inspect
from argparse import ArgumentParser, Namespace

from litheseg.cli.options import json_option
from litheseg.cli.printing import print_json
from litheseg.errors import ModelError, did_you_mean
from litheseg.models import MODELS

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", help="print the arguments of this one")
    json_option(parser)


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    if args.name is None:
        summaries = {name: (inspect.getdoc(build) or "").splitlines()[0] for name, build in MODELS.items()}
        if args.json:
            return print_json(summaries)
        for name, summary in summaries.items():
            print(f"{name:<16}{summary}")
        return None
    if args.name not in MODELS:
        raise ModelError(f"unknown model '{args.name}'.{did_you_mean(args.name, MODELS)}")
    text = f"{args.name}{inspect.signature(MODELS[args.name])}\n\n{inspect.getdoc(MODELS[args.name])}"
    return print_json({"name": args.name, "help": text}) if args.json else print(text)
