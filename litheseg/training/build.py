"""From a recipe to the objects it names: data, elastic model, teacher, terms, task.

It only builds: nothing is trained, and no file is written.

Usage:
    >>> data = build_data(recipe)
    >>> task = build_task(recipe, data)
"""

from __future__ import annotations

from pickle import UnpicklingError

import torch
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from litheseg.data import open_source, partition
from litheseg.data.datamodule import SegmentationData
from litheseg.data.source import Source
from litheseg.deploy.bundle import load_bundle
from litheseg.errors import ModelError, RecipeError
from litheseg.losses.segmentation import class_weights
from litheseg.losses.terms import (
    AuxTerm,
    BoundaryBandTerm,
    BoundaryHeadTerm,
    ChannelWiseTerm,
    CrossEntropyTerm,
    DiceTerm,
    KLTerm,
    LovaszTerm,
    OhemTerm,
    Term,
)
from litheseg.models import SegmentationModel, build_model
from litheseg.nn import available_widths, slim
from litheseg.nn.efficient import choose_layers
from litheseg.nn.grouping import densify
from litheseg.nn.layers import SlimConv2d
from litheseg.nn.tracing import trace_model
from litheseg.training.checks import check_recipe
from litheseg.training.config import (
    DataConfig,
    GroupingConfig,
    LossConfig,
    ModelConfig,
    Recipe,
    TeacherConfig,
    WidthConfig,
)
from litheseg.training.gradual import GradualGrouping
from litheseg.training.task import SegmentationTask
from litheseg.training.teachers import Ema, Frozen, NextWider, Nobody, Teacher, Widest

__all__ = [
    "build_data",
    "build_elastic_model",
    "build_grouping",
    "build_network",
    "build_task",
    "build_teacher",
    "build_terms",
    "suits_channels_last",
]


_FEWEST_CHANNELS = 8  # of a register of AVX2


def build_data(recipe: Recipe) -> SegmentationData:
    """The recipe's images, not decoded yet.

    Raises:
        DataError: they cannot be found or do not fit.
    """
    config = recipe.data
    source = open_source(config.source, config.root, **config.options)
    return SegmentationData(
        source,
        size=config.size,
        crop=config.crop,
        batch_size=config.batch_size,
        augment=config.augment,
        cache=config.cache,
        workers=config.workers,
        train_ids=_labelled_ids(config, source, recipe.trainer.seed),
        seed=recipe.trainer.seed,
    )


def _labelled_ids(config: DataConfig, source: Source, seed: int) -> tuple[str, ...] | None:
    """The training ids that `labelled` chooses; None for all."""
    if config.labelled is None:
        return None
    ids = [sample.id for sample in source.samples("train")]
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


def build_teacher(recipe: Recipe, model: SegmentationModel) -> Teacher:
    """The recipe's teacher.

    Raises:
        RecipeError: a frozen teacher of other classes.
        BundleError: the bundle cannot be read.
    """
    config = recipe.teacher
    if config.kind == "next-wider":
        return NextWider()
    if config.kind == "widest":
        return Widest()
    if config.kind == "ema":
        return Ema(model, config.decay, config.width)
    if config.kind == "frozen":
        return _frozen(config, model.num_classes)
    return Nobody()


def _frozen(config: TeacherConfig, num_classes: int) -> Frozen:
    assert config.bundle is not None, "the recipe was checked"
    bundle = load_bundle(config.bundle)
    if bundle.header.num_classes != num_classes:
        raise RecipeError(
            f"teacher {config.bundle} knows {bundle.header.num_classes} classes, the data has {num_classes}; "
            "choose a teacher that was trained on the same classes"
        )
    plain = bundle.plain(config.width)
    assert isinstance(plain, SegmentationModel)
    return Frozen(plain)


def build_terms(config: LossConfig, weight: Tensor | None, *, aux: bool) -> dict[str, Term]:
    """The terms whose weight is not 0.

    Args:
        config: their weights and settings.
        weight: class weights [K], or None.
        aux: whether the model has a deep-supervision head.
    """
    ohem = config.main == "ohem"
    radius = config.boundary_radius
    terms: dict[str, Term] = {
        "main": OhemTerm(weight, threshold=config.ohem_threshold) if ohem else CrossEntropyTerm(weight),
        "aux": AuxTerm(weight, scale=config.aux if aux else 0.0),
        "dice": DiceTerm(scale=config.dice),
        "lovasz": LovaszTerm(scale=config.lovasz),
        "boundary_band": BoundaryBandTerm(weight, radius=radius, scale=config.boundary_band),
        "boundary_head": BoundaryHeadTerm(radius=radius, scale=config.boundary_head),
        "kl": KLTerm(temperature=config.temperature, scale=config.kl),
        "channel_wise": ChannelWiseTerm(temperature=config.channel_wise_temperature, scale=config.channel_wise),
    }
    return {name: term for name, term in terms.items() if term.scale != 0}


def build_task(recipe: Recipe, data: SegmentationData) -> SegmentationTask:
    """Model, teacher and terms, as one task.

    Raises:
        LithesegError: whatever part cannot be built.
    """
    check_recipe(recipe)
    loss, widths = recipe.loss, recipe.widths
    model = build_elastic_model(
        recipe.model, widths, len(data.classes), grouping=recipe.grouping, boundary_head=loss.boundary_head > 0
    )
    if recipe.trainer.channels_last and suits_channels_last(model):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = class_weights(data.class_histogram(), loss.class_weights, loss.class_weight_offset)
    return SegmentationTask(
        model,
        terms=build_terms(loss, weight, aux=getattr(model, "aux_head", None) is not None),
        teacher=build_teacher(recipe, model),
        widths=widths.values,
        sampling=widths.sampling,
        samples=widths.samples,
        hard_labels=loss.hard_labels,
        optimizer=recipe.optimizer,
        total_steps=_total_steps(recipe, data),
        seed=recipe.trainer.seed,
        compile=recipe.trainer.compile,
    )


def suits_channels_last(model: nn.Module) -> bool:
    """Whether channels_last is safe: not with strided 1x1 convolutions of fewer than 8 inputs, at any width.

    Their gradient, in oneDNN 3.13 (PyTorch 2.15) on CPUs without AVX-512, writes outside its memory.
    """
    narrowest = min(available_widths(model))
    for layer in model.modules():
        if isinstance(layer, SlimConv2d):
            inputs = layer.inputs.count(narrowest)
        elif isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels // layer.groups
        else:
            continue
        if tuple(layer.kernel_size) == (1, 1) and max(layer.stride) > 1 and inputs < _FEWEST_CHANNELS:
            return False
    return True


def build_grouping(recipe: Recipe, data: SegmentationData) -> list[Callback]:
    """The callback that turns dense layers into grouped ones, if the recipe asks for it.

    Raises:
        LithesegError: the schedule does not fit the run, or channels cannot be relabelled as asked.
    """
    grouping = recipe.grouping
    if grouping.shape == "none":
        return []
    trace = None
    if grouping.assignment != "contiguous":
        head = recipe.loss.boundary_head > 0
        trace = trace_model(build_network(recipe.model, grouping, len(data.classes), boundary_head=head), dense=True)
    return [GradualGrouping(grouping, _total_steps(recipe, data), trace)]


def _total_steps(recipe: Recipe, data: SegmentationData) -> int:
    return recipe.trainer.epochs * len(data.train_dataloader())
