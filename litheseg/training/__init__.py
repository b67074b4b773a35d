"""Training: one task whose widths, teacher and loss terms come from a recipe.

The names below are imported when first used: reading a recipe needs no Lightning.

Usage:
    >>> train(load_recipe("slimseg", ["--data.root=camvid"]), "runs/slimseg")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litheseg.training.config import Recipe
    from litheseg.training.recipe import load_recipe, recipe_names
    from litheseg.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "recipe_names", "train"]

_HOMES = {
    "Recipe": "config",
    "TrainResult": "run",
    "load_recipe": "recipe",
    "recipe_names": "recipe",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    """Import a public name at first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'litheseg.training' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"litheseg.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
