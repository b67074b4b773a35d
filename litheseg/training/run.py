"""One training run: from a recipe to a bundle, in a folder of its own.

The folder holds `recipe.yaml`, `checkpoints/last.ckpt` (to resume) and `best.ckpt`, `metrics.csv` and TensorBoard logs,
and at the end `model.safetensors` with every width's scores and costs in its header. A run that dies at any moment
resumes from the end of its last whole epoch and ends with the same weights as an unbroken one.

It knows no method and no loss; `litheseg.training.build` does the choosing.

Usage:
    >>> result = train(load_recipe("slimseg", ["--data.root=camvid"]), "runs/slimseg")
    >>> result.bundle
    PosixPath('runs/slimseg/model.safetensors')
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from litheseg import __version__
from litheseg.cost.profile import profile
from litheseg.data.datamodule import SegmentationData
from litheseg.deploy.bundle import BundleHeader, save_bundle
from litheseg.errors import MissingExtraError, TrainingError
from litheseg.evaluation.evaluate import evaluate
from litheseg.evaluation.metrics import Scores
from litheseg.files import atomic_path
from litheseg.models import SegmentationModel
from litheseg.nn import available_widths, recalibrate
from litheseg.training.build import build_data, build_task
from litheseg.training.callbacks import StopOnInterrupt, checkpoint_callbacks, progress_callback
from litheseg.training.recipe import Recipe, TrainerConfig, recipe_to_dict
from litheseg.training.task import SegmentationTask

__all__ = ["TrainResult", "train"]

_CALIBRATION_BATCHES = 32


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        folder: the run's folder.
        bundle: the model file in it.
        scores: per width, on val, labels at their own resolution.
    """

    folder: Path
    bundle: Path
    scores: dict[float, Scores]


def train(recipe: Recipe, folder: str | Path, *, resume: bool = False) -> TrainResult:
    """Train, evaluate every width, write the bundle.

    Args:
        recipe: all choices.
        folder: the run's folder; must not exist unless `resume`.
        resume: go on from the folder's last checkpoint (or begin, where there is none).

    Raises:
        TrainingError: an existing folder, a loss that is no number, too little memory or disk.
        Interrupted: Ctrl-C; everything is saved.
        LithesegError: bad data, recipe or output folder.
    """
    folder = Path(folder)
    _prepare_folder(folder, recipe, resume)
    _set_up_torch(recipe.trainer)
    data = build_data(recipe)
    task = build_task(recipe, data)
    trainer = _build_trainer(recipe, folder)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    with _readable_failures(recipe, folder):
        trainer.fit(task, data, ckpt_path=checkpoint if resume and checkpoint.exists() else None, weights_only=True)
    if recipe.trainer.keep == "best":
        best = torch.load(folder / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)
        task.load_state_dict(best["state_dict"])
    path = folder / "model.safetensors"
    scores = _finish(recipe, data, task, path, writes=trainer.is_global_zero)
    return TrainResult(folder, path, scores)


