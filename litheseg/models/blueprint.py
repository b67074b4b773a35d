"""Build the network that a file asks for without trusting the file: it may not be larger than the file's weights.

A file's arguments are a few bytes, and may ask for a network of terabytes. So parameters are first made without memory
(on PyTorch's meta device), and their number is compared with what the file holds; only then are they allocated. An
architecture's arguments therefore need no limits of their own, and no fresh weights are drawn. Names and shapes are
checked when the weights are loaded.

Usage:
    >>> model = build_within(state, lambda: build_model("ddrnet", num_classes=3, base=64), widths=4)
    >>> model.load_state_dict(state)  # it was full of zeros
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from litheseg.errors import ModelError

__all__ = ["build_within"]

Network = TypeVar("Network", bound=nn.Module)

# Twice what the file holds may be made on the way: layers that others replace, a classifier that an encoder loses.
_TIMES, _SPARE_TENSORS, _SPARE_CHANNELS = 2, 100, 10_000


def build_within(weights: Mapping[str, Tensor], builder: Callable[[], Network], widths: int = 1) -> Network:
    """Build a plain network that the weights can fill; its own are zeros.

    Args:
        weights: those of the file.
        builder: makes the network; called once, or twice.
        widths: how many batch norms will stand in the place of each.

    Raises:
        ModelError: it needs more than twice the numbers or tensors of the weights.
    """
    with _Blueprint(weights) as blueprint:
        model = builder()
    blueprint.check(model, widths)
    stored = {id(tensor) for tensor in _tensors(model)}
    computed = {tensor.shape for tensor in model.buffers() if tensor.is_meta and id(tensor) not in stored}
    if computed:  # by the builder, and in no file: these need memory
        with _Blueprint(weights, computed):
            model = builder()
    return _filled(model)


class _Blueprint(TorchFunctionMode):
    """While this is active, layers are made without memory, and no more of them than the weights can fill.

    Args:
        weights: those of the file.
        real: shapes of tensors that get memory.
    """

    def __init__(self, weights: Mapping[str, Tensor], real: Collection[torch.Size] = ()) -> None:
        super().__init__()
        self._tensors, self._real = len(weights), real
        self._numbers = sum(value.numel() for value in weights.values())
        self._made = self._channels = 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """PyTorch's layers allocate their parameters by `torch.empty`."""
        kwargs = kwargs or {}
        if func is not torch.empty:
            return func(*args, **kwargs)
        made = func(*args, **{**kwargs, "device": "meta"})
        self._count(made.shape)
        return func(*args, **kwargs) if made.shape in self._real else made

    def check(self, model: nn.Module, widths: int) -> None:
        """Refuse a network that needs more than there is; arguments as `build_within`."""
        layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        norms = [tensor for layer in layers for tensor in _tensors(layer)]
        needed = list({id(tensor): tensor for tensor in chain(_tensors(model), model.buffers())}.values())
        tensors = len(needed) + (widths - 1) * len(norms)
        numbers = sum(t.numel() for t in needed) + (widths - 1) * sum(t.numel() for t in norms)
        if tensors > _TIMES * self._tensors or numbers > _TIMES * self._numbers:
            raise self._too_large()

    def _count(self, shape: torch.Size) -> None:
        """A layer has at least one weight per channel, so their number is bounded long before that of the weights."""
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


def _filled(model: Network) -> Network:
    """Give the parameters and buffers that have no memory memory, full of zeros, in place."""
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
    """What a file of the module holds."""
    return list(module.state_dict(keep_vars=True).values())
