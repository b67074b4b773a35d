"""Cross pseudo supervision: two networks of one architecture, each taught by the other's labels.

Either is an ordinary task whose teacher is the other network as it is now; they differ in nothing but their first
weights. The first one is kept in the end. It does not know terms, views or thresholds: those are the two tasks'.

Paper: Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021, with CutMix
(Sec. 3.3); so are the teachers of MGD (Qin et al., ECCV 2022) trained.

Usage:
    >>> task = CrossPseudoTask(left, right)
    >>> Trainer().fit(task, datamodule=data)
    >>> task.model  # the left one
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from litheseg.models import SegmentationModel
from litheseg.training.optimization import build_optimizer, lr_scheduler
from litheseg.training.task import SegmentationTask

__all__ = ["CrossPseudoTask"]


class CrossPseudoTask(L.LightningModule):
    """See the module.

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
        # Both are asked before either trains, which moves batch-norm statistics.
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
        config, steps = self.left.optimizer_config, self.left.total_steps
        optimizer = build_optimizer(nn.ModuleList(self.students), config)
        return lr_scheduler(optimizer, config, steps or int(self.trainer.estimated_stepping_batches))