def _prepare_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    if (folder / "recipe.yaml").exists() and not resume:
        raise TrainingError(f"{folder} holds a run already; go on with it by --resume, or choose another --output")
    text = yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False)
    if resume and (folder / "recipe.yaml").exists() and (folder / "recipe.yaml").read_text(encoding="utf-8") != text:
        raise TrainingError(
            f"{folder} was begun with other settings (see its recipe.yaml); resume with the same ones, or choose "
            "another --output"
        )
    with atomic_path(folder / "recipe.yaml") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _set_up_torch(config: TrainerConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high")
    L.seed_everything(config.seed, workers=False, verbose=False)


def _build_trainer(recipe: Recipe, folder: Path) -> L.Trainer:
    config = recipe.trainer
    callbacks = checkpoint_callbacks(folder / "checkpoints")
    callbacks += [StopOnInterrupt(folder / "checkpoints" / "last.ckpt"), progress_callback()]
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    if config.early_stop:
        callbacks.append(EarlyStopping("val/miou", mode="max", patience=config.early_stop))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return L.Trainer(
            default_root_dir=folder,
            max_epochs=config.epochs,
            precision=config.precision,
            accelerator=config.accelerator,
            devices=_devices(config),
            num_nodes=config.nodes,
            strategy=_strategy(recipe),
            sync_batchnorm=config.accelerator != "cpu" and torch.cuda.is_available(),
            gradient_clip_val=recipe.optimizer.clip or None,
            check_val_every_n_epoch=min(config.val_every, config.epochs),
            callbacks=callbacks,
            logger=[_logger(name, folder) for name in config.loggers] or False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            use_distributed_sampler=False,  # the data module deals its own batches out
            enable_model_summary=False,
        )


def _devices(config: TrainerConfig) -> int | str:
    on_cpu = config.accelerator == "cpu" or (config.accelerator == "auto" and not torch.cuda.is_available())
    return 1 if config.devices == "auto" and on_cpu else config.devices


def _strategy(recipe: Recipe) -> str:
    """A sandwich leaves some widths' batch norms out of a step, which plain DDP would wait for."""
    config = recipe.trainer
    distributed = config.strategy == "ddp" or config.nodes > 1 or config.devices not in (1, "auto")
    if not distributed:
        return config.strategy
    return "ddp_find_unused_parameters_true" if recipe.widths.sampling == "sandwich" else "ddp"


def _logger(name: str, folder: Path) -> Logger:
    if name == "csv":
        return CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)
    if name == "tensorboard":
        return TensorBoardLogger(folder, name="", version="tensorboard")
    try:
        return WandbLogger(name=folder.name, save_dir=folder)
    except ModuleNotFoundError as error:
        raise MissingExtraError("wandb", "wandb", "the wandb logger") from error


@contextmanager
def _readable_failures(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Turn what commonly ends a run into one clear sentence."""
    resume = f"the last whole epoch is safe in {folder / 'checkpoints'}; the same command with --resume goes on from it"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(_memory_message(recipe, resume)) from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "out of memory" not in str(error):
            raise
        raise TrainingError(_memory_message(recipe, resume)) from error
    except MemoryError as error:
        raise TrainingError(_memory_message(recipe, resume)) from error
    except OSError as error:
        raise TrainingError(
            f"cannot write to {folder}: {error.strerror or error}; free some space: {resume}"
        ) from error


def _memory_message(recipe: Recipe, resume: str) -> str:
    return (
        f"not enough memory for a batch of {recipe.data.batch_size}; lower --data.batch_size or --data.crop, or use "
        f"--trainer.precision bf16-mixed. {resume[0].upper()}{resume[1:]}"
    )


def _finish(
    recipe: Recipe, data: SegmentationData, task: SegmentationTask, path: Path, *, writes: bool
) -> dict[float, Scores]:
    """Calibrate and score every width, in all processes; write the bundle, in one."""
    model = task.model
    recalibrate(model, data.calibration_batches(_CALIBRATION_BATCHES), recipe.widths.calibrate)
    widths = available_widths(model)
    scores = evaluate(model, data.val_dataloader(), widths=widths, device=task.device)
    if writes:
        size = recipe.data.size or data.crop
        header = BundleHeader(
            architecture={"name": recipe.model.name, "args": recipe.model.args},
            classes=data.classes,
            widths=task.widths,
            calibrated_widths=tuple(width for width in widths if width not in task.widths),
            divisor=recipe.widths.divisor,
            size=size,
            mean=data.mean,
            std=data.std,
            metrics=_metrics(model, scores, size),
            recipe=recipe_to_dict(recipe),
            provenance=_provenance(recipe, data),
        )
        save_bundle(path, model, header)
    return scores


def _metrics(model: SegmentationModel, scores: dict[float, Scores], size: tuple[int, int]) -> dict[str, Any]:
    """Accuracy and cost per width, for the bundle's header; the confusion matrices stay out of it."""
    costs = {cost.width: cost for cost in profile(model.cpu(), scores, size, latency=False)}
    result = {}
    for width, score in scores.items():
        entry = {name: value for name, value in score.to_dict().items() if name != "confusion"}
        result[f"{width:g}"] = {**entry, "params": costs[width].params, "macs": costs[width].macs}
    return result


def _provenance(recipe: Recipe, data: SegmentationData) -> dict[str, Any]:
    packages = ("torch", "torchvision", "timm", "lightning")
    return {
        "data": data.source.name,
        "data_licence": data.source.licence,
        "data_citation": data.source.citation,
        "seed": recipe.trainer.seed,
        "epoch": recipe.trainer.keep,
        "litheseg": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
