"""What a training run shows: what begins, how far it is and how long it will take, losses and scores.

The same facts on a terminal, in a file and in a notebook, see `litheseg.progress`.

Usage:
    >>> say_what_begins(recipe, data, task, trainer)
    >>> Trainer(callbacks=[TrainingDisplay()], enable_progress_bar=False)
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from itertools import starmap
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from litheseg.bundle.verdicts import worst_class
from litheseg.data.loading.datamodule import SegmentationData
from litheseg.machine import host_facts
from litheseg.progress import Work, say, work
from litheseg.tables import short_number
from litheseg.training.build import Task
from litheseg.training.recipe import Objective, Recipe

__all__ = ["TrainingDisplay", "say_what_begins"]

_EVERY = 10.0  # seconds between lines of epochs that were not validated
_LOOK = 1.0  # seconds between two looks at the loss, each of which waits for the device


def say_what_begins(recipe: Recipe, data: SegmentationData, task: Task, trainer: L.Trainer) -> None:
    """What is going to be trained, on what, and where.

    Args:
        recipe: of the run.
        data: its images; read now, if they were not.
        task: with the network.
        trainer: that is going to fit.
    """
    config, steps = recipe.trainer, data.steps_per_epoch
    place = trainer.strategy.root_device
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else str(host_facts()["cpu"])
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if place.type == "cpu" else ""
    several = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    loose = f", {data.unlabelled_count} unlabelled" if data.unlabelled is not None else ""
    encoder = [str(recipe.model.args[name]) for name in ("encoder", "decoder") if name in recipe.model.args]
    weights = sum(weight.numel() for weight in task.model.parameters())
    facts = {
        "device": f"{place} ({where}){threads}{several}, {config.precision}",
        "images": f"{data.labelled_count} labelled{loose}, {data.validation_count} to validate on ({data.source.name})",
        "size": f"{data.crop[0]}x{data.crop[1]} pixels, {data.batch_size} images a step",
        "steps": f"{config.epochs * steps:,}: {config.epochs} epochs of {steps}, validated every {config.val_every}",
        "network": ", ".join([recipe.model.name, *encoder, f"{short_number(weights)} parameters"]),
        "widths": ", ".join(f"{width:g}" for width in task.widths),
        "losses": ", ".join(starmap(_objective, recipe.objectives.items())),
    }
    for name, fact in facts.items():
        say(f"{name:<9}{fact}")


def _objective(name: str, objective: Objective) -> str:
    weight = "" if objective.weight == 1 else f" x {objective.weight:g}"
    return f"{name}{weight}" + (f" from {objective.teacher}" if objective.teacher else "")


class TrainingDisplay(Callback):
    """Steps, loss and time left while a run goes on; a line with losses and scores at each validation."""

    def __init__(self) -> None:
        self._training, self._validating = ExitStack(), ExitStack()
        self._steps: Work | None = None
        self._batches: Work | None = None
        self._looked = self._lined = self._begun = -math.inf
        self._loss = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From the step that a resumed run is at."""
        self._steps = self._training.enter_context(work("training, steps"))
        self._steps.show(trainer.global_step, _total(trainer), free=trainer.global_step)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step more; the loss now and then."""
        if self._steps is None:
            return
        if time.monotonic() >= self._looked + _LOOK:
            self._looked, self._loss = time.monotonic(), f"loss {float(outputs['loss']):.3f}"
        self._steps.total = _total(trainer)  # the number of epochs may change while it trains
        self._steps.advance(1, f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", self._loss)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show it as part of the training."""
        if self._steps is not None:
            batches = int(sum(trainer.num_val_batches))
            self._batches = self._validating.enter_context(work("validating, batches", batches))

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """One batch more."""
        if self._batches is not None:
            self._batches.advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Back to the training."""
        self._batches = None
        self._validating.close()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say the losses, and the scores where the epoch was validated; epochs of less than seconds may pass unsaid."""
        epoch, now = trainer.current_epoch + 1, time.monotonic()
        validated = epoch % (trainer.check_val_every_n_epoch or 1) == 0
        if self._steps is None or not (validated or now >= self._lined + _EVERY):
            return
        parts = _shown(trainer, "train/loss@", "train/", "{:.3f}", 1)
        if validated:
            parts += _shown(trainer, "val/miou@", "val/", "{:.2f}", 100) + _worst(trainer, pl_module)
        others = {name: value for name, value in trainer.progress_bar_metrics.items() if not name.startswith("val/")}
        parts += [f"{name.rpartition('/')[2]} {value:.2f}" for name, value in others.items()]
        say(f"epoch {epoch}/{trainer.max_epochs}  {'  '.join(parts)}  {now - self._begun:.1f}s")
        self._lined = now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """It is done."""
        self._training.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say how far it came."""
        for shown in (self._validating, self._training):
            shown.__exit__(type(exception), exception, exception.__traceback__)


def _total(trainer: L.Trainer) -> int:
    return (trainer.max_epochs or 0) * int(trainer.num_training_batches)


def _shown(trainer: L.Trainer, start: str, drop: str, pattern: str, scale: float) -> list[str]:
    """Parts such as "loss@0.5 1.234" for each logged name with this start, widest first."""
    metrics = trainer.callback_metrics
    names = sorted((name for name in metrics if name.startswith(start)), key=lambda name: -float(name.split("@")[1]))
    return [f"{name.removeprefix(drop)} {pattern.format(scale * float(metrics[name]))}" for name in names]


def _worst(trainer: L.Trainer, task: Any) -> list[str]:
    """The worst class of any width."""
    names = trainer.datamodule.classes.names  # type: ignore[attr-defined]
    found = [(worst_class(names, scores.iou), width) for width, scores in task.scores.items()]
    known = [(worst[1], worst[0], width) for worst, width in found if worst is not None]
    return [f"worst {name} {100 * iou:.2f} @{width:g}" for iou, name, width in sorted(known)[:1]]
