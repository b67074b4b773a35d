"""Lightning's Trainer as a recipe wants it: devices, precision, callbacks, loggers.

It knows the run's folder, but neither data nor model.

Usage:
    >>> trainer = build_trainer(recipe, Path("runs/slimseg"), resumed=False)
    >>> trainer.fit(task, data)
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from litheseg.errors import MissingExtraError
from litheseg.training.callbacks import (
    RequireFinite,
    StayStopped,
    StopOnInterrupt,
    ValidateLastEpoch,
    checkpoint_callbacks,
    progress_callback,
)
from litheseg.training.config import Recipe, TrainerConfig
from litheseg.training.layout import on_cpu
from litheseg.training.storage import AtomicCheckpoints, Curves

__all__ = ["build_trainer", "quiet"]

# Lightning's advice that does not apply here.
_IRRELEVANT = (
    ".*does not have many workers.*",  # batches come out of memory
    ".*module.* in eval mode at the start of training.*",  # a teacher
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ".*find_unused_parameters=True was specified.*",
    ".*LeafSpec.*",
)


def quiet() -> None:
    """Leave out advice that does not apply here, and Lightning's remarks on what hardware there is."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", message)


def build_trainer(recipe: Recipe, folder: Path, extra: Sequence[Callback] = (), *, resumed: bool) -> L.Trainer:
    """The trainer of a run.

    Args:
        recipe: its sections `trainer` and `optimizer` count.
        folder: where everything is written.
        extra: callbacks that come first.
        resumed: whether the learning curves go on from those in `folder`.

    Raises:
        MissingExtraError: a logger that is not installed.
    """
    config = recipe.trainer
    quiet()
    return L.Trainer(
        default_root_dir=folder,
        max_epochs=config.epochs,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=_devices(config),
        num_nodes=config.nodes,
        strategy=_strategy(config),
        # Training images all have one size, so that the fastest convolutions of a GPU are found once.
        benchmark=recipe.data.size is not None,
        gradient_clip_val=recipe.optimizer.clip or None,
        check_val_every_n_epoch=min(config.val_every, config.epochs),
        callbacks=[*extra, *_callbacks(config, folder / "checkpoints")],
        logger=[_logger(name, folder, resumed) for name in config.loggers] or False,
        plugins=[AtomicCheckpoints()],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,  # the data module deals its own batches out
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
    )


def _callbacks(config: TrainerConfig, checkpoints: Path) -> list[Callback]:
    callbacks = [*checkpoint_callbacks(checkpoints, averaged=config.ema > 0), ValidateLastEpoch(), RequireFinite()]
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    if config.early_stop:
        # Right after validation: a validated epoch counts once.
        stopper = EarlyStopping("val/miou", mode="max", patience=config.early_stop, check_on_train_epoch_end=False)
        callbacks += [stopper, StayStopped(stopper)]
    return [*callbacks, progress_callback(), StopOnInterrupt(checkpoints / "last.ckpt")]


def _devices(config: TrainerConfig) -> int | str:
    return 1 if config.devices == "auto" and on_cpu(config) else config.devices


def _strategy(config: TrainerConfig) -> str:
    """Lightning's strategy; DDP must bear weights that a step leaves out.

    A sandwich leaves out norms, a head may have no loss term; to look for them costs a walk over the graph per step.
    """
    devices = _devices(config)
    count = torch.cuda.device_count() if devices == "auto" else int(devices)
    if config.strategy == "ddp" or (config.strategy == "auto" and count * config.nodes > 1):
        return "ddp_find_unused_parameters_true"
    return config.strategy


def _logger(name: str, folder: Path, resumed: bool) -> Logger:
    if name == "csv":
        return Curves(folder / "metrics.csv", keep=resumed)
    try:
        if name == "tensorboard":
            return TensorBoardLogger(folder, name="", version="tensorboard")
        return WandbLogger(name=folder.name, save_dir=folder)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, name, f"the {name} logger") from error
