"""From a recipe to the objects it names: data, elastic model, teachers, task.

It only builds: nothing is trained, and no file is written.

Usage:
    >>> data = build_data(recipe)
    >>> task = build_task(recipe, data)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pickle import UnpicklingError
from typing import get_args

import torch
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from litheseg.bundle.description import KEY
from litheseg.bundle.model_file import read_model_file
from litheseg.bundle.names import is_named
from litheseg.data import open_source, partition
from litheseg.data.loading.datamodule import SegmentationData
from litheseg.data.sources.base import Source
from litheseg.data.sources.redivided import redivided
from litheseg.data.sources.unlabelled import find_unlabelled
from litheseg.errors import DataError, LithesegError, ModelError, RecipeError
from litheseg.losses import class_weights
from litheseg.losses.loss import Weighting
from litheseg.models import SegmentationModel, build_model
from litheseg.models.bundle import Bundle, from_nothing, load_bundle
from litheseg.nn import slim
from litheseg.nn.efficient import choose_layers
from litheseg.nn.grouping import densify
from litheseg.training.config import DataConfig, GroupingConfig, ModelConfig
from litheseg.training.gradual import GradualGrouping
from litheseg.training.horizon import Deadline, Horizon
from litheseg.training.layout import lay_out
from litheseg.training.recipe import Objective, Recipe
from litheseg.training.start import start_from
from litheseg.training.task import CrossPseudoTask, SegmentationTask
from litheseg.training.teacher import Setting, Teacher
from litheseg.training.teacher_input import require_classes, require_images
from litheseg.training.teachers import FrozenConfig

__all__ = [
    "Task",
    "build_data",
    "build_elastic_model",
    "build_horizon",
    "build_network",
    "build_schedules",
    "build_task",
    "build_teachers",
    "check_teachers",
    "objectives_of",
]


Task = SegmentationTask | CrossPseudoTask


def build_data(recipe: Recipe) -> SegmentationData:
    """The recipe's images, not decoded yet.

    Raises:
        DataError: they cannot be found or do not fit.
    """
    config = recipe.data
    source = open_source(config.source, config.root, max_pixels=config.max_pixels, **config.options)
    source = redivided(source, config.leave_out, config.fold)
    labelled = _labelled_ids(config, source, recipe.trainer.seed)
    unlabelled = None
    if config.unlabelled is not None:
        unlabelled = find_unlabelled(config.unlabelled, source, labelled)
    return SegmentationData(
        source,
        size=config.size,
        crop=config.crop,
        batch_size=config.batch_size,
        augment=config.augment,
        cache=config.cache,
        workers=config.workers,
        train_ids=labelled,
        unlabelled=unlabelled,
        views=config.views,
        steps=config.steps or None,
        unreadable=config.unreadable,
        seed=recipe.trainer.seed,
    )


def _labelled_ids(config: DataConfig, source: Source, seed: int) -> tuple[str, ...] | None:
    """The training ids that `labelled` chooses; None for all."""
    if config.labelled is None:
        return None
    ids = [sample.id for sample in source.samples("train") if sample.labelled]
    text = config.labelled
    if text.isdigit():
        return partition(ids, count=int(text), seed=seed).labelled
    if ("/" in text and text.replace("/", "").isdigit()) or text.replace(".", "", 1).isdigit():
        return partition(ids, ratio=text, seed=seed).labelled
    return partition(ids, list_file=text, seed=seed).labelled


def build_network(
    model: ModelConfig, grouping: GroupingConfig, num_classes: int, *, boundary_head: bool = False
) -> SegmentationModel:
    """The plain network as training begins: with fresh weights, and dense where it is to be grouped in the end.

    Raises:
        ModelError: unknown name or arguments, or layers that cannot be grouped as asked.
    """
    args = dict(model.args)
    if boundary_head:
        args["boundary_head"] = True
    network = build_model(model.name, num_classes=num_classes, efficient=model.efficient, **args)
    if grouping.shape != "none":
        densify(network, choose_layers(network, grouping.where), grouping.stages)
    return network


def build_elastic_model(
    model: ModelConfig,
    widths: Sequence[float],
    num_classes: int,
    *,
    grouping: GroupingConfig | None = None,
    boundary_head: bool = False,
) -> SegmentationModel:
    """The network, made elastic; fresh weights, or those of `model.weights`.

    Raises:
        ModelError: unknown name or arguments, layers that cannot be grouped, or weights that do not fit.
        BundleError: weights of a model that cannot be read.
        WidthError: a width outside (0, 1].
    """
    start = None if model.weights is None else _trained_model(model.weights)
    if start is not None:  # it brings the encoder's weights, too
        model = replace(model, args={**model.args, **from_nothing(model.name)})
    network = build_network(model, grouping or GroupingConfig(), num_classes, boundary_head=boundary_head)
    slim(network, widths, divisor=model.divisor)
    if start is not None:
        start_from(network, start)
    elif model.weights is not None:
        _load_weights(network, model.weights)
    return network


def _trained_model(path: str) -> Bundle | None:
    """The model file that is named, or None for a plain state dict."""
    if not is_named(path):
        try:
            with safe_open(path, "pt") as file:
                if KEY not in (file.metadata() or {}):
                    return None
        except (OSError, SafetensorError):  # reading it as a state dict says what is wrong
            return None
    return load_bundle(path)


def _load_weights(network: SegmentationModel, path: str) -> None:
    try:
        if path.endswith(".safetensors"):
            state: dict[str, Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (EOFError, OSError, RuntimeError, SafetensorError, UnpicklingError, ValueError) as error:
        lines = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: these weights cannot be loaded into the model ({lines})") from error


def build_teachers(
    recipe: Recipe, data: SegmentationData, model: SegmentationModel, peer: SegmentationModel | None = None
) -> dict[str, Teacher]:
    """The recipe's teachers by name.

    Args:
        recipe: its teachers; those that are frozen have a bundle.
        data: a teacher's classes must be the same; its normalisation and size may differ; its input is converted.
        model: the student.
        peer: the network beside it, if a teacher is one.

    Raises:
        RecipeError: a teacher of other classes.
        BundleError: a bundle cannot be read.
    """
    return {
        name: teacher.build(Setting(recipe.asked(name), model, peer, data, recipe.trainer))
        for name, teacher in recipe.teachers.items()
    }


def check_teachers(recipe: Recipe, data: SegmentationData) -> None:
    """Refuse frozen teachers that could not teach, before hours go into anything that is trained first.

    Raises:
        RecipeError: a teacher of other classes, or one to be trained whose network cannot be built: unknown names or
            arguments, pretrained weights that are not to be had.
        BundleError: a bundle cannot be read.
    """
    for name, teacher in recipe.teachers.items():
        if isinstance(teacher, FrozenConfig) and teacher.bundle is not None:
            header = read_model_file(teacher.bundle).header
            require_classes(teacher.bundle, header.classes.names, data.classes.names)
            require_images(teacher.bundle, header.images, data.images)
        elif isinstance(teacher, FrozenConfig):
            assert teacher.model is not None, "the recipe was checked"
            try:
                build_network(teacher.model.for_images(data.images), GroupingConfig(), len(data.classes))
            except LithesegError as error:
                raise RecipeError(f"teachers.{name}.model: {error}") from error


def build_task(recipe: Recipe, data: SegmentationData, horizon: Horizon | None = None) -> Task:
    """Model, teachers and objectives, as one task; two networks that teach each other, if the teacher is a peer.

    Args:
        recipe: all choices.
        data: its images.
        horizon: of the run; by default that of all its epochs.

    Raises:
        LithesegError: whatever part cannot be built.
    """
    horizon = horizon or build_horizon(recipe, data)
    weights = _class_weights(recipe, data)
    model = _student(recipe, data)
    if all(teacher.kind != "peer" for teacher in recipe.teachers.values()):
        return _task(recipe, data, horizon, model, weights)
    peer = _student(recipe, data)  # its weights differ, because the random state has advanced
    left = _task(recipe, data, horizon, model, weights, peer)
    return CrossPseudoTask(left, _task(recipe, data, horizon, peer, weights, model))


def _class_weights(recipe: Recipe, data: SegmentationData) -> dict[str, Tensor]:
    """The class weights by weighting."""
    absent = data.absent_classes()
    if len(data.classes) > 1 and len(absent) >= len(data.classes) - 1:
        raise DataError(
            f"the labelled training images show fewer than two of the {len(data.classes)} classes, so there is nothing "
            "to tell apart; `litheseg doctor` says what the masks hold (255 is ignored unless a class has 'id: 255')"
        )
    partial = recipe.data.labelled is not None or recipe.data.unlabelled is not None
    if absent and partial and not recipe.data.absent_classes:
        raise RecipeError(
            f"no labelled training image shows {', '.join(absent)}, so the model could never learn it; choose other "
            "labelled images (another --trainer.seed, more of them, or a list file as --data.labelled), or go on "
            "without by --data.absent_classes true"
        )
    found = {weighting: class_weights(data.class_histogram(), weighting) for weighting in get_args(Weighting)}
    return {weighting: weights for weighting, weights in found.items() if weights is not None}


def _student(recipe: Recipe, data: SegmentationData) -> SegmentationModel:
    head = any(objective.loss.head == "boundary_head" for objective in recipe.minimised.values())
    config = recipe.model.for_images(data.images)
    model = build_elastic_model(config, recipe.widths, len(data.classes), grouping=recipe.grouping, boundary_head=head)
    lay_out(model, recipe.trainer)
    return model


def _task(
    recipe: Recipe,
    data: SegmentationData,
    horizon: Horizon,
    model: SegmentationModel,
    weights: Mapping[str, Tensor],
    peer: SegmentationModel | None = None,
) -> SegmentationTask:
    return SegmentationTask(
        model,
        objectives_of(recipe, model),
        teachers=build_teachers(recipe, data, model, peer),
        widths=recipe.widths,
        sandwich=recipe.sandwich,
        class_weights=weights,
        optimizer=recipe.optimizer,
        horizon=horizon,
        seed=recipe.trainer.seed,
        compile=recipe.trainer.compile,
    )


def objectives_of(recipe: Recipe, model: SegmentationModel) -> dict[str, Objective]:
    """What is minimised; without deep supervision, where the model has no head for it."""
    aux = getattr(model, "aux_head", None) is not None
    return {name: item for name, item in recipe.minimised.items() if aux or item.loss.head != "aux_head"}


def build_horizon(recipe: Recipe, data: SegmentationData) -> Horizon:
    """The plan of all the recipe's epochs."""
    return Horizon(recipe.trainer.epochs * data.steps_per_epoch)


def build_schedules(recipe: Recipe, data: SegmentationData, horizon: Horizon) -> list[Callback]:
    """The callbacks that end the run in time, and that turn dense layers into grouped ones, if the recipe asks for it.

    Raises:
        LithesegError: the grouping schedule does not fit the run, or channels cannot be relabelled as asked.
    """
    images = data.steps_per_epoch * recipe.data.batch_size
    deadline = Deadline(recipe.trainer, horizon, data.steps_per_epoch, len(data.source.samples("val")) / images)
    if recipe.grouping.shape == "none":
        return [deadline]
    return [deadline, GradualGrouping(recipe.grouping, horizon)]
