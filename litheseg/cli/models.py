"""List the architectures, or show the arguments of one.

Examples:
  litheseg models
  litheseg models ddrnet
"""

from __future__ import annotations

import inspect

from litheseg.cli.printing import print_json
from litheseg.errors import ModelError, did_you_mean
from litheseg.models import MODELS

__all__ = ["models"]


def models(name: str | None = None, /, *, json: bool = False) -> None:
    """Print a line for each architecture, or the signature and documentation of one.

    Args:
        name: the architecture; by default all are listed.
        json: print JSON.
    """
    if name is None:
        summaries = {name: (inspect.getdoc(build) or "").partition("\n")[0] for name, build in MODELS.items()}
        lines = "\n".join(f"{name:<16}{summary}" for name, summary in summaries.items())
        return print_json(summaries) if json else print(lines)
    if name not in MODELS:
        raise ModelError(f"unknown model '{name}'.{did_you_mean(name, MODELS)}")
    text = f"{name}{inspect.signature(MODELS[name])}\n\n{inspect.getdoc(MODELS[name])}"
    return print_json({"name": name, "help": text}) if json else print(text)
