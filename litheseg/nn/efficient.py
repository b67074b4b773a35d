"""Replace a network's convolutions by cheaper ones: grouped (with or without channel shuffle), separable, factorised.

Layers are chosen by role (as the model's `roles` names its parts), kernel size or name, and get fresh weights. To start
dense and end in such a network by training, see `litheseg.nn.grouping`.

Papers: Vallurupalli et al., CVPR Workshops 2018 (Sec. 3: the four kinds); Zhang et al., "ShuffleNet", CVPR 2018 (the
shuffle); Romera et al., "ERFNet", T-ITS 2018 (factorised).

Usage:
    >>> make_efficient(model, Efficient(groups=4, where="encoder,1x1"))
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import nn

from litheseg.errors import ModelError, did_you_mean
from litheseg.nn.grouping import ChannelShuffle
from litheseg.nn.segments import Segment
from litheseg.nn.sides import CONVOLUTIONS, NORMS, Sides, Trace
from litheseg.nn.surgery import conv_like, replace_layer
from litheseg.nn.tracing import trace_model

__all__ = ["Efficient", "choose_layers", "make_efficient"]

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Efficient:
    """Which convolutions are replaced, and by what.

    Attributes:
        kind: grouped; separable (depthwise, BN, ReLU, 1x1); factorised (kx1, ReLU, 1xk).
        groups: of "grouped": 1 leaves every layer as it is, 0 is as many as fit (depthwise).
        shuffle: put a channel shuffle between each grouped layer and the grouped layer that alone reads its output
            (through depthwise ones, if any). Before a dense layer it would change nothing.
        where: which layers: comma-separated conditions that must all hold, each one or several alternatives joined by
            "|": all, a role of the model (encoder), a kernel (1x1), or a pattern of names (encoder.7.*).
    """

    kind: Literal["grouped", "separable", "factorised"] = "grouped"
    groups: int = 1
    shuffle: bool = True
    where: str = "all"

    @property
    def changes(self) -> bool:
        """Whether it replaces anything."""
        return self.kind != "grouped" or self.groups != 1


def make_efficient(model: Network, efficient: Efficient) -> Network:
    """Replace the chosen convolutions, in place, by cheap ones with fresh weights; returns the model.

    A choice by role, kernel or "all" leaves out layers that read the image, give the logits, change the resolution or
    are grouped already: they are cheap, or much depends on them (the paper leaves them dense). Names choose anything.

    Raises:
        ModelError: no layer is chosen, or one cannot be replaced; the message names it and what would work.
    """
    if not efficient.changes:
        return model
    if efficient.groups < 0:
        raise ModelError(f"efficient.groups {efficient.groups} is negative; give 2 or more, or 0 for depthwise")
    trace, patterns = trace_model(model), _name_patterns(model, efficient.where)
    chosen = {}
    for name in choose_layers(model, efficient.where):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        named = any(fnmatchcase(name, pattern) for pattern in patterns)
        if (named or _replaceable(layer, trace.get(name))) and _has_kernel_for(efficient.kind, layer):
            chosen[name] = layer
    if not chosen:
        raise ModelError(
            f"efficient.where '{efficient.where}' leaves no layer that can be made {efficient.kind}: those it matches "
            "read the image, give the logits, are strided, or are grouped or 1x1 already; choose others, or by name"
        )
    fresh = {name: _BUILDERS[efficient.kind](name, layer, efficient.groups) for name, layer in chosen.items()}
    for name, layer in fresh.items():
        _replace(model, name, layer)
    if efficient.kind == "grouped" and efficient.shuffle:
        for name, reader in _shuffled_readers(trace, list(chosen), _heads(model)).items():
            shuffle = ChannelShuffle(fresh[name].groups)  # type: ignore[arg-type]
            _replace(model, reader, nn.Sequential(OrderedDict(shuffle=shuffle, conv=model.get_submodule(reader))))
    return model


def choose_layers(model: nn.Module, where: str) -> list[str]:
    """Names of the `nn.Conv2d` layers that fulfil every condition of `where`, in the order of definition.

    Heads that only training needs are left out.

    Raises:
        ModelError: a condition that no layer fulfils.
    """
    heads = _heads(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not f"{name}.".startswith(heads)
    }
    chosen = list(layers)
    for condition in where.split(","):
        fulfilling: set[str] = set()
        for text in (alternative.strip() for alternative in condition.split("|")):
            patterns = _roles(model).get(text, (text,))
            names = [
                name
                for name, layer in layers.items()
                if text in ("all", _kernel(layer)) or any(fnmatchcase(name, pattern) for pattern in patterns)
            ]
            if not names:
                known = ["all", *_roles(model), *sorted({_kernel(layer) for layer in layers.values()})]
                raise ModelError(
                    f"'{text}' matches no convolution of this model.{did_you_mean(text, known)} "
                    f"It knows {', '.join(known)}, and patterns of names such as '{next(iter(layers), 'layer*')}'"
                )
            fulfilling.update(names)
        chosen = [name for name in chosen if name in fulfilling]
    if not chosen:
        raise ModelError(f"no convolution fulfils all conditions of '{where}'; leave one out")
    return chosen


# --- choosing --------------------------------------------------------------------------------------------------------


def _heads(model: nn.Module) -> tuple[str, ...]:
    """How the names of layers begin that only training needs."""
    return tuple(
        f"{name}.{head}.".lstrip(".")
        for name, module in model.named_modules()
        for head in getattr(module, "training_only", ())
    )


def _roles(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return dict(getattr(model, "roles", {}))


def _kernel(layer: nn.Conv2d) -> str:
    return "x".join(str(extent) for extent in layer.kernel_size)


def _name_patterns(model: nn.Module, where: str) -> list[str]:
    """The alternatives of `where` that are patterns of names, not a role, a kernel or "all"."""
    texts = [text.strip() for text in re.split("[,|]", where)]
    return [text for text in texts if text not in ("all", *_roles(model)) and not re.fullmatch(r"\d+x\d+", text)]


def _replaceable(layer: nn.Conv2d, sides: Sides | None) -> bool:
    if sides is None or layer.groups > 1 or max(layer.stride) > 1:
        return False
    return not any(all(piece.fixed for piece in side) for side in (sides.inputs, sides.outputs))


def _has_kernel_for(kind: str, layer: nn.Conv2d) -> bool:
    """Whether there is something to separate (not in 1x1) or to factorise (only if both extents are above 1)."""
    return kind == "grouped" or (min if kind == "factorised" else max)(layer.kernel_size) > 1


def _shuffled_readers(trace: Trace, grouped: list[str], heads: tuple[str, ...]) -> dict[str, str]:
    """Grouped layer -> the layer that reads its output, where a shuffle between the two concerns no other.

    Heads that only training needs do not count, so that the network is the same without them.
    """
    found: dict[str, str] = {}
    for name in grouped:
        if name not in trace or len(trace[name].outputs) > 1:
            continue
        [output] = trace[name].outputs
        if [other for other, sides in trace.items() if output in sides.outputs and not sides.keeps] == [name]:
            readers = _readers(trace, output, heads)
            if readers and readers[-1] in grouped:
                found[name] = readers[0]
    return found


def _readers(trace: Trace, segment: Segment, heads: tuple[str, ...]) -> list[str]:
    """The chain of convolutions that reads these channels: any number of depthwise ones, then another one.

    Empty if something else reads them too; `heads` are ignored.
    """
    readers = {
        name: sides
        for name, sides in trace.items()
        if segment in sides.inputs and not isinstance(sides.module, NORMS) and not f"{name}.".startswith(heads)
    }
    alone = not segment.meets_itself and all(
        sides.inputs == [segment] and isinstance(sides.module, CONVOLUTIONS) for sides in readers.values()
    )
    ends = [index for index, sides in enumerate(readers.values(), start=1) if not sides.keeps]
    return list(readers) if alone and ends == [len(readers)] else []


# --- replacing -------------------------------------------------------------------------------------------------------


def _grouped(name: str, layer: nn.Conv2d, groups: int) -> nn.Module:
    groups = groups or math.gcd(layer.in_channels, layer.out_channels)
    if layer.in_channels % groups or layer.out_channels % groups:
        common = math.gcd(layer.in_channels, layer.out_channels)
        works = [str(number) for number in range(2, common + 1) if common % number == 0]
        raise ModelError(
            f"layer '{name}': {groups} groups do not divide its {layer.in_channels} input and {layer.out_channels} "
            f"output channels; {', '.join(works) or 'no number of groups'} would"
        )
    return conv_like(layer, groups=groups)


def _separable(name: str, layer: nn.Conv2d, groups: int) -> nn.Module:
    channels = layer.in_channels
    depthwise = conv_like(layer, out_channels=channels, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, layer.out_channels, 1, bias=layer.bias is not None)
    return nn.Sequential(depthwise, nn.BatchNorm2d(channels), nn.ReLU(), pointwise)


def _factorised(name: str, layer: nn.Conv2d, groups: int) -> nn.Module:
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer.padding, str):
        raise ModelError(f"layer '{name}': padding '{layer.padding}' cannot be factorised; give it in pixels")
    ph, pw = layer.padding
    conv = partial(nn.Conv2d, bias=layer.bias is not None, padding_mode=layer.padding_mode)
    return nn.Sequential(
        conv(layer.in_channels, layer.out_channels, (kh, 1), (sh, 1), (ph, 0), (dh, 1)),
        nn.ReLU(),
        conv(layer.out_channels, layer.out_channels, (1, kw), (1, sw), (0, pw), (1, dw)),
    )


_BUILDERS = {"grouped": _grouped, "separable": _separable, "factorised": _factorised}


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    tensor = next(model.get_submodule(name).parameters(), torch.empty(0))
    replace_layer(model, name, layer.to(tensor.device, tensor.dtype))
