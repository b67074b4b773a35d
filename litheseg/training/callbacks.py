"""What happens around training steps: what is shown, when weights are kept, and how a run is stopped.

None of it knows which method is trained.

Usage:
    >>> Trainer(callbacks=[CheckpointLast(folder), StopOnInterrupt(folder / "last.ckpt"), EpochLines()])
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from litheseg.errors import LithesegError

__all__ = ["EpochLines", "Interrupted", "StopOnInterrupt", "checkpoint_callbacks", "progress_callback"]


class Interrupted(LithesegError):
    """The user stopped the run; it is saved, and the message says how to go on."""


def checkpoint_callbacks(folder: Path) -> list[Callback]:
    """Keep the end of every epoch as ``last.ckpt`` and the best mean mIoU on val as ``best.ckpt``.

    Lightning writes each to a temporary file and renames it, so a full disk or a kill leaves the one before.
    """
    shared: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "auto_insert_metric_name": False}
    last = ModelCheckpoint(filename="last", save_top_k=1, save_on_train_epoch_end=True, **shared)
    best = ModelCheckpoint(filename="best", monitor="val/miou", mode="max", save_weights_only=True, **shared)
    return [last, best]


class StopOnInterrupt(Callback):
    """Ctrl-C lets the step finish, saves ``last.ckpt`` and raises `Interrupted`; a second Ctrl-C stops at once."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._asked = False
        self._previous: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for Ctrl-C."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after this step; Ctrl-C again to stop at once without saving", file=sys.stderr)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save and stop if asked."""
        if self._asked:
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(
                f"stopped in epoch {trainer.current_epoch + 1} of {trainer.max_epochs}; everything is saved in "
                f"{self.checkpoint}. Go on with the same command and --resume"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


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
        metrics = trainer.callback_metrics
        parts = [
            f"{name.removeprefix('train/')} {float(metrics[name]):.3f}"
            for name in sorted(metrics, reverse=True)
            if name.startswith("train/loss")
        ]
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0:
            parts += [
                f"{name.removeprefix('val/')} {100 * float(metrics[name]):.2f}"
                for name in sorted(metrics, reverse=True)
                if name.startswith("val/miou@")
            ]
        seconds = time.monotonic() - self._start
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(parts)}  {seconds:.1f}s", flush=True)


def progress_callback() -> Callback:
    """A progress bar on a terminal, lines elsewhere."""
    if sys.stdout.isatty():
        return RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3f"))
    return EpochLines()
