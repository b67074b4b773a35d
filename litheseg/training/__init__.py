"""Training: one task whose widths, teachers and objectives come from a recipe.

The names below are imported when first used: reading a recipe needs no Lightning.

Usage:
    >>> train(load_recipe("slimseg", ["--data.root=camvid"]), "runs/slimseg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from litheseg.lazy import lazy_names

if TYPE_CHECKING:
    from litheseg.training.recipe import Recipe, load_recipe, recipe_names
    from litheseg.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "recipe_names", "train"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"recipe": ("Recipe", "load_recipe", "recipe_names"), "run": ("TrainResult", "train")},
)
