"""Make a grouped model: of a gradual run whose alpha has reached 0, or of a finished dense model, in one cut.

Converting a run changes no output. A cut drops the weights between the groups at once, after relabelling the channels
if asked, and measures batch norm anew. It costs accuracy, which gradual training avoids; how much weight is kept is
reported layer by layer.

Paper: Vallurupalli et al., "Efficient Semantic Segmentation using Gradual Grouping", CVPR Workshops 2018.

Usage:
    >>> convert_run("runs/dg4", "dg4.safetensors")
    >>> cut_bundle(load_bundle("dense.safetensors"), "cut.safetensors", Efficient(groups=4, shuffle=False))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from litheseg.data.sources.base import Source
from litheseg.errors import LithesegError, ModelError, TrainingError
from litheseg.evaluation.bundle import header_metrics, open_bundle_data
from litheseg.evaluation.evaluate import evaluate
from litheseg.evaluation.metrics import Scores
from litheseg.models import SegmentationModel, build_model
from litheseg.models.bundle import Bundle, save_bundle
from litheseg.nn import add_width, available_widths, recalibrate, set_width, slim
from litheseg.nn.assignment import find_relabelling
from litheseg.nn.efficient import Efficient
from litheseg.nn.grouping import convert, densify, fade, gradual_layers
from litheseg.training.build import build_data, build_horizon, build_task
from litheseg.training.gradual import alpha_at
from litheseg.training.recipe import load_recipe
from litheseg.training.run import finish
from litheseg.training.storage import read_checkpoint

__all__ = ["Cut", "convert_run", "cut_bundle"]


@dataclass(frozen=True)
class Cut:
    """What a cut did.

    Attributes:
        bundle: the grouped model, as written.
        scores: by width, on val, after the cut.
        kept: by layer: share of the squared weights that is left, in [0, 1].
    """

    bundle: Bundle
    scores: dict[float, Scores]
    kept: dict[str, float]


def convert_run(folder: str | Path, output: str | Path, *, force: bool = False) -> dict[float, Scores]:
    """Make a bundle of a gradual run that has not ended but whose alpha is 0.

    Args:
        folder: of the run; its last checkpoint counts.
        output: the bundle to write.
        force: replace an existing file.

    Returns:
        Scores by width, on val.

    Raises:
        TrainingError: no checkpoint, a run that is not gradual, or alpha above 0.
    """
    folder, output = Path(folder), _free(output, force)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        raise TrainingError(f"{folder} holds no run with a checkpoint ({checkpoint} is missing); give a run's folder")
    recipe = load_recipe(str(folder / "recipe.yaml"))
    if recipe.grouping.shape == "none":
        raise TrainingError(f"{folder}: this run is not gradual; its model is {folder / 'model.safetensors'}")
    data = build_data(recipe)
    task = build_task(recipe, data)
    content = read_checkpoint(checkpoint)
    horizon = build_horizon(recipe, data)
    horizon.restore(content["callbacks"]["Deadline"]["horizon"])
    stage, alpha = alpha_at(recipe.grouping, horizon.at(content["global_step"] - 1) / horizon.total)
    if (stage, alpha) != (len(recipe.grouping.stages), 0.0):
        epoch = int(recipe.grouping.end * recipe.trainer.epochs) + 1
        raise TrainingError(
            f"{folder} cannot be converted yet: alpha is {alpha:.3g} in stage {stage + 1} of "
            f"{len(recipe.grouping.stages) + 1} after epoch {content['epoch'] + 1}; it is 0 from epoch {epoch} of "
            f"{recipe.trainer.epochs} on: litheseg train --recipe {folder / 'recipe.yaml'} --output {folder} --resume"
        )
    task.load_state_dict(content["state_dict"])
    fade(task.model, stage, alpha)
    return finish(recipe, data, task, output, device=torch.device("cpu"), writes=True)


def cut_bundle(
    bundle: Bundle,
    output: str | Path,
    efficient: Efficient,
    *,
    assignment: Literal["contiguous", "magnitude"] = "contiguous",
    data: str | Path | Source | None = None,
    source: str = "auto",
    force: bool = False,
) -> Cut:
    """Turn a finished dense model into a grouped one, in one cut.

    Args:
        bundle: the dense model.
        output: the bundle to write.
        efficient: groups and layers; without shuffle, which the dense model does not have.
        assignment: contiguous, or magnitude to relabel channels before.
        data: the folder of the data, for batch norm and scores; None for what the bundle was trained on.
        source: a key of `litheseg.data.SOURCES`, or "auto".
        force: replace an existing file.

    Raises:
        ModelError: layers that cannot be grouped; a model that is grouped already.
        DataError: no data, or other classes.
    """
    output, header = _free(output, force), bundle.header
    images = open_bundle_data(bundle, data, source=source)
    model = _target(bundle, efficient)
    if assignment == "magnitude":
        find_relabelling(model).apply(model)
    kept = {name: _kept(layer, mask) for name, (layer, mask) in gradual_layers(model).items()}
    fade(model, stage=0, alpha=0.0)
    convert(model)
    recalibrate(model, images.calibration_batches(), available_widths(model))
    scores = evaluate(model, images.val_dataloader(), widths=available_widths(model))
    new = replace(
        header,
        architecture={**header.architecture, "efficient": asdict(efficient)},
        metrics=header_metrics(model, scores, header.size),
        provenance={**header.provenance, "cut": {"assignment": assignment, "from": str(bundle.path or "")}},
    )
    return Cut(save_bundle(output, model, new), scores, kept)


def _free(output: str | Path, force: bool) -> Path:
    path = Path(output).expanduser()
    if path.exists() and not force:
        raise LithesegError(f"{path} exists already; choose another --output, or replace it with --force")
    return path


def _target(bundle: Bundle, efficient: Efficient) -> SegmentationModel:
    """The grouped architecture, still dense, with the bundle's weights."""
    header, original = bundle.header, bundle.model()
    if header.architecture.get("efficient"):
        raise ModelError(f"{bundle.path or 'the model'} is grouped already; cut the dense model that it came from")
    if efficient.kind != "grouped" or efficient.groups == 1 or efficient.shuffle:
        raise ModelError("a trained model can be cut into groups only, 2 or more (0: depthwise), and without shuffle")
    arguments: dict[str, Any] = {"num_classes": header.num_classes, **header.architecture["args"]}
    plain = build_model(header.architecture["name"], **arguments)
    model = build_model(header.architecture["name"], efficient=efficient, **arguments)
    densify(model, [name for name in _grouped(model) if name not in _grouped(plain)])
    slim(model, header.widths, divisor=header.divisor)
    for width in header.calibrated_widths:
        add_width(model, width)
    model.load_state_dict(dict(bundle.state_dict))
    _check_same(model.eval(), original)
    return model


def _grouped(model: nn.Module) -> set[str]:
    return {name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1}


@torch.no_grad()
def _check_same(model: SegmentationModel, original: SegmentationModel) -> None:
    """Groups may cut the channels of narrower widths in another way than the dense model did."""
    image = torch.rand(1, original.in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    for width in available_widths(original):
        set_width(model, width)
        set_width(original, width)
        ours, theirs = model(image), original(image)
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std())):
            raise ModelError(
                f"width {width:g} of this model keeps other channels than one with these groups would; cut a model of "
                "one width, use another number of groups, or train with --recipe gradual-grouping and these widths"
            )


def _kept(layer: nn.Module, mask: Any) -> float:
    weight = layer.weight.detach()  # type: ignore[operator, union-attr]
    return float(mask.kept(weight).square().sum() / weight.square().sum().clamp_min(1e-30))
