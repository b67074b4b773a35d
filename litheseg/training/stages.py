"""Runs that a run needs first: missing teachers, and the same network from the labels alone.

Each is an ordinary run with a folder and a recipe of its own, so it resumes like any other; one that is finished is
not repeated. Teachers are kept beside the runs under the hash of their recipe, so that the next student finds them.
This module derives the recipes; `litheseg.training.run` runs them.

Usage:
    >>> recipe = with_bundles(recipe, {"deep": "runs/teachers/deep/model.safetensors"})
    >>> alone = labels_alone(recipe, steps=43)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from litheseg.training.recipe import Objective, Recipe, load_recipe, recipe_to_dict
from litheseg.training.streams import LABELLED
from litheseg.training.teachers import FrozenConfig

__all__ = ["labels_alone", "missing_teachers", "teacher_folder", "teacher_recipe", "with_bundles"]

_WITHOUT_EFFECT = ("val_every", "threads", "loggers", "accelerator", "devices", "nodes", "compile")


def missing_teachers(recipe: Recipe) -> dict[str, FrozenConfig]:
    """The frozen teachers that have no bundle, by name."""
    frozen = {name: teacher for name, teacher in recipe.teachers.items() if isinstance(teacher, FrozenConfig)}
    return {name: teacher for name, teacher in frozen.items() if teacher.bundle is None}


def with_bundles(recipe: Recipe, bundles: Mapping[str, Path]) -> Recipe:
    """The recipe with the files of its teachers."""
    found = {name: replace(teacher, bundle=str(bundles[name])) for name, teacher in missing_teachers(recipe).items()}
    return replace(recipe, teachers={**recipe.teachers, **found})


def teacher_recipe(recipe: Recipe, teacher: FrozenConfig) -> Recipe:
    """How a teacher is trained: as its own recipe says, with the run's images and trainer, and its optimizer if the
    teacher brings none.

    Objectives on labels that both recipes name are the run's.
    """
    assert teacher.model is not None, "the recipe was checked"
    method = load_recipe(teacher.recipe)
    ours = {name: item for name, item in recipe.objectives.items() if item.teacher is None}
    return replace(
        method,
        model=teacher.model,
        data=replace(recipe.data, views=method.data.views),
        objectives={name: ours.get(name, item) for name, item in method.objectives.items()},
        optimizer=teacher.optimizer or recipe.optimizer,
        trainer=replace(recipe.trainer, epochs=teacher.epochs or recipe.trainer.epochs, baseline=False),
    )


def teacher_folder(teacher: Recipe, run: Path) -> Path:
    """Where a teacher of the run in folder `run` is kept."""
    values = recipe_to_dict(teacher)
    for name in _WITHOUT_EFFECT:
        del values["trainer"][name]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:10]
    network = str(teacher.model.args.get("encoder", teacher.model.name)).replace("*", "-star")
    return run.parent / "teachers" / f"{teacher.name}-{network}-{digest}"


def labels_alone(recipe: Recipe, steps: int) -> Recipe:
    """The same network, widths and number of steps, from the labelled images only.

    Teachers within the network (a wider width) stay: they need no further images.
    """

    def stays(objective: Objective) -> bool:
        within = objective.teacher is None or recipe.teachers[objective.teacher].within
        return within and LABELLED in objective.streams

    objectives = {name: item for name, item in recipe.minimised.items() if stays(item)}
    taught = {item.teacher for item in objectives.values()}
    return replace(
        recipe,
        name=f"{recipe.name}-labelled-only",
        data=replace(recipe.data, unlabelled=None, steps=steps),
        teachers={name: teacher for name, teacher in recipe.teachers.items() if name in taught},
        objectives=objectives,
        trainer=replace(recipe.trainer, baseline=False),
    )
