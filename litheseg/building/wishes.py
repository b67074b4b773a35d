"""What somebody asks of a build.

Usage:
    >>> Wishes("data/mine", budget=20.0, overrides=one_word_each(["--trainer.epochs", "40"])).fixed
    frozenset({'trainer.epochs'})
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from litheseg.training.recipe import Recipe, load_recipe

__all__ = ["WIDTH_SETS", "Wishes", "one_word_each"]

WIDTH_SETS = ((1.0, 0.75, 0.5, 0.25), (1.0, 0.5), (1.0,))
"""Sets of widths that a plan chooses among, the largest first."""


@dataclass(frozen=True)
class Wishes:
    """What somebody asks for.

    Attributes:
        data: folder of labelled images.
        budget: milliseconds of one image, end to end; None for the most accurate network.
        minutes: that everything may take together.
        unlabelled: folder of images without labels; None for none.
        classes: file that says what mask values mean; None for the one in `data`.
        overrides: fields of the recipe that are not left to the plan, as options ``--NAME=VALUE``.
        target: file of timings of another machine; None for this one.
        min_class_iou: least IoU of the worst class, in [0, 1]; None for any.
        folds: of a cross-validation; 0 or 1 for none, None for the plan's choice.
    """

    data: str
    budget: float | None = None
    minutes: float = 60.0
    unlabelled: str | None = None
    classes: str | None = None
    overrides: tuple[str, ...] = ()
    target: str | None = None
    min_class_iou: float | None = None
    folds: int | None = None

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the fields that are overruled."""
        return frozenset(option.removeprefix("--").partition("=")[0] for option in self.overrides)

    def overrules(self, *parts: str) -> bool:
        """Whether a field of one of these parts of the recipe, such as "model.", is overruled."""
        return any(f"{name}.".startswith(parts) for name in self.fixed)

    @cached_property
    def asked(self) -> Recipe:
        """The recipe with these fields.

        Raises:
            RecipeError: a field that does not exist, or a value out of range.
        """
        return load_recipe("slimseg", list(self.overrides))

    @property
    def width_sets(self) -> tuple[tuple[float, ...], ...]:
        """The sets of widths to choose among, the largest first."""
        return (self.asked.widths,) if "widths" in self.fixed else WIDTH_SETS


def one_word_each(options: Sequence[str]) -> tuple[str, ...]:
    """Options as ``--NAME=VALUE`` that were written so or as two words."""
    words, result = iter(options), []
    for word in words:
        result.append(word if "=" in word else f"{word}={next(words, '')}")
    return tuple(result)
