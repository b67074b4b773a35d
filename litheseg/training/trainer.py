"""Lightning's Trainer, configured by a recipe: devices, precision, loggers, and what happens around training steps.

Its callbacks say when weights are kept, and how a run is stopped; what is shown is in `display`.

Usage:
    >>> trainer = build_trainer(recipe, Path("runs/slimseg"), resumed=False)
    >>> trainer.fit(task, data)
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from litheseg.errors import Interrupted, MissingExtraError, TrainingError
from litheseg.progress import say
from litheseg.training.config import TrainerConfig
from litheseg.training.display import TrainingDisplay
from litheseg.training.layout import on_cpu
from litheseg.training.mlflow_runs import MlflowCurves
from litheseg.training.ranks import is_first_process
from litheseg.training.recipe import Recipe
from litheseg.training.storage import AtomicCheckpoints, Curves

__all__ = ["build_trainer", "quiet"]

_FINITE_EVERY = 50  # steps; each look waits for the device
# Lightning's advice that does not apply here.
_IRRELEVANT = (
    ".*does not have many workers.*",  # batches come out of memory
    ".*module.* in eval mode at the start of training.*",  # a teacher
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ".*find_unused_parameters=True was specified.*",
    ".*LeafSpec.*",
)


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
        logger=[_logger(name, recipe, folder, resumed) for name in config.loggers] or False,
        plugins=[AtomicCheckpoints()],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,  # the data module distributes the batches itself
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def quiet() -> None:
    """Leave out advice that does not apply here, and Lightning's remarks on what hardware there is."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", message)


def _callbacks(config: TrainerConfig, checkpoints: Path) -> list[Callback]:
    callbacks = [*_checkpoint_callbacks(checkpoints, averaged=config.ema > 0), _ValidateLastEpoch(), _RequireFinite()]
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    if config.early_stop:
        # Right after validation: a validated epoch counts once.
        stopper = EarlyStopping("val/miou", mode="max", patience=config.early_stop, check_on_train_epoch_end=False)
        callbacks += [stopper, _StayStopped(stopper)]
    return [*callbacks, TrainingDisplay(), _StopOnInterrupt(checkpoints / "last.ckpt")]


def _devices(config: TrainerConfig) -> int | str:
    return 1 if config.devices == "auto" and on_cpu(config) else config.devices


def _strategy(config: TrainerConfig) -> str:
    """Lightning's strategy; DDP must accept weights that a step leaves out.

    A sandwich leaves out norms, a head may have no loss term; to look for them costs a walk over the graph per step.
    """
    devices = _devices(config)
    count = torch.cuda.device_count() if devices == "auto" else int(devices)
    return "ddp_find_unused_parameters_true" if count * config.nodes > 1 else "auto"


def _logger(name: str, recipe: Recipe, folder: Path, resumed: bool) -> Logger:
    if name == "csv":
        return Curves(folder / "metrics.csv", keep=resumed)
    try:
        if name == "tensorboard":
            return TensorBoardLogger(folder, name="", version="tensorboard")
        if name == "mlflow":
            return MlflowCurves(folder, recipe, keep=resumed)
        return WandbLogger(name=folder.name, save_dir=folder)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, name, f"the {name} logger") from error


# --- callbacks -------------------------------------------------------------------------------------------------------


def _checkpoint_callbacks(folder: Path, *, averaged: bool = False) -> list[Callback]:
    """Keep the end of every epoch as ``last.ckpt`` and the best mean mIoU on val as ``best.ckpt``.

    Args:
        folder: of both.
        averaged: weights are averaged by another callback, which adds the average to full checkpoints only.
    """
    shared: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **shared)
    best = ModelCheckpoint(
        filename="best",
        monitor="val/miou",
        mode="max",
        save_weights_only=not averaged,
        save_on_train_epoch_end=False,  # right after validation, when the score is fresh
        **shared,
    )
    return [last, best]


def _require_finite(trainer: L.Trainer, module: L.LightningModule, outputs: Any) -> None:
    """Raise a `TrainingError`, in all processes alike, when the loss or a weight is no number any more.

    Args:
        trainer: in a training step.
        module: what it trains.
        outputs: of the step; "loss", scalar.
    """
    loss = outputs["loss"].detach()
    sums = torch.stack([loss.float(), *(weight.detach().sum().float() for weight in module.parameters())])
    finite = bool(torch.isfinite(sums).all())
    if trainer.strategy.reduce_boolean_decision(finite, all=True):
        return
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    rate = max(group.get("initial_lr", group["lr"]) for group in groups)
    raise TrainingError(
        f"the loss became {float(loss):g} or a weight is no number any more, in epoch {trainer.current_epoch + 1}, at "
        f"a peak learning rate of {rate:g}; lower --optimizer.lr, set --optimizer.clip 1, or train with "
        "--trainer.precision 32-true, with another --output. The checkpoints of earlier epochs are intact"
    )


class _RequireFinite(Callback):
    """Stop when the loss is no number any more: before an epoch's weights are scored or replace a checkpoint."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check at the end of each epoch, and at intervals in between."""
        if trainer.is_last_batch or (batch_idx + 1) % _FINITE_EVERY == 0:
            _require_finite(trainer, pl_module, outputs)


class _ValidateLastEpoch(Callback):
    """The last epoch is validated whatever the interval."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """For a run that is resumed within its last epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shorten the interval to one epoch."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class _StayStopped(Callback):
    """A run that stopped early and is resumed (it was killed before its bundle was written) does not train on."""

    def __init__(self, stopper: EarlyStopping) -> None:
        self._stopper = stopper

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The early-stopping count comes from the checkpoint."""
        if self._stopper.wait_count >= self._stopper.patience:
            trainer.should_stop = True


class _StopOnInterrupt(Callback):
    """Ctrl-C lets the step finish, saves ``last.ckpt`` and raises `Interrupted`; a second Ctrl-C stops at once.

    So does SIGTERM, by which schedulers and containers stop a run; Lightning's own handler would wait for processes
    that did not get the signal.

    It must come after every callback that does something at the end of a step, or that would be missing from the file.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._asked, self._number = False, int(signal.SIGINT)
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._listens = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for the signals, but for those that this process was started to ignore."""
        if threading.current_thread() is threading.main_thread():
            self._listens = True
            for number, handler in self._before.items():
                if handler not in (signal.SIG_IGN, None):
                    signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked, self._number = True, number
        if is_first_process():
            say("stopping after this step; Ctrl-C again to stop at once without saving")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if asked; at the end of an epoch, let it be validated and saved as always."""
        # The signal reaches processes at different steps, and all must save together.
        if trainer.is_last_batch or not trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            return
        _require_finite(trainer, pl_module, outputs)
        trainer.save_checkpoint(self.checkpoint)
        raise self._interrupted(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if asked at the end of the epoch before, which is saved."""
        if trainer.global_step and trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            raise self._interrupted(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if asked in the last epoch; what is left is to score it."""
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            raise self._interrupted(trainer)
        self._give_back()

    def _interrupted(self, trainer: L.Trainer) -> Interrupted:
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 0)
        stop = Interrupted(
            f"stopped in epoch {epoch} of {trainer.max_epochs}; everything is saved in {self.checkpoint}. "
            "Go on with the same command and --resume"
        )
        stop.exit_status = 128 + self._number  # as shells count
        return stop

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        """As before the Trainer, which has a handler of its own and leaves it behind where a logger cannot end."""
        if self._listens:
            self._listens = False
            for number, handler in self._before.items():
                if handler not in (signal.SIG_IGN, None):
                    signal.signal(number, handler)
