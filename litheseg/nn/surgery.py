"""Plain layers: how one takes the place of another, and grouped convolutions as dense ones that compute the same.

A dense convolution with zeros outside the diagonal blocks equals the grouped one. It costs multiplications, and saves
time where a runtime's grouped kernel is slow; which layers those are is measured by `litheseg.budget`.

Usage:
    >>> replace_layer(model, "layer1.0.conv1", conv_like(model.layer1[0].conv1, groups=4))
    >>> deployed = densified(network, ["layer3.0.conv1"])  # equal to `network`
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.errors import ModelError

__all__ = ["conv_like", "convolve", "copied", "densified", "grouped_layers", "replace_layer", "to_dense"]

Network = TypeVar("Network", bound=nn.Module)


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the submodule `name`, in its mode."""
    model.set_submodule(name, layer.train(model.get_submodule(name).training))


def copied(module: Network, memo: Mapping[int, Any] | None = None) -> Network:
    """A deep copy, made in half the time: most of what a module holds are empty dictionaries of hooks.

    Args:
        module: any.
        memo: by `id`, what is to stand in the place of some of its parts.
    """
    values = (value for child in module.modules() for value in vars(child).values())
    empty = {id(value): type(value)() for value in values if type(value) in (dict, OrderedDict) and not value}
    return copy.deepcopy(module, {**empty, **(memo or {})})


def conv_like(layer: Any, kind: Any = nn.Conv2d, **others: Any) -> Any:
    """A fresh dense convolution of the same geometry, device, type and mode.

    Args:
        layer: a convolution, plain or elastic (its present channels count); its groups are not taken over.
        kind: class of the fresh layer.
        **others: arguments of `kind` that differ or come in addition, such as `groups`.
    """
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    arguments = {name: getattr(layer, name) for name in names}
    arguments |= {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    return kind(**arguments | others).train(layer.training)


def convolve(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Convolve N x C x H x W with another weight than the layer's own, at its stride, padding and dilation."""
    if layer.padding_mode == "zeros":
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups)
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    return F.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, groups)


def grouped_layers(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Convolutions with more than one group, depthwise ones included, by name."""
    found = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    return {name: layer for name, layer in found if layer.groups > 1}


def to_dense(layer: nn.Conv2d) -> nn.Conv2d:
    """A fresh dense layer that computes the same."""
    dense: nn.Conv2d = conv_like(layer)
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
    result = copied(module)
    grouped = grouped_layers(result)
    if unknown := sorted(set(names) - set(grouped)):
        raise ModelError(
            f"'{unknown[0]}' is no grouped convolution of the network; it has: {', '.join(grouped) or 'none'}"
        )
    for name in names:
        replace_layer(result, name, to_dense(grouped[name]))
    return result
