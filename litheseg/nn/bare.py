"""Elastic bare parameters: those that a module multiplies or adds itself, outside of any layer.

Layer scale, class tokens and positional embeddings are such. The module keeps its code, and its parameters their names
and full sizes, so that plain state dicts load. Its class becomes a subclass in which each such name gives the part of
the parameter that the model's width dial keeps.

Usage:
    >>> narrow_parameters(block, dial, {"gamma": (0, Channels((ChannelPart(64),)))})
    >>> block.gamma.shape  # at width 0.5
    torch.Size([32])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from litheseg.nn.width import Channels, WidthDial

__all__ = ["narrow_parameters", "widen_parameters"]


@dataclass
class _Narrowing:
    """How the bare parameters of a module shrink: by name, the dimension that holds channels, and their rule."""

    dial: WidthDial
    rules: dict[str, tuple[int, Channels]]
    plain: type[nn.Module]

    def value(self, module: nn.Module, name: str) -> Tensor:
        dim, channels = self.rules[name]
        parameter = module._parameters[name]
        assert parameter is not None
        return channels.select(parameter, dim, self.dial.width)


def narrow_parameters(module: nn.Module, dial: WidthDial, rules: Mapping[str, tuple[int, Channels]]) -> None:
    """Make bare parameters of a module follow the width, in place.

    Args:
        module: owns them.
        dial: the model's dial.
        rules: by the name of a parameter, the dimension of its channels, and how they shrink.
    """
    module.narrowing = _Narrowing(dial, dict(rules), type(module))  # type: ignore[assignment]
    module.__class__ = _elastic_class(type(module), tuple(rules))  # type: ignore[arg-type]


def widen_parameters(module: nn.Module) -> None:
    """Give a module, in place, its plain class back, with parameters of the size that the current width keeps."""
    narrowing: Any = module.narrowing
    for name in narrowing.rules:
        learns = module._parameters[name].requires_grad  # type: ignore[union-attr]
        module._parameters[name] = nn.Parameter(narrowing.value(module, name).detach().clone(), learns)
    module.__class__ = narrowing.plain
    del module.narrowing


@cache
def _elastic_class(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of `kind` whose parameters `names` are those of the current width."""
    members: dict[str, Any] = {name: property(partial(_current, name=name)) for name in names}
    return type(kind.__name__, (kind,), members | {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _current(module: nn.Module, name: str) -> Tensor:
    value: Tensor = module.narrowing.value(module, name)  # type: ignore[operator, union-attr]
    return value
