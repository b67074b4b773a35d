"""Grouped convolutions as dense ones that compute the same: zero outside the diagonal blocks.

The inverse of what `grouping` does in the end. It costs multiplications and saves time wherever a runtime's grouped
kernel is slow; which layers those are is not known here (`litheseg.budget.plan` measures it).

Usage:
    >>> deployed = densified(network, ["layer3.0.conv1"])  # equal to `network`
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import nn

from litheseg.errors import ModelError
from litheseg.nn.surgery import conv_like, replace_layer

__all__ = ["densified", "grouped_layers", "to_dense"]


def grouped_layers(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Convolutions with more than one group, depthwise ones included, by name."""
    found = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    return {name: layer for name, layer in found if layer.groups > 1}


def to_dense(layer: nn.Conv2d) -> nn.Conv2d:
    """A fresh dense layer that computes the same."""
    dense = conv_like(layer)
    rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    weight = torch.zeros_like(dense.weight)
    for group in range(layer.groups):
        inside = slice(group * rows, (group + 1) * rows)
        weight[inside, group * columns : (group + 1) * columns] = layer.weight.detach()[inside]
    dense.weight = nn.Parameter(weight, layer.weight.requires_grad)
    dense.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    return dense


def densified(module: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy of a plain network in which these grouped layers are dense; the network itself where there are none.

    Raises:
        ModelError: a name that is none of its grouped layers.
    """
    if not names:
        return module
    result = copy.deepcopy(module)
    grouped = grouped_layers(result)
    if unknown := sorted(set(names) - set(grouped)):
        raise ModelError(
            f"'{unknown[0]}' is no grouped convolution of the network; it has: {', '.join(grouped) or 'none'}"
        )
    for name in names:
        replace_layer(result, name, to_dense(grouped[name]))
    return result
