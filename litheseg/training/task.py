"""The one training task: widths x teachers x objectives.

A step runs each planned width, widest first, on all rows of the step, asks the teachers for their lessons, sums the
objectives and averages over the widths. The task never asks which paper it is running: SlimSeg, MGD and plain
supervision differ only in what is handed in. It does not know data sources, files or the command line.

Usage:
    >>> objectives = {"main": Objective(CrossEntropyTerm()), "kl": Objective(KLTerm(), teacher="wider")}
    >>> task = SegmentationTask(model, objectives, teachers={"wider": NextWider()}, widths=(1, 0.5))
    >>> Trainer().fit(task, datamodule=data)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from litheseg.evaluation.metrics import SegmentationMetrics
from litheseg.losses.terms import StepContext, Term
from litheseg.models import SegmentationModel
from litheseg.models.base import resize
from litheseg.nn import set_width
from litheseg.training.config import OptimizerConfig
from litheseg.training.optimization import build_optimizer, lr_scheduler
from litheseg.training.perturb import FeatureDropout
from litheseg.training.streams import LABELLED, PERTURBED, Outputs, Step
from litheseg.training.teachers import Teacher, at_size

__all__ = ["Objective", "SegmentationTask", "plan_widths"]


@dataclass(frozen=True)
class Objective:
    """A term, on which rows it is summed, and whose lesson it reads.

    Attributes:
        term: the loss.
        stream: labelled, unlabelled or perturbed.
        teacher: name of the task's teacher whose lesson it reads; None for the labels.
        optional: a term on labels that is left out for widths that have a lesson.
        warmup: share of all steps over which its weight rises linearly from 0.
    """

    term: Term
    stream: str = LABELLED
    teacher: str | None = None
    optional: bool = False
    warmup: float = 0.0


def plan_widths(widths: Sequence[float], sampling: str, samples: int, *, seed: int, step: int) -> tuple[float, ...]:
    """The widths of one step, widest first; with "sandwich" they depend on seed and step only.

    Sandwich rule: the widest, the narrowest and `samples` random others (Universally Slimmable Networks, Sec. 3.1).
    """
    ordered = sorted(widths, reverse=True)
    if sampling == "all" or len(ordered) <= 2 + samples:
        return tuple(ordered)
    others = random.Random(f"{seed}/{step}").sample(ordered[1:-1], samples)
    return tuple(sorted([ordered[0], ordered[-1], *others], reverse=True))


class SegmentationTask(L.LightningModule):
    """See the module.

    Args:
        model: elastic, or plain with widths (1,).
        objectives: what is summed, by name.
        teachers: by the names that objectives use.
        widths: the widths to train and to validate.
        sampling: "all" or "sandwich".
        samples: random widths of a sandwich.
        optimizer: how weights move.
        total_steps: of the whole run, for the schedules; None to ask the Trainer, which then loads the training batches
            too early to resume within an epoch.
        seed: of everything random in a step.
        compile: run the training passes through `torch.compile`.
    """

    def __init__(
        self,
        model: SegmentationModel,
        objectives: Mapping[str, Objective],
        *,
        teachers: Mapping[str, Teacher] | None = None,
        widths: Sequence[float] = (1.0,),
        sampling: str = "all",
        samples: int = 2,
        optimizer: OptimizerConfig | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = dict(objectives)
        self.terms = nn.ModuleDict({name: objective.term for name, objective in objectives.items()})
        self.teachers = nn.ModuleDict(teachers or {})
        self.widths = tuple(sorted(set(widths), reverse=True))
        self.sampling, self.samples = sampling, samples
        self.optimizer_config, self.total_steps = optimizer or OptimizerConfig(), total_steps
        self.seed, self.compile_outputs = seed, compile
        perturbs = any(objective.stream == PERTURBED for objective in objectives.values())
        self._dropout = FeatureDropout(model) if perturbs else None
        self._outputs: Callable[[Tensor], Outputs] = model.outputs
        self.metrics = nn.ModuleList(SegmentationMetrics(model.num_classes) for _ in self.widths)

    @property
    def students(self) -> tuple[SegmentationModel, ...]:
        """All networks that are trained."""
        return (self.model,)

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
        """Let the teachers look at a batch."""
        step = Step.of(batch, perturbed=self._dropout is not None)
        for teacher in self._teachers().values():
            teacher.begin(step)
        return step

    def loss(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step that has begun, and each addend, detached, as NAME@WIDTH."""
        plan = plan_widths(self.widths, self.sampling, self.samples, seed=self.seed, step=self.global_step)
        shared: dict[Any, Any] = {}
        values: dict[str, Tensor] = {}
        totals = []
        for width in plan:
            addends = self._addends(width, step, shared)
            totals.append(torch.stack(list(addends.values())).sum())
            values |= {f"{name}@{width:g}": value.detach() for name, value in addends.items()}
            values[f"loss@{width:g}"] = totals[-1].detach()
        return torch.stack(totals).mean(), values

    def _addends(self, width: float, step: Step, shared: dict[Any, Any]) -> dict[str, Tensor]:
        """The weighted objectives of one width."""
        outputs = at_size(self._student(width, step), step.size)
        parts = {stream: step.part(outputs, stream) for stream in step.masks}
        contexts = self._contexts(width, step, parts, shared)
        taught = {stream for (stream, _), context in contexts.items() if context.teacher is not None}
        addends = {}
        for name, objective in self.objectives.items():
            context = contexts.get((objective.stream, objective.teacher))
            spared = objective.teacher is None and objective.optional and objective.stream in taught
            if context is not None and not spared:
                addends[name] = self._ramp(objective.warmup) * objective.term(context)
        for teacher in self._teachers().values():
            teacher.observe(width, parts)
        return addends

    def _contexts(
        self, width: float, step: Step, parts: dict[str, Outputs], shared: dict[Any, Any]
    ) -> dict[tuple[str, str | None], StepContext]:
        """By stream and teacher (None: the labels); one for all terms that share it, where a teacher has a lesson."""
        contexts: dict[tuple[str, str | None], StepContext] = {}
        for stream, mask in step.masks.items():
            contexts[stream, None] = StepContext(parts[stream], None, mask, width, shared)
            for name, teacher in self._teachers().items():
                lesson = teacher.lesson(width, stream)
                if lesson is not None:
                    contexts[stream, name] = StepContext(parts[stream], lesson, mask, width, shared)
        return contexts

    def _student(self, width: float, step: Step) -> Outputs:
        set_width(self.model, width)
        if self._dropout is None or PERTURBED not in step.masks:
            return self._outputs(step.image)
        with self._dropout.on(step.rows(PERTURBED)):
            return self._outputs(step.image)

    def _ramp(self, warmup: float) -> float:
        total = self.total_steps or 0
        return min(1.0, (self.global_step + 1) / (warmup * total)) if warmup * total > 1 else 1.0

    def _teachers(self) -> dict[str, Teacher]:
        return dict(self.teachers.items())  # type: ignore[arg-type]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let a teacher that follows the student follow."""
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
        """The mIoU of the validation so far, per width and their mean; the next one begins anew."""
        scores = {}
        for width, metrics in zip(self.widths, self.metrics, strict=True):
            assert isinstance(metrics, SegmentationMetrics)
            scores[f"val/miou@{width:g}"] = float(metrics.compute().miou)
            metrics.reset()
        return scores | {"val/miou": sum(scores.values()) / len(scores)}

    # --- optimization ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, its rate set at every step."""
        steps = self.total_steps or int(self.trainer.estimated_stepping_batches)
        return lr_scheduler(build_optimizer(self.model, self.optimizer_config), self.optimizer_config, steps)
