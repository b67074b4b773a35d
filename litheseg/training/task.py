"""The one training task: widths x teacher x terms.

A step runs each planned width, widest first, asks the teacher for its lesson, sums the terms and averages over the
widths. The task never asks which paper it is running: SlimSeg, plain supervision and in-place distillation differ only
in what is handed in. It does not know data sources, files or the command line.

Usage:
    >>> task = SegmentationTask(model, terms={"main": CrossEntropyTerm()}, teacher=NextWider(), widths=(1, 0.5))
    >>> Trainer().fit(task, datamodule=data)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from litheseg.evaluation.metrics import SegmentationMetrics
from litheseg.losses.terms import StepContext, Term
from litheseg.models import SegmentationModel
from litheseg.models.base import resize
from litheseg.nn import set_width
from litheseg.training.config import OptimizerConfig
from litheseg.training.optimization import build_optimizer, schedule
from litheseg.training.teachers import Nobody, Teacher, at_size

__all__ = ["SegmentationTask", "plan_widths"]


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
        terms: by name; those with `needs_teacher` count only where there is a lesson.
        teacher: who teaches.
        widths: the widths to train and to validate.
        sampling: "all" or "sandwich".
        samples: random widths of a sandwich.
        hard_labels: whether a width with a lesson also learns from the labels.
        optimizer: how weights move.
        total_steps: of the whole run, for the schedule; None to ask the Trainer, which then loads the training batches
            too early to resume within an epoch.
        seed: of everything random in a step.
        compile: run the training passes through `torch.compile`.
    """

    def __init__(
        self,
        model: SegmentationModel,
        *,
        terms: Mapping[str, Term],
        teacher: Teacher | None = None,
        widths: Sequence[float] = (1.0,),
        sampling: str = "all",
        samples: int = 2,
        hard_labels: bool = True,
        optimizer: OptimizerConfig | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher if teacher is not None else Nobody()
        self.terms = nn.ModuleDict(terms)
        self.widths = tuple(sorted(set(widths), reverse=True))
        self.sampling, self.samples, self.hard_labels = sampling, samples, hard_labels
        self.optimizer_config, self.total_steps = optimizer or OptimizerConfig(), total_steps
        self.seed, self.compile_outputs = seed, compile
        self._outputs: Callable[[Tensor], dict[str, Tensor]] = model.outputs
        self.metrics = nn.ModuleList(SegmentationMetrics(model.num_classes) for _ in self.widths)

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
        """The mean over the planned widths of the weighted sum of terms."""
        self.teacher.begin(batch["image"], batch["mask"].shape[-2:])
        plan = plan_widths(self.widths, self.sampling, self.samples, seed=self.seed, step=self.global_step)
        bands: dict[int, Any] = {}
        return torch.stack([self._width_loss(width, batch, bands) for width in plan]).mean()

    def _width_loss(self, width: float, batch: dict[str, Tensor], bands: dict[int, Any]) -> Tensor:
        set_width(self.model, width)
        outputs = at_size(self._outputs(batch["image"]), batch["mask"].shape[-2:])
        lesson = self.teacher.lesson(width)
        context = StepContext(outputs, lesson, batch["mask"], width, bands)
        total = outputs["logits"].new_zeros((), dtype=torch.float32)
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            if self._applies(term, lesson is not None):
                value = term(context)
                self._log_training(f"train/{name}@{width:g}", value)
                total = total + value
        self.teacher.observe(width, outputs)
        self._log_training(f"train/loss@{width:g}", total)
        return total

    def _applies(self, term: Term, has_lesson: bool) -> bool:
        return has_lesson if term.needs_teacher else self.hard_labels or not has_lesson

    def _log_training(self, name: str, value: Tensor) -> None:
        self.log(name, value.detach(), on_step=False, on_epoch=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let a teacher that follows the student follow."""
        super().optimizer_step(*args, **kwargs)
        self.teacher.update(self.model)

    # --- validation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score every width on labels at their own resolution."""
        for width, metrics in zip(self.widths, self.metrics, strict=True):
            set_width(self.model, width)
            logits = resize(self.model(batch["image"]), batch["mask"].shape[-2:])
            metrics.update(logits.argmax(1), batch["mask"])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log mIoU per width and their mean."""
        scores = []
        for width, metrics in zip(self.widths, self.metrics, strict=True):
            assert isinstance(metrics, SegmentationMetrics)
            scores.append(float(metrics.compute().miou))
            metrics.reset()
            self.log(f"val/miou@{width:g}", scores[-1], prog_bar=True)
        self.log("val/miou", sum(scores) / len(scores))

    # --- optimization ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, its rate set at every step."""
        optimizer = build_optimizer(self.model, self.optimizer_config)
        steps = self.total_steps or int(self.trainer.estimated_stepping_batches)
        factor = schedule(self.optimizer_config, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }
