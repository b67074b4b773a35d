"""One training run: from a recipe to a bundle, in a folder of its own.

The folder holds `recipe.yaml`, `checkpoints/last.ckpt` (to resume) and `best.ckpt`, `metrics.csv` and TensorBoard logs,
and at the end `model.safetensors` with every width's scores and costs in its header. A run that dies at any moment
resumes from the end of its last whole epoch and ends with the same weights as an unbroken one. After Ctrl-C it resumes
from the very step; the losses logged for that epoch are then the mean over its other steps. The folder is shared by all
processes of a distributed run.

`litheseg.training.build` makes the data, model, teachers and task.

Usage:
    >>> result = train(load_recipe("slimseg", ["--data.root=camvid"]), "runs/slimseg")
    >>> result.bundle
    PosixPath('runs/slimseg/model.safetensors')
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from torch import nn

from litheseg import __version__
from litheseg.data.loading.datamodule import SegmentationData
from litheseg.errors import Interrupted, LithesegError, TrainingError, listed
from litheseg.evaluation.bundle import header_metrics
from litheseg.evaluation.evaluate import evaluate
from litheseg.evaluation.metrics import Scores
from litheseg.files import write_text
from litheseg.locks import folder_lock
from litheseg.models.bundle import BundleHeader, load_bundle, save_bundle
from litheseg.nn import available_widths, recalibrate
from litheseg.nn.grouping import convert
from litheseg.progress import say
from litheseg.training.build import Task, build_data, build_horizon, build_schedules, build_task, check_teachers
from litheseg.training.config import ModelConfig, TrainerConfig
from litheseg.training.display import say_what_begins
from litheseg.training.ranks import is_first_process, one_voice, start_ranks
from litheseg.training.recipe import Recipe, check_recipe, recipe_to_dict
from litheseg.training.stages import labels_alone, missing_teachers, teacher_folder, teacher_recipe, with_bundles
from litheseg.training.storage import errors_of_writers_once, read_checkpoint, remove_drafts
from litheseg.training.trainer import build_trainer

__all__ = ["TrainResult", "finish", "names_memory", "set_up_torch", "train"]

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED")
_MAY_CHANGE = (
    *(f"data.{name}" for name in ("cache", "max_pixels", "unreadable", "workers")),
    *(f"trainer.{name}" for name in ("epochs", "minutes", "val_every", "threads", "loggers", "keep")),
)
_CANNOT_WRITE = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        folder: the run's folder.
        bundle: the model file in it.
        scores: per width, on val, labels at their own resolution.
        labels_alone: mIoU per width of the same network without unlabelled images; empty where that was not asked for.
    """

    folder: Path
    bundle: Path
    scores: dict[float, Scores]
    labels_alone: dict[float, float] = field(default_factory=dict)


def train(
    recipe: Recipe, folder: str | Path, *, resume: bool = False, callbacks: Sequence[Callback] = ()
) -> TrainResult:
    """Train, evaluate every width, write the bundle.

    Args:
        recipe: all choices.
        folder: the run's folder; holds no run yet unless `resume`.
        resume: go on from the folder's last checkpoint (or begin, where there is none).
        callbacks: further ones of Lightning's; runs that this one needs first are without them.

    Raises:
        FolderInUseError: another process trains in the folder.
        TrainingError: a run in the folder, a loss that is no number, too little memory or disk.
        RankError: a process of a distributed run died.
        Interrupted: Ctrl-C; what was done is saved, as the message says.
        LithesegError: bad data, recipe or output folder.
    """
    folder = Path(folder)
    check_recipe(recipe)
    with (
        _own_folder(folder, recipe, resume),
        one_voice(lambda: _kept(folder)),
        _readable_failures(recipe, folder),
        errors_of_writers_once(),
    ):
        return _train(recipe, folder, callbacks)


def _train(recipe: Recipe, folder: Path, callbacks: Sequence[Callback]) -> TrainResult:
    last = folder / "checkpoints" / "last.ckpt"
    resumed = last.exists()
    set_up_torch(recipe.trainer)
    data = build_data(recipe)
    if not resumed:
        check_teachers(recipe, data)
    alone = _labels_alone(recipe, data, folder)
    taught = _with_teachers(recipe, folder)
    set_up_torch(recipe.trainer)  # the random numbers of those runs must not count
    horizon = build_horizon(recipe, data)
    task = build_task(taught, data, horizon)
    trainer = build_trainer(recipe, folder, [*build_schedules(recipe, data, horizon), *callbacks], resumed=resumed)
    _begin_folder(folder, recipe)
    synchronised = trainer.world_size > 1 and isinstance(trainer.accelerator, CUDAAccelerator)
    if synchronised:
        # Not by the Trainer: that would convert teachers too, and not lead back to ordinary layers.
        for student in task.students:
            nn.SyncBatchNorm.convert_sync_batchnorm(student)
    start_ranks(trainer)
    say_what_begins(recipe, data, task, trainer)
    trainer.fit(task, data, ckpt_path=last if resumed else None, weights_only=True)
    if synchronised:
        plain_norms(task.model)
    _choose_weights(recipe.trainer, task, folder / "checkpoints")
    path, device = folder / "model.safetensors", trainer.strategy.root_device
    scores = finish(taught, data, task, path, device=device, writes=trainer.is_global_zero, labels_alone=alone)
    trainer.strategy.barrier()  # another run may be about to read the bundle
    return TrainResult(folder, path, scores, alone)


