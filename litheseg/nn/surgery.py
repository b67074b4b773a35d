"""Putting one layer in the place of another: what every change of a network's layers needs.

It knows neither widths nor groups.

Usage:
    >>> replace_layer(model, "layer1.0.conv1", conv_like(model.layer1[0].conv1, groups=4))
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["conv_like", "replace_layer"]


def conv_like(layer: nn.Conv2d, kind: type[nn.Conv2d] = nn.Conv2d, **others: Any) -> nn.Conv2d:
    """A fresh layer of the same geometry, device, type and mode.

    Args:
        layer: the model of it; its groups do not count.
        kind: of the fresh layer.
        **others: arguments of `kind` that differ, such as `groups`.
    """
    arguments: dict[str, Any] = {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    return kind(**arguments | others).train(layer.training)


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the submodule `name`, in its mode."""
    model.set_submodule(name, layer.train(model.get_submodule(name).training))
