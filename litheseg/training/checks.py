"""Which choices of a recipe do not fit together, refused before anything takes time.

Types and ranges are those of the fields; what only data or a model can tell (class counts, image sizes) is checked
there.

Usage:
    >>> check_together(recipe)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from litheseg.errors import RecipeError, did_you_mean
from litheseg.training.streams import COMPLEMENTARY, DROPPING, LABELLED
from litheseg.training.teacher import TeacherConfig
from litheseg.training.teachers import FrozenConfig
from litheseg.values import check_width

if TYPE_CHECKING:
    from litheseg.training.recipe import Objective, Recipe

__all__ = ["check_together"]


def check_together(recipe: Recipe) -> None:
    """Refuse choices that do not fit together.

    Raises:
        RecipeError: the message names them.
        WidthError: a width outside (0, 1].
    """
    _check_widths(recipe)
    for name, objective in recipe.objectives.items():
        _check_objective(name, objective, recipe)
    for name, teacher in recipe.teachers.items():
        _check_teacher(name, teacher, recipe)
    _check_every_width_learns(recipe)
    _check_unlabelled(recipe)
    _check_grouping(recipe)
    if recipe.trainer.seed >= 2**32:
        raise RecipeError(f"--trainer.seed {recipe.trainer.seed} is out of range; give a number below {2**32}")


def _check_widths(recipe: Recipe) -> None:
    if not recipe.widths:
        raise RecipeError("widths is empty; [1] is the full network")
    low, high = (end(check_width(width) for width in recipe.widths) for end in (min, max))
    for width in recipe.calibrate:
        if not low <= check_width(width) <= high:
            raise RecipeError(
                f"calibrate has {width:g}, but only widths within those trained, {low:g} to {high:g}, can be "
                "calibrated; add a narrower or wider one to widths"
            )


def _check_objective(name: str, objective: Objective, recipe: Recipe) -> None:
    loss, teacher = objective.loss.name, objective.teacher
    if teacher is not None and teacher not in recipe.teachers:
        raise RecipeError(
            f"objectives.{name} learns from '{teacher}', which is none of the teachers."
            f"{did_you_mean(teacher, recipe.teachers) if recipe.teachers else ''} "
            f"Add --teachers.{teacher}.kind next-wider, say, or leave the objective out by --objectives.{name}=null"
        )
    if objective.loss.needs_teacher and teacher is None:
        known = ", ".join(recipe.teachers) or "there is none yet, add --teachers.wider.kind next-wider, say"
        raise RecipeError(f"objectives.{name}: {loss} needs a teacher; set --objectives.{name}.teacher ({known})")
    if not objective.loss.needs_teacher and (teacher is not None or objective.streams != (LABELLED,)):
        raise RecipeError(
            f"objectives.{name}: {loss} learns from the labels of labelled images; for a teacher's labels, on any "
            "images, there are pseudo-labels and pseudo-band"
        )
    if teacher is not None:
        _check_what_is_taught(name, objective, teacher, recipe)
    if COMPLEMENTARY in objective.streams and recipe.data.views.count != 2:
        raise RecipeError(
            f"objectives.{name} is on complementary images, halves of the features of two views, but data.views.count "
            f"is {recipe.data.views.count}; set --data.views.count 2, or --objectives.{name}.on unlabelled"
        )


def _check_what_is_taught(name: str, objective: Objective, teacher: str, recipe: Recipe) -> None:
    """Refuse images on which this kind of teacher cannot teach."""
    config = recipe.teachers[teacher]
    if config.within and DROPPING.intersection(objective.streams):
        raise RecipeError(
            f"objectives.{name}: on {objective.on} images a teacher must see whole features, which {teacher} "
            f"({config.kind}) does not; choose another teacher"
        )
    labelled = LABELLED in objective.streams and (len(objective.streams) == 1 or recipe.data.unlabelled is None)
    if config.needs_labels and not labelled:
        raise RecipeError(
            f"objectives.{name}: {teacher} ({config.kind}) sees the labels beside an image, and unlabelled images have "
            f"none; set --objectives.{name}.on labelled"
        )


def _check_teacher(name: str, teacher: TeacherConfig, recipe: Recipe) -> None:
    path = f"teachers.{name}"
    if not recipe.asked(name):
        raise RecipeError(
            f"{path} teaches nothing: no objective names it. Add one, such as --objectives.kl '{{loss: kl, teacher: "
            f"{name}}}', or leave it out by --{path}=null"
        )
    if isinstance(teacher, FrozenConfig):
        if teacher.bundle is None and teacher.model is None:
            raise RecipeError(
                f"{path} is frozen but has no {path}.bundle; give the path of a model file, or as {path}.model the "
                "network that is to be trained first"
            )
    elif getattr(teacher, "width", None) not in (None, *recipe.widths):
        known = ", ".join(f"{width:g}" for width in recipe.widths)
        raise RecipeError(f"{path}.width {teacher.width:g} is not among the widths that are trained: {known}")  # type: ignore[attr-defined]


def _check_every_width_learns(recipe: Recipe) -> None:
    within = {name for name, teacher in recipe.teachers.items() if teacher.within}
    if all(objective.teacher in within for objective in recipe.minimised.values()):
        raise RecipeError(
            "objectives holds nothing that the widest width could learn from; set --objectives.labels.loss "
            "cross-entropy"
        )
    if len(recipe.widths) > 1 and all(objective.widths == "widest" for objective in recipe.minimised.values()):
        raise RecipeError("objectives are all of the widest width; let one have --objectives.NAME.widths=all")


def _check_unlabelled(recipe: Recipe) -> None:
    """Unlabelled images and something to learn from them go together."""
    given = recipe.data.unlabelled is not None
    for name, objective in recipe.minimised.items():
        if not given and LABELLED not in objective.streams:
            raise RecipeError(
                f"objectives.{name} learns from unlabelled images, and there are none; set --data.unlabelled to a "
                "folder of them, or to rest with --data.labelled 1/8, say"
            )
    if given and not any(objective.streams != (LABELLED,) for objective in recipe.minimised.values()):
        raise RecipeError(
            "data.unlabelled gives images that no objective learns from; add one, such as {loss: pseudo-labels, "
            "teacher: ...}, use recipe mgd or unimatch, or leave --data.unlabelled out"
        )


def _check_grouping(recipe: Recipe) -> None:
    config, trainer = recipe.grouping, recipe.trainer
    kinds = {teacher.kind for teacher in recipe.teachers.values()}
    if config.shape == "none":
        return
    if config.end >= 1:
        raise RecipeError(
            f"the grouping schedule is longer than the run: {len(config.stages) + 1} stage(s) of {config.length:g} "
            f"after {config.start:g} of all steps, {config.hold:g} apart, end at {config.end:g}; leave some steps at "
            "alpha 0: shorten grouping.start, length or hold, or leave out stages, so that the sum is below 1"
        )
    if trainer.keep == "best" or trainer.early_stop:
        raise RecipeError(
            "trainer.keep best and trainer.early_stop do not go with gradual grouping: an epoch before alpha is 0 "
            "scores a network that is not the one to deploy; set --trainer.keep last and --trainer.early_stop 0"
        )
    if config.assignment == "magnitude" and (trainer.ema or "ema" in kinds):
        raise RecipeError(
            "grouping.assignment magnitude relabels channels, which an average of earlier weights cannot follow; set "
            "--grouping.assignment contiguous, or --trainer.ema 0 and another teacher"
        )
    if "peer" in kinds:
        raise RecipeError(
            "two peers cannot turn into grouped networks together; train one of them afterwards: set "
            "--grouping.shape none, or another kind of teacher"
        )
