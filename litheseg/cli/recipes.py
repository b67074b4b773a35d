"""List the recipes, or print one.

Example:
  litheseg recipes slimseg > mine.yaml
"""

from __future__ import annotations

from litheseg.training.recipe import recipe_names, recipe_yaml

__all__ = ["recipes"]


def recipes(name: str | None = None, /) -> None:
    """Print a line for each recipe, or the YAML of one.

    Args:
        name: the recipe; by default all are listed.
    """
    if name is not None:
        print(recipe_yaml(name), end="")
        return
    for name in recipe_names():
        comment = " ".join(line[2:] for line in recipe_yaml(name).splitlines() if line.startswith("# "))
        print(f"{name:<18}{comment.partition('. ')[0].rstrip('.')}.")
