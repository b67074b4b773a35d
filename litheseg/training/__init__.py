"""Training: one task whose widths, teacher and loss terms come from a recipe.

Usage:
    >>> train(load_recipe("slimseg", ["--data.root=camvid"]), "runs/slimseg")
"""

from __future__ import annotations

from litheseg.training.config import Recipe
from litheseg.training.recipe import load_recipe, recipe_names
from litheseg.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "recipe_names", "train"]