def _with_teachers(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a bundle for each teacher; those that are missing are trained, or taken from earlier runs."""
    bundles = {}
    for name, teacher in missing_teachers(recipe).items():
        first = teacher_recipe(recipe, teacher)
        bundles[name] = _bundle_of(first, teacher_folder(first, folder), f"the {name} teacher")
    return with_bundles(recipe, bundles)


def _labels_alone(recipe: Recipe, data: SegmentationData, folder: Path) -> dict[float, float]:
    """MIoU per width of the network that learns from the labels only."""
    if recipe.data.unlabelled is None or not recipe.trainer.baseline:
        return {}
    first = labels_alone(recipe, data.steps_per_epoch)
    bundle = load_bundle(_bundle_of(first, folder / "labelled-only", "the same network from labels alone, to compare"))
    return {float(width): values["miou"] for width, values in bundle.header.metrics.items()}


def _bundle_of(recipe: Recipe, folder: Path, what: str) -> Path:
    """The bundle of a run that is finished, resumed or begun."""
    bundle = folder / "model.safetensors"
    if not bundle.exists():
        say(f"First: {what}, in {folder}")
        bundle = train(recipe, folder, resume=True).bundle
    else:
        say(f"Done before: {what}, {bundle}")
    return bundle


def _choose_weights(config: TrainerConfig, task: Task, checkpoints: Path) -> None:
    """Take the best epoch's weights if asked; and the average, which a run resumed at its end has in its file only."""
    if config.keep == "best":
        task.load_state_dict(read_checkpoint(checkpoints / "best.ckpt")["state_dict"])
    elif config.ema:
        task.load_state_dict(read_checkpoint(checkpoints / "last.ckpt")["state_dict"])


def plain_norms(module: nn.Module) -> None:
    """Replace synchronised batch norms by ordinary ones, in place; the tensors stay the same."""
    for name, child in module.named_children():
        if isinstance(child, nn.SyncBatchNorm):
            plain = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
            plain._parameters, plain._buffers = child._parameters, child._buffers
            setattr(module, name, plain.train(child.training))
        else:
            plain_norms(child)


@contextmanager
def _own_folder(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Hold the folder for this run, or refuse one that must not be used before anything else takes time.

    Other processes of a distributed run start later, when the first holds it for all and has begun to write.
    """
    if not is_first_process():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(_unusable(folder, error)) from error
    with folder_lock(folder):
        _check_folder(folder, recipe, resume)
        yield


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    try:
        begun = any((folder / name).exists() for name in ("checkpoints/last.ckpt", "model.safetensors"))
        text = (folder / "recipe.yaml").read_text(encoding="utf-8") if begun else None
        remove_drafts(folder, folder / "checkpoints")
    except OSError as error:
        raise TrainingError(_unusable(folder, error)) from error
    if begun and not resume:
        raise TrainingError(f"{folder} holds a run already; go on with it by --resume, or choose another --output")
    changed = _changes(yaml.safe_load(text or ""), recipe_to_dict(recipe)) if begun else []
    if changed:
        raise TrainingError(
            f"{folder} was begun with other settings: {listed(changed)}; resume with the same ones, or choose another "
            "--output"
        )


def _changes(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two recipes as plain values, but for what may change while a run goes on."""
    if name in _MAY_CHANGE or before == now:
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [f"{name} was {before} and is {now}"]
    prefix = f"{name}." if name else ""
    keys = dict.fromkeys([*before, *now])
    return [change for key in keys for change in _changes(before.get(key), now.get(key), f"{prefix}{key}")]


def _unusable(folder: Path, error: OSError) -> str:
    return f"cannot use {folder} for the run: {error.strerror or error}; choose another --output"


def _begin_folder(folder: Path, recipe: Recipe) -> None:
    """Note the recipe, once everything that it names could be built."""
    if is_first_process():
        write_text(folder / "recipe.yaml", yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False))


def set_up_torch(config: TrainerConfig) -> None:
    """Threads, matrix products and random seed as a recipe has them."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high")
    L.seed_everything(config.seed, workers=False, verbose=False)


@contextmanager
def _readable_failures(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Turn what commonly ends a run into one clear sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not names_memory(error):
            raise
        raise TrainingError(
            f"not enough memory for a batch of {recipe.data.batch_size}; lower --data.batch_size or --data.crop, or "
            f"use --trainer.precision bf16-mixed, with another --output; or free memory: {_kept(folder)}"
        ) from error
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise TrainingError(
            f"cannot read or write {error.filename or folder}: {error.strerror}; mend that, then: {_kept(folder)}"
        ) from error
    except LithesegError as error:
        # `atomic_path` or `save_bundle` could not write.
        if type(error) is not LithesegError or not isinstance(error.__cause__, (OSError, SafetensorError)):
            raise
        raise TrainingError(f"{error}. Then: {_kept(folder)}") from error
    except (KeyboardInterrupt, SystemExit) as stop:
        # Ctrl-C outside of training steps; Lightning makes SystemExit of it.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        raise Interrupted(f"stopped at once; {_kept(folder)}") from None


def names_memory(error: Exception) -> bool:
    """Whether memory ran out."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(words in str(error) for words in _OUT_OF_MEMORY)


def _kept(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no epoch has been saved yet, so the same command begins anew"
    return f"everything up to {last} is safe, and the same command with --resume goes on from it"


# --- the end of a run -------------------------------------------------------------------------------------------------


def finish(
    recipe: Recipe,
    data: SegmentationData,
    task: Task,
    path: Path,
    *,
    device: torch.device,
    writes: bool,
    labels_alone: Mapping[float, float] | None = None,
) -> dict[float, Scores]:
    """Convert, calibrate and score every width, in all processes; write the bundle, in one.

    Args:
        recipe: of the run.
        data: its images.
        task: with the weights to keep.
        path: of the bundle.
        device: where to compute; the model is left on the CPU.
        writes: whether this process writes.
        labels_alone: mIoU by width of the same network without unlabelled images, to be noted beside it.

    Returns:
        Scores by width, the same in all processes.
    """
    model = task.model.to(device)
    convert(model)
    recalibrate(model, data.calibration_batches(), recipe.calibrate)
    scores = evaluate(model, data.val_dataloader(), widths=available_widths(model), device=device)
    model.cpu()
    if writes:
        save_bundle(path, model, _header(recipe, data, task, scores, labels_alone or {}))
    return scores


def _header(
    recipe: Recipe, data: SegmentationData, task: Task, scores: dict[float, Scores], labels_alone: Mapping[float, float]
) -> BundleHeader:
    size = recipe.data.size or data.crop
    metrics = header_metrics(task.model, scores, size)
    for width, miou in labels_alone.items():
        metrics[f"{width:g}"]["labels_alone"] = miou
    return BundleHeader(
        architecture=_architecture(recipe.model.for_images(data.images)),
        classes=data.classes,
        widths=task.widths,
        calibrated_widths=tuple(width for width in scores if width not in task.widths),
        divisor=recipe.model.divisor,
        size=size,
        resizes=recipe.data.size is not None,
        mean=data.images.mean,
        std=data.images.std,
        dtype=data.images.dtype,
        metrics=metrics,
        recipe=recipe_to_dict(recipe),
        provenance=_provenance(recipe, data),
    )


def _architecture(model: ModelConfig) -> dict[str, Any]:
    efficient = {"efficient": asdict(model.efficient)} if model.efficient.changes else {}
    return {"name": model.name, "args": model.args, **efficient}


def _provenance(recipe: Recipe, data: SegmentationData) -> dict[str, Any]:
    packages = ("torch", "torchvision", "timm", "lightning")
    return {
        "data": data.source.name,
        "data_licence": data.source.licence,
        "data_citation": data.source.citation,
        "seed": recipe.trainer.seed,
        "epoch": recipe.trainer.keep,
        **data.class_facts(),
        "litheseg": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
