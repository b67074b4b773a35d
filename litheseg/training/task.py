"""The one training task: widths x teachers x objectives.

A step runs each planned width, widest first, on all rows of the step, asks the teachers for their outputs, sums the
objectives and averages over the widths. SlimSeg, MGD and plain supervision differ
only in the widths, teachers and objectives handed in.

Usage:
    >>> objectives = {"labels": Objective(CrossEntropy()), "kl": Objective(KL(), teacher="wider")}
    >>> task = SegmentationTask(model, objectives, teachers={"wider": NextWider()}, widths=(1, 0.5))
    >>> Trainer().fit(task, datamodule=data)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from litheseg.evaluation.metrics import Scores, SegmentationMetrics
from litheseg.losses import StepContext
from litheseg.models import SegmentationModel
from litheseg.models.base import resize
from litheseg.nn import set_width
from litheseg.training.config import OptimizerConfig
from litheseg.training.horizon import Horizon
from litheseg.training.optimization import build_optimizer, lr_scheduler
from litheseg.training.recipe import Objective
from litheseg.training.streams import DROPPING, LABELLED, FeatureDropout, Outputs, Step
from litheseg.training.teacher import Teacher, at_size

__all__ = ["CrossPseudoTask", "SegmentationTask", "plan_widths"]


def plan_widths(widths: Sequence[float], sandwich: int | None, *, seed: int, step: int) -> tuple[float, ...]:
    """The widths of one step, widest first; they depend on seed and step only.

    Sandwich rule: the widest, the narrowest and so many random others (Universally Slimmable Networks, Sec. 3.1).
    """
    ordered = sorted(widths, reverse=True)
    if sandwich is None or len(ordered) <= 2 + sandwich:
        return tuple(ordered)
    others = random.Random(f"{seed}/{step}").sample(ordered[1:-1], sandwich)
    return tuple(sorted([ordered[0], ordered[-1], *others], reverse=True))


class SegmentationTask(L.LightningModule):
    """See the module.

    Args:
        model: elastic, or plain with widths (1,).
        objectives: what is summed, by name.
        teachers: by the names that objectives use.
        widths: the widths to train and to validate.
        sandwich: random widths of a step besides the widest and the narrowest; None to run all.
        class_weights: float [K] by weighting, for the losses that use them.
        optimizer: how weights move.
        horizon: of the whole run, for the schedules; None to ask the Trainer, which then loads the training batches too
            early to resume within an epoch.
        seed: of everything random in a step.
        compile: run the training passes through `torch.compile`.

    Attributes:
        scores: of the last validation, by width.
    """

    def __init__(
        self,
        model: SegmentationModel,
        objectives: Mapping[str, Objective],
        *,
        teachers: Mapping[str, Teacher] | None = None,
        widths: Sequence[float] = (1.0,),
        sandwich: int | None = None,
        class_weights: Mapping[str, Tensor] | None = None,
        optimizer: OptimizerConfig | None = None,
        horizon: Horizon | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = dict(objectives)
        self.teachers = nn.ModuleDict(teachers or {})
        self.widths = tuple(sorted(set(widths), reverse=True))
        self.sandwich = sandwich
        self._weightings = tuple(class_weights or ())
        for name, weights in (class_weights or {}).items():  # they move with the model but stay out of checkpoints
            self.register_buffer(f"class_weights_{name}", weights, persistent=False)
        self.optimizer_config, self.horizon = optimizer or OptimizerConfig(), horizon
        self.seed, self.compile_outputs = seed, compile
        self._streams = frozenset(stream for objective in objectives.values() for stream in objective.streams)
        self._dropout = FeatureDropout(model) if self._streams & DROPPING else None
        self._outputs: Callable[[Tensor], Outputs] = model.outputs
        self.metrics = nn.ModuleList(SegmentationMetrics(model.num_classes) for _ in self.widths)
        self.scores: dict[float, Scores] = {}

    @property
    def students(self) -> tuple[SegmentationModel, ...]:
        """All networks that are trained to be kept."""
        return (self.model,)

    @property
    def learners(self) -> nn.Module:
        """All that the optimizer moves: the model, and teachers that learn."""
        return nn.ModuleList([self.model, self.teachers])

    def forward(self, image: Tensor) -> Tensor:
        """Logits N x K x H x W at the current width."""
        result: Tensor = self.model(image)
        return result

    # --- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Compile if asked; only now, because callbacks may have copied the task and compiled code cannot be."""
        if self.compile_outputs:
            self._outputs = torch.compile(self.model.outputs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by step and rank, so that a resumed run repeats exactly what an unbroken one does."""
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean over the planned widths of the sum of objectives."""
        loss, values = self.loss(self.begin(batch))
        logged = {f"train/{name}": value for name, value in values.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def begin(self, batch: Mapping[str, Tensor]) -> Step:
        """Hand a batch to the teachers."""
        step = Step.of(batch, self._streams)
        for teacher in self._teachers().values():
            teacher.begin(step)
        return step

    def loss(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step that has begun; each addend, detached, as NAME@WIDTH, and what each teacher learns by."""
        plan = plan_widths(self.widths, self.sandwich, seed=self.seed, step=self.global_step)
        bands: dict[Any, Any] = {}
        values: dict[str, Tensor] = {}
        totals = []
        for width in plan:
            addends = self._addends(width, step, bands)
            totals.append(torch.stack(list(addends.values())).sum())
            values |= {f"{name}@{width:g}": value.detach() for name, value in addends.items()}
            values[f"loss@{width:g}"] = totals[-1].detach()
        found = {name: teacher.loss(step) for name, teacher in self._teachers().items()}
        theirs = {name: loss for name, loss in found.items() if loss is not None}
        values |= {name: loss.detach() for name, loss in theirs.items()}
        return sum(theirs.values(), start=torch.stack(totals).mean()), values

    def _addends(self, width: float, step: Step, bands: dict[Any, Any]) -> dict[str, Tensor]:
        """The weighted objectives of one width."""
        outputs = at_size(self._student(width, step), step.size)
        parts = {stream: step.part(outputs, stream) for stream in step.masks}
        contexts = self._contexts(width, step, parts, bands)
        addends: dict[str, Tensor] = {}
        for name, objective in self.objectives.items():
            if objective.widths == "widest" and width != self.widths[0]:
                continue
            factor = objective.weight * self._ramp(objective.warmup)
            for stream in objective.streams:
                context = contexts.get((stream, objective.teacher, objective.view(stream)))
                if context is not None:
                    addends[name] = addends.get(name, 0) + factor * objective.loss(context)
        for teacher in self._teachers().values():
            teacher.observe(width, parts)
        return addends

    def _contexts(
        self, width: float, step: Step, parts: dict[str, Outputs], bands: dict[Any, Any]
    ) -> dict[tuple[str, str | None, str], StepContext]:
        """What losses read, by stream, teacher and what it looked at, where it has outputs for this width."""
        weights = {weighting: getattr(self, f"class_weights_{weighting}") for weighting in self._weightings}
        contexts: dict[tuple[str, str | None, str], StepContext] = {}
        for objective in self.objectives.values():
            for stream in step.masks:
                name, view = objective.teacher, objective.view(stream)
                taught = self._teachers()[name].output(width, view) if name else None
                if name is None or taught is not None:
                    context = StepContext(parts[stream], step.masks[stream], taught, stream == LABELLED, weights, bands)
                    contexts.setdefault((stream, name, view), context)
        return contexts

    def _student(self, width: float, step: Step) -> Outputs:
        set_width(self.model, width)
        if self._dropout is None:
            return self._outputs(step.image)
        with self._dropout.on({stream: step.rows(stream) for stream in step.masks if stream in DROPPING}):
            return self._outputs(step.image)

    def _ramp(self, warmup: float) -> float:
        if self.horizon is None or warmup * self.horizon.total <= 1:
            return 1.0
        return min(1.0, (self.horizon.at(self.global_step) + 1) / (warmup * self.horizon.total))

    def _teachers(self) -> dict[str, Teacher]:
        return dict(self.teachers.items())  # type: ignore[arg-type]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the teachers (the moving average)."""
        super().optimizer_step(*args, **kwargs)
        for teacher in self._teachers().values():
            teacher.update(self.model)

    # --- validation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score every width on labels at their own resolution."""
        for width, metrics in zip(self.widths, self.metrics, strict=True):
            set_width(self.model, width)
            logits = resize(self.model(batch["image"]), batch["mask"].shape[-2:])
            metrics.update(logits.max(1).indices, batch["mask"])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log mIoU per width and their mean."""
        for name, score in self.take_scores().items():
            self.log(name, score, prog_bar="@" in name)

    def take_scores(self) -> dict[str, float]:
        """MIoU of the validation so far, per width and their mean, and the worst class's IoU; the next begins anew."""
        for width, metrics in zip(self.widths, self.metrics, strict=True):
            assert isinstance(metrics, SegmentationMetrics)
            self.scores[width] = metrics.compute()
            metrics.reset()
        scores = {f"val/miou@{width:g}": float(found.miou) for width, found in self.scores.items()}
        worst = {f"val/worst@{width:g}": float(np.nanmin([1.0, *found.iou])) for width, found in self.scores.items()}
        return scores | {"val/miou": sum(scores.values()) / len(scores)} | worst

    # --- optimization ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, its rate set at every step."""
        horizon = self.horizon or Horizon(int(self.trainer.estimated_stepping_batches))
        return lr_scheduler(build_optimizer(self.learners, self.optimizer_config), self.optimizer_config, horizon)


class CrossPseudoTask(L.LightningModule):
    """Cross pseudo supervision: two networks of one architecture, each with the other's current weights as teacher.

    They differ only in their initial weights. Paper: Chen et al., CVPR 2021, with CutMix (Sec. 3.3); the teachers of
    MGD (Qin et al., ECCV 2022) are trained this way.

    Args:
        left: teaches `right`, and is the one that is validated and kept.
        right: teaches `left`.
    """

    def __init__(self, left: SegmentationTask, right: SegmentationTask) -> None:
        super().__init__()
        self.left, self.right = left, right

    @property
    def model(self) -> SegmentationModel:
        """The network to keep."""
        return self.left.model

    @property
    def students(self) -> tuple[SegmentationModel, ...]:
        """All networks that are trained."""
        return self.left.model, self.right.model

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths of either."""
        return self.left.widths

    @property
    def scores(self) -> dict[float, Scores]:
        """Of the left network's last validation, by width."""
        return self.left.scores

    def on_fit_start(self) -> None:
        """See `SegmentationTask.on_fit_start`."""
        self.left.on_fit_start()
        self.right.on_fit_start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """See `SegmentationTask.on_train_batch_start`."""
        self.left.on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The sum of both losses: they share no weights."""
        losses = []
        # Both compute targets before either trains, because training moves batch-norm statistics.
        steps = self.left.begin(batch), self.right.begin(batch)
        for name, task, step in zip(("", "peer/"), (self.left, self.right), steps, strict=True):
            loss, values = task.loss(step)
            losses.append(loss)
            logged = {f"train/{name}{key}": value for key, value in values.items()}
            self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return torch.stack(losses).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score the left network."""
        self.left.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log mIoU per width and their mean, of the left network."""
        for name, score in self.left.take_scores().items():
            self.log(name, score, prog_bar="@" in name)

    def configure_optimizers(self) -> Any:
        """One optimizer for both."""
        config = self.left.optimizer_config
        horizon = self.left.horizon or Horizon(int(self.trainer.estimated_stepping_batches))
        optimizer = build_optimizer(nn.ModuleList([self.left.learners, self.right.learners]), config)
        return lr_scheduler(optimizer, config, horizon)
