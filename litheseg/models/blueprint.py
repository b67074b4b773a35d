"""A network that is asked for by a file, built without believing what the file asks for.

Arguments are a few bytes, and may ask for a network of terabytes. So its parameters are first made without memory (on
PyTorch's meta device), which costs little whatever their size, and are compared with what the file holds: a network
that needs more numbers than there are in the file cannot be the file's. Only then is there memory for them. Widths are
counted in the same way. The arguments of the architecture need no limits of their own, and fresh weights are never
drawn.

It does not look at names and shapes: loading the weights does, which by then cannot cost more than the file.

Usage:
    >>> with Blueprint(state) as blueprint:
    ...     model = build_model("ddrnet", num_classes=3, base=64)
    >>> blueprint.check(model, widths=4)
    >>> model = filled(model)  # with zeros, for weights to be loaded
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from litheseg.errors import ModelError

__all__ = ["Blueprint", "filled"]

Network = TypeVar("Network", bound=nn.Module)

# An honest network needs what the file holds. Twice as much may be made on the way: layers that others replace, and
# norms that no width changes; and a classifier that an encoder comes with and loses.
_TIMES, _SPARE_TENSORS, _SPARE_CHANNELS = 2, 100, 10_000


class Blueprint(TorchFunctionMode):
    """While it is entered, parameters are made without memory, and no more of them than the weights can fill.

    Args:
        weights: those of the file.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = len(weights)
        self._numbers = sum(value.numel() for value in weights.values())
        self._made = self._channels = 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Let PyTorch's layers allocate on the meta device, and count what they do."""
        if func is torch.empty:
            made = func(*args, **{**(kwargs or {}), "device": "meta"})
            self._count(made.shape)
            return made
        return func(*args, **(kwargs or {}))

    def check(self, model: nn.Module, widths: int) -> None:
        """Refuse a network, plain yet, that needs more than there is.

        Args:
            model: built within the context.
            widths: how many batch norms will stand in the place of each.

        Raises:
            ModelError: it does.
        """
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        inside = {id(tensor) for norm in norms for tensor in _tensors(norm)}
        others = [tensor for tensor in _tensors(model) if id(tensor) not in inside]
        shared = [tensor for norm in norms for tensor in _tensors(norm)]
        tensors = len(others) + widths * len(shared)
        numbers = _numbers(others) + widths * _numbers(shared)
        if tensors > _TIMES * self._tensors or numbers > _TIMES * self._numbers:
            raise self._too_large()

    def _count(self, shape: torch.Size) -> None:
        """A layer has at least one weight per channel, so channels are bounded, long before their product is."""
        self._made += 1
        self._channels += max(shape, default=1)
        if self._made > _TIMES * self._tensors + _SPARE_TENSORS:
            raise self._too_large()
        if self._channels > _TIMES * self._numbers + _SPARE_CHANNELS:
            raise self._too_large()

    def _too_large(self) -> ModelError:
        return ModelError(
            f"it asks for a larger network than {self._numbers:,} numbers in {self._tensors:,} tensors can fill"
        )


def filled(model: Network) -> Network:
    """Give the parameters and buffers that have no memory memory, full of zeros, in place; returns the model."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        own = (module.named_parameters("", False, False), module.named_buffers("", False, False))  # shared ones as well
        for name, tensor in chain.from_iterable(own):
            if tensor.is_meta:
                if id(tensor) not in made:
                    made[id(tensor)] = _zeros(tensor)
                setattr(module, name, made[id(tensor)])
    return model


def _zeros(tensor: Tensor) -> Tensor:
    zeros = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(zeros, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else zeros


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict(keep_vars=True).values())


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
