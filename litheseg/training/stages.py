"""Runs that a run needs first: teachers that are not there yet, and the same network from the labels alone.

Each is an ordinary run with a folder and a recipe of its own, so it resumes like any other; one that is finished is
not repeated. Teachers are kept beside the runs under the hash of their recipe, so that the next student finds them.
It knows which values of a recipe such a run takes over, and nothing of how a run goes.

Usage:
    >>> recipe = replace(recipe, mgd=with_bundles(recipe.mgd, bundles))
    >>> alone = labels_alone(recipe, steps=43)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from litheseg.training.config import MgdConfig, Recipe, TeacherConfig, TutorConfig
from litheseg.training.recipe import load_recipe, recipe_to_dict

__all__ = ["labels_alone", "missing_teachers", "teacher_folder", "teacher_recipe", "with_bundles"]

_FROM_LABELS = ("main", "ohem_threshold", "class_weights", "class_weight_offset", "dice", "lovasz", "aux")
_WITHOUT_EFFECT = ("val_every", "threads", "loggers", "accelerator", "devices", "nodes", "strategy", "compile")


def missing_teachers(recipe: Recipe) -> dict[str, TutorConfig]:
    """MGD's teachers that teach and have no bundle, by name."""
    return {name: tutor for name, tutor in recipe.mgd.tutors.items() if tutor.bundle is None}


def with_bundles(recipe: Recipe, bundles: dict[str, Path]) -> Recipe:
    """The recipe with the files of its teachers."""
    tutors = {name: replace(getattr(recipe.mgd, name), bundle=str(path)) for name, path in bundles.items()}
    return replace(recipe, mgd=replace(recipe.mgd, **tutors))


def teacher_recipe(recipe: Recipe, tutor: TutorConfig) -> Recipe:
    """How a teacher is trained: as `mgd.train_with` says, with the run's images, labels, optimizer and trainer."""
    method = load_recipe(recipe.mgd.train_with)
    labels = {name: getattr(recipe.loss, name) for name in _FROM_LABELS}
    trainer = replace(recipe.trainer, epochs=recipe.mgd.teacher_epochs or recipe.trainer.epochs, baseline=False)
    return replace(
        method,
        model=tutor.model,
        data=replace(recipe.data, views=method.data.views),
        loss=replace(method.loss, **labels),
        optimizer=recipe.optimizer,
        trainer=trainer,
    )


def teacher_folder(recipe: Recipe, teacher: Recipe, run: Path) -> Path:
    """Where a teacher of the run in folder `run` is kept."""
    values = recipe_to_dict(teacher)
    for name in _WITHOUT_EFFECT:
        del values["trainer"][name]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:10]
    network = str(teacher.model.args.get("encoder", teacher.model.name)).replace("*", "-star")
    return Path(recipe.mgd.cache or run.parent / "teachers") / f"{teacher.name}-{network}-{digest}"


def labels_alone(recipe: Recipe, steps: int) -> Recipe:
    """The same network, widths and number of steps, from the labelled images only.

    Teachers within the network (a wider width) stay: they need no further images.
    """
    within = recipe.teacher.kind in ("next-wider", "widest")
    loss = replace(recipe.loss, pseudo=0.0, perturbed=0.0)
    if not within:
        loss = replace(loss, kl=0.0, channel_wise=0.0, pairwise=0.0, intra_class=0.0)
    elif not (loss.kl or loss.channel_wise or loss.pairwise or loss.intra_class):
        within = False
    return replace(
        recipe,
        name=f"{recipe.name}-labelled-only",
        data=replace(recipe.data, unlabelled=None, steps=steps),
        teacher=recipe.teacher if within else TeacherConfig(),
        mgd=MgdConfig(),
        loss=loss,
        trainer=replace(recipe.trainer, baseline=False),
    )
