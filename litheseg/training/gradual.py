"""The schedule of gradual grouping: when alpha falls, how fading weights are kept small, when channels are relabelled.

Alpha depends on the step alone, so a resumed run goes on exactly, and is set on the layers that
`litheseg.nn.grouping.densify` made, by `fade` at the start of each step.

Paper: Vallurupalli et al., "Efficient Semantic Segmentation using Gradual Grouping", CVPR Workshops 2018 (Sec. 3.2). It
gives no schedule: shapes, start and length are our choice, and so are the safeguards.

Usage:
    >>> Trainer(callbacks=[GradualGrouping(GroupingConfig(shape="cosine"), Horizon(1000))])
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from litheseg.errors import RecipeError
from litheseg.nn import recalibrate
from litheseg.nn.assignment import find_relabelling
from litheseg.nn.grouping import GroupMask, fade, gradual_layers
from litheseg.training.config import GroupingConfig
from litheseg.training.horizon import Horizon
from litheseg.training.task import SegmentationTask

__all__ = ["GradualGrouping", "alpha_at", "damage"]

_TINY = 0.01  # what is left of alpha where the exponential is cut off


def alpha_at(config: GroupingConfig, share: float) -> tuple[int, float]:
    """Stage (from 0) and alpha (in [0, 1]) after `share` of all steps."""
    stages, since = len(config.stages) + 1, round(share - config.start, 9)  # 0.7 - 0.2 falls short of 0.5
    if since < 0:
        return 0, 1.0
    period = config.length + config.hold
    stage = min(int(since / period + 1e-9), stages - 1) if period else stages - 1
    position = (since - stage * period) / config.length if config.length else 1.0
    return stage, _shape(config, min(position, 1.0))


def _shape(config: GroupingConfig, position: float) -> float:
    """Alpha at a position in [0, 1] of a stage: 1 at its beginning, 0 at its end."""
    if position == 1.0:
        return 0.0
    if config.shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * position))
    if config.shape == "exponential":
        return (_TINY**position - _TINY) / (1 - _TINY)
    if config.shape == "step":
        return 1.0 - math.floor(position * config.steps) / config.steps
    return 1.0 - position


def damage(weight: Tensor, mask: GroupMask) -> float:
    """What cutting now would cost a layer: norm of the fading weights as they count, over that of all; in [0, 1]."""
    fading = mask.alpha * mask.fading(weight).norm()
    return float(fading / torch.hypot(fading, mask.kept(weight).norm()).clamp_min(1e-12))


class GradualGrouping(Callback):
    """See the module. It must come before whatever saves the weights at the end of a step.

    Args:
        config: the schedule.
        horizon: of the run.

    Raises:
        RecipeError: no step is left at alpha 0.
    """

    def __init__(self, config: GroupingConfig, horizon: Horizon) -> None:
        self._config, self._horizon = config, horizon
        if not self._is_done(horizon.total - 1):
            raise RecipeError(
                f"the grouping schedule is longer than the run: it ends after {config.end:g} of {horizon.total} steps, "
                "and no step is left at alpha 0; shorten grouping.start, length or hold, or train for more epochs"
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set alpha for the step about to run; relabel channels and measure batch norm when it is time."""
        assert isinstance(pl_module, SegmentationTask)
        step, model = trainer.global_step, pl_module.model
        if self._relabellings(step) > self._relabellings(step - 1):
            fade(model, *self._at(step - 1))  # the present stage and alpha, not restored yet in a resumed run
            find_relabelling(model).apply(model, trainer.optimizers[0])
        fade(model, *self._at(step))
        if self._config.recalibrate and self._is_done(step) and not self._is_done(step - 1):
            data = trainer.datamodule  # type: ignore[attr-defined]
            recalibrate(model, data.calibration_batches(), pl_module.widths)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the fading weights from growing against the mask."""
        if self._config.off_block == "free":
            return
        for layer, mask in gradual_layers(pl_module).values():
            if 0.0 < mask.alpha < 1.0:
                self._restrain(layer, mask)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log alpha, the size of the fading weights, and what cutting now would cost, by layer and on average."""
        assert isinstance(pl_module, SegmentationTask)
        fading = gradual_layers(pl_module.model)
        layers: dict[str, tuple[Any, GroupMask]] = {name: (part.weight, mask) for name, (part, mask) in fading.items()}
        damages = {name: damage(weight, mask) for name, (weight, mask) in layers.items()}
        norms = torch.stack([mask.fading(weight).norm() for weight, mask in layers.values()])
        pl_module.log("grouping/alpha", self._at(trainer.global_step - 1)[1], prog_bar=True)
        pl_module.log("grouping/off_block_norm", norms.norm())
        pl_module.log("grouping/damage", sum(damages.values()) / len(damages))
        pl_module.log_dict({f"grouping/damage/{name}": value for name, value in damages.items()})

    def _at(self, step: int) -> tuple[int, float]:
        return alpha_at(self._config, self._share(step))

    def _share(self, step: int) -> float:
        return self._horizon.at(step) / self._horizon.total

    def _is_done(self, step: int) -> bool:
        return self._at(step) == (len(self._config.stages), 0.0)

    def _relabellings(self, step: int) -> int:
        """How many times channels have been relabelled once `step` begins."""
        config = self._config
        since = self._share(step) - config.start
        if config.assignment == "contiguous" or step < 0 or since < 0:
            return 0
        gap = config.length / (config.refresh + 1)
        return 1 + (min(int(since / gap), config.refresh) if gap else 0)

    def _restrain(self, layer: nn.Module, mask: GroupMask) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if self._config.off_block == "decay":
            factor = torch.tensor(1.0 - self._config.off_block_decay)
        else:
            fading, kept = (part.square().mean().sqrt() for part in (mask.fading(weight), mask.kept(weight)))
            factor = (kept / fading.clamp_min(1e-12)).clamp_max(1.0)
        off_block = (mask.cut == mask.stage)[:, :, None, None]
        weight.copy_(torch.where(off_block, weight * factor, weight))
