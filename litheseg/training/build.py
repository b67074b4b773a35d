"""From a recipe to the objects it names: data, elastic model, teachers, task.

It only builds: nothing is trained, and no file is written.

Usage:
    >>> data = build_data(recipe)
    >>> task = build_task(recipe, data)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pickle import UnpicklingError

import torch
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from litheseg.data import open_source, partition
from litheseg.data.datamodule import SegmentationData
from litheseg.data.source import Source
from litheseg.data.splits import LeaveOut
from litheseg.data.unlabelled import find_unlabelled
from litheseg.errors import ModelError, RecipeError
from litheseg.losses.segmentation import class_weights
from litheseg.models import SegmentationModel, build_model
from litheseg.models.bundle import BundleHeader, load_bundle
from litheseg.nn import slim
from litheseg.nn.efficient import choose_layers
from litheseg.nn.grouping import densify
from litheseg.training.checks import check_recipe
from litheseg.training.config import (
    DataConfig,
    GroupingConfig,
    ModelConfig,
    Recipe,
    TeacherConfig,
    TrainerConfig,
    TutorConfig,
    WidthConfig,
)
from litheseg.training.cross_pseudo import CrossPseudoTask
from litheseg.training.gradual import GradualGrouping
from litheseg.training.layout import gains_from_bfloat16, lay_out
from litheseg.training.objectives import TEACHER, Asked, asked, build_objectives
from litheseg.training.task import Objective, SegmentationTask
from litheseg.training.teacher_input import TeacherInput
from litheseg.training.teachers import Ema, Frozen, Live, NextWider, Teacher, Widest

__all__ = [
    "Task",
    "build_data",
    "build_elastic_model",
    "build_grouping",
    "build_network",
    "build_task",
    "build_teachers",
]


Task = SegmentationTask | CrossPseudoTask


def build_data(recipe: Recipe) -> SegmentationData:
    """The recipe's images, not decoded yet.

    Raises:
        DataError: they cannot be found or do not fit.
    """
    config = recipe.data
    source = open_source(config.source, config.root, max_pixels=config.max_pixels, **config.options)
    if config.leave_out is not None:
        source = LeaveOut(source, config.leave_out)
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
    widths: WidthConfig,
    num_classes: int,
    *,
    grouping: GroupingConfig | None = None,
    boundary_head: bool = False,
) -> SegmentationModel:
    """The network, made elastic; fresh weights, or those of `model.weights`.

    Raises:
        ModelError: unknown name or arguments, layers that cannot be grouped, or weights that do not fit.
        WidthError: a width outside (0, 1].
    """
    network = build_network(model, grouping or GroupingConfig(), num_classes, boundary_head=boundary_head)
    slim(network, widths.values, divisor=widths.divisor)
    if model.weights is not None:
        _load_weights(network, model.weights)
    return network


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
    recipe: Recipe,
    data: SegmentationData,
    model: SegmentationModel,
    objectives: Mapping[str, Objective],
    peer: SegmentationModel | None = None,
) -> dict[str, Teacher]:
    """Those that the objectives name.

    Args:
        recipe: its sections teacher, mgd and trainer count.
        data: a teacher's classes must be the same; its normalisation and size may differ, and it sees its own.
        model: the student.
        objectives: decide what each teacher is asked.
        peer: the network beside it, if the recipe's teacher is one.

    Raises:
        RecipeError: a teacher of other classes.
        BundleError: a bundle cannot be read.
    """
    names = dict.fromkeys(objective.teacher for objective in objectives.values() if objective.teacher)
    teachers: dict[str, Teacher] = {}
    for name in names:
        wanted = asked(objectives, name)
        own = name == TEACHER
        if own and recipe.teacher.kind != "frozen":
            teachers[name] = _own_teacher(recipe.teacher, model, wanted, peer)
        else:
            teachers[name] = _frozen(recipe.teacher if own else recipe.mgd.tutors[name], data, wanted, recipe.trainer)
    return teachers


def _own_teacher(
    config: TeacherConfig, model: SegmentationModel, wanted: Asked, peer: SegmentationModel | None
) -> Teacher:
    if config.kind == "next-wider":
        return NextWider()
    if config.kind == "widest":
        return Widest()
    if config.kind == "ema":
        return Ema(model, config.decay, config.width, wanted.streams)
    return Live(model if peer is None else peer, config.width, wanted.streams)


def _frozen(
    config: TeacherConfig | TutorConfig, data: SegmentationData, wanted: Asked, trainer: TrainerConfig
) -> Frozen:
    assert config.bundle is not None, "the recipe was checked, and teachers that must be trained first were"
    bundle = load_bundle(config.bundle)
    classes, theirs = data.classes, bundle.header.classes.names
    if theirs != classes.names:
        differing = next((pair for pair in zip(theirs, classes.names, strict=False) if pair[0] != pair[1]), None)
        what = f"'{differing[0]}' where the data has '{differing[1]}'" if differing else f"{len(theirs)} classes"
        raise RecipeError(
            f"teacher {config.bundle} knows {what} (the data has {len(classes)} classes); choose a teacher that was "
            "trained on the same classes in the same order"
        )
    plain = bundle.plain(config.width)
    assert isinstance(plain, SegmentationModel)
    lay_out(plain, trainer)
    return Frozen(
        plain,
        wanted.streams,
        mixed=wanted.mixed,
        bfloat16=gains_from_bfloat16(trainer),
        sees=_teacher_input(config.bundle, bundle.header, data),
    )


def _teacher_input(path: str, header: BundleHeader, data: SegmentationData) -> TeacherInput:
    """What makes the data's views those that the teacher knows; its scale can be told only where both resize."""
    scale = (1.0, 1.0)
    if header.resizes and data.size:
        scale = (header.size[0] / data.size[0], header.size[1] / data.size[1])
    elif header.resizes or data.size:
        how = ["at their own size", "resized to {}x{}"]
        theirs, ours = how[header.resizes].format(*header.size), how[bool(data.size)].format(*data.size or ())
        warnings.warn(
            f"teacher {path} knows images {theirs}, and here they are {ours}: it may see everything at another scale; "
            "give --data.size as it was trained with"
        )
    return TeacherInput(data.mean, data.std, header.mean, header.std, scale)


def build_task(recipe: Recipe, data: SegmentationData) -> Task:
    """Model, teachers and objectives, as one task; two networks that teach each other, if the teacher is a peer.

    Raises:
        LithesegError: whatever part cannot be built.
    """
    check_recipe(recipe)
    weight = _class_weights(recipe, data)
    model = _student(recipe, data)
    if recipe.teacher.kind != "peer":
        return _task(recipe, data, model, weight)
    peer = _student(recipe, data)  # its weights differ: the random numbers have gone on
    return CrossPseudoTask(_task(recipe, data, model, weight, peer), _task(recipe, data, peer, weight, model))


def _class_weights(recipe: Recipe, data: SegmentationData) -> Tensor | None:
    absent = data.absent_classes()
    partial = recipe.data.labelled is not None or recipe.data.unlabelled is not None
    if absent and partial and not recipe.data.absent_classes:
        raise RecipeError(
            f"no labelled training image shows {', '.join(absent)}, so the model could never learn it; choose other "
            "labelled images (another --trainer.seed, more of them, or a list file as --data.labelled), or go on "
            "without by --data.absent_classes true"
        )
    return class_weights(data.class_histogram(), recipe.loss.class_weights, recipe.loss.class_weight_offset)


def _student(recipe: Recipe, data: SegmentationData) -> SegmentationModel:
    head = recipe.loss.boundary_head > 0
    model = build_elastic_model(
        recipe.model, recipe.widths, len(data.classes), grouping=recipe.grouping, boundary_head=head
    )
    lay_out(model, recipe.trainer)
    return model


def _task(
    recipe: Recipe,
    data: SegmentationData,
    model: SegmentationModel,
    weight: Tensor | None,
    peer: SegmentationModel | None = None,
) -> SegmentationTask:
    objectives = build_objectives(recipe, weight, aux=getattr(model, "aux_head", None) is not None)
    return SegmentationTask(
        model,
        objectives,
        teachers=build_teachers(recipe, data, model, objectives, peer),
        widths=recipe.widths.values,
        sampling=recipe.widths.sampling,
        samples=recipe.widths.samples,
        optimizer=recipe.optimizer,
        total_steps=_total_steps(recipe, data),
        seed=recipe.trainer.seed,
        compile=recipe.trainer.compile,
    )


def build_grouping(recipe: Recipe, data: SegmentationData) -> list[Callback]:
    """The callback that turns dense layers into grouped ones, if the recipe asks for it.

    Raises:
        LithesegError: the schedule does not fit the run, or channels cannot be relabelled as asked.
    """
    grouping = recipe.grouping
    if grouping.shape == "none":
        return []
    return [GradualGrouping(grouping, _total_steps(recipe, data))]


def _total_steps(recipe: Recipe, data: SegmentationData) -> int:
    return recipe.trainer.epochs * len(data.train_dataloader())
