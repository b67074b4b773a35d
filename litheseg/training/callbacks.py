"""What happens around training steps: what is shown, when weights are kept, and how a run is stopped.

None of it knows which method is trained.

Usage:
    >>> Trainer(callbacks=[*checkpoint_callbacks(folder), RequireFinite(), EpochLines(), StopOnInterrupt(path)])
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from litheseg.errors import Interrupted, TrainingError
from litheseg.training.ranks import is_first_process

__all__ = [
    "EpochLines",
    "RequireFinite",
    "StayStopped",
    "StopOnInterrupt",
    "ValidateLastEpoch",
    "checkpoint_callbacks",
    "progress_callback",
    "require_finite",
]

_FINITE_EVERY = 50  # steps; each look waits for the device


def checkpoint_callbacks(folder: Path, *, averaged: bool = False) -> list[Callback]:
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


def require_finite(trainer: L.Trainer, module: L.LightningModule, outputs: Any) -> None:
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


class RequireFinite(Callback):
    """Stop when the loss is no number any more: before an epoch's weights are scored or replace a checkpoint."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the end of each epoch, and now and then in between."""
        if trainer.is_last_batch or (batch_idx + 1) % _FINITE_EVERY == 0:
            require_finite(trainer, pl_module, outputs)


class ValidateLastEpoch(Callback):
    """The last epoch is validated whatever the interval."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """For a run that is resumed within its last epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shorten the interval to one epoch."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class StayStopped(Callback):
    """A run that stopped early and is resumed (it was killed before its bundle was written) does not train on."""

    def __init__(self, stopper: EarlyStopping) -> None:
        self._stopper = stopper

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The patience that was used up comes out of the checkpoint."""
        if self._stopper.wait_count >= self._stopper.patience:
            trainer.should_stop = True


class StopOnInterrupt(Callback):
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
            print("\nstopping after this step; Ctrl-C again to stop at once without saving", file=sys.stderr)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if asked; at the end of an epoch, let it be validated and saved as always."""
        # The signal reaches processes at different steps, and all must save together.
        if trainer.is_last_batch or not trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            return
        require_finite(trainer, pl_module, outputs)
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


class EpochLines(Callback):
    """One line per epoch, for logs and pipes where a progress bar would be noise."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the losses, and the scores where the epoch was validated."""
        if not trainer.is_global_zero:
            return
        parts = _shown(trainer, "train/loss@", "train/", "{:.3f}", 1)
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0:
            parts += _shown(trainer, "val/miou@", "val/", "{:.2f}", 100)
        others = {name: value for name, value in trainer.progress_bar_metrics.items() if not name.startswith("val/")}
        parts += [f"{name.rpartition('/')[2]} {value:.2f}" for name, value in others.items()]
        seconds = time.monotonic() - self._start
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(parts)}  {seconds:.1f}s", flush=True)


def _shown(trainer: L.Trainer, start: str, drop: str, pattern: str, scale: float) -> list[str]:
    """Parts such as "loss@0.5 1.234" for each logged name with this start, widest first."""
    metrics = trainer.callback_metrics
    names = sorted((name for name in metrics if name.startswith(start)), key=lambda name: -float(name.split("@")[1]))
    return [f"{name.removeprefix(drop)} {pattern.format(scale * float(metrics[name]))}" for name in names]


def progress_callback() -> Callback:
    """A progress bar on a terminal, lines elsewhere."""
    if sys.stdout.isatty():
        return RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3f"))
    return EpochLines()
