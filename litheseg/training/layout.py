"""Where a run computes, in which memory format, and what may be in bfloat16.

The format is channels_last, unless a kernel is known to be unsound there. On a CPU convolutions are oneDNN's, and two
of its gradients are wrong in channels_last: one corrupts memory, the other is no number. A network with such a layer
keeps PyTorch's own format, in which both are right.

Usage:
    >>> lay_out(model, recipe.trainer)
"""

from __future__ import annotations

import torch
from torch import nn

from litheseg.models.inference import has_bfloat16
from litheseg.nn import available_widths
from litheseg.nn.layers import SlimConv2d
from litheseg.training.config import TrainerConfig

__all__ = ["gains_from_bfloat16", "lay_out", "on_cpu", "suits_channels_last"]

_FEWEST_CHANNELS = 8  # of a register of AVX2


def on_cpu(config: TrainerConfig) -> bool:
    """Whether a run has no GPU."""
    return config.accelerator == "cpu" or (config.accelerator == "auto" and not torch.cuda.is_available())


def gains_from_bfloat16(config: TrainerConfig) -> bool:
    """Whether a network that is not trained runs faster in bfloat16 where a run computes."""
    return has_bfloat16(torch.device("cpu" if on_cpu(config) else "cuda"))


def lay_out(model: nn.Module, config: TrainerConfig) -> None:
    """Use channels_last if asked, and if it is safe."""
    bfloat16 = config.precision == "bf16-mixed" and on_cpu(config)
    if config.channels_last and suits_channels_last(model, bfloat16=bfloat16):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def suits_channels_last(model: nn.Module, *, bfloat16: bool = False) -> bool:
    """Whether the gradients of all convolutions are right in channels_last, at any width.

    Those of strided 1x1 convolutions of fewer than 8 inputs are not: in oneDNN 3.13 (PyTorch 2.15) on CPUs without
    AVX-512 they write outside their memory. Nor are those of dilated convolutions in small groups (fewer than 16
    channels) in bfloat16: in oneDNN 3.12 (PyTorch 2.14) on CPUs with AVX-512 they are arbitrary, infinity included.

    Args:
        model: plain, elastic or on its way to groups.
        bfloat16: whether convolutions run in bfloat16, on a CPU.
    """
    narrowest = min(available_widths(model))
    for layer in model.modules():
        if isinstance(layer, SlimConv2d):
            inputs, groups = layer.inputs.count(narrowest), layer.full_groups
        elif isinstance(layer, nn.Conv2d):
            inputs, groups = layer.in_channels // layer.groups, layer.groups
        else:
            continue
        if tuple(layer.kernel_size) == (1, 1) and max(layer.stride) > 1 and inputs < _FEWEST_CHANNELS:
            return False
        if bfloat16 and max(layer.dilation) > 1 and (groups > 1 or getattr(layer, "grouping", None) is not None):
            return False
    return True
