"""Run a module and see every operator that runs in it, together with the module that called it.

`Watch` is a PyTorch dispatch mode: it works below autograd, where there are few operators and no Python control flow,
so any module that runs can be watched. Its subclasses say what to do with what they see: `litheseg.nn.tracing` finds
out which channels belong together, `litheseg.cost.counting` counts, `litheseg.deploy.network` folds batch norms.

Usage:
    >>> class Operators(Watch):
    ...     def saw(self, func, args, kwargs, result):
    ...         print(self.where, func)
    >>> Operators(model).run(lambda: model(image))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Watch", "image_channels"]


def image_channels(module: nn.Module) -> int:
    """Of the images that a network takes: what a `SegmentationModel` says, 3 for other modules."""
    return int(getattr(module, "in_channels", 3))


Result = TypeVar("Result")


class Watch(TorchDispatchMode):
    """Base of what watches a run; subclasses override `entered`, `left` and `saw`.

    Args:
        module: whose submodules are followed; it is left as it was.

    Attributes:
        names: of all its submodules.
        stack: names of the modules that are running, the innermost last; after an error, those that it came from.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {child: name for name, child in module.named_modules()}
        self.stack: list[str] = []

    @property
    def where(self) -> str:
        """Name of the innermost running module; empty for the module itself."""
        return self.stack[-1] if self.stack else ""

    def run(self, call: Callable[[], Result]) -> Result:
        """Return `call()`, which runs the module, and watch it."""
        handles: list[Any] = []
        for child in self.names:
            handles.append(child.register_forward_pre_hook(self._enter, prepend=True))
            handles.append(child.register_forward_hook(self._leave))
        try:
            with self:
                return call()
        finally:
            for handle in handles:
                handle.remove()

    def entered(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A submodule is about to run."""

    def left(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A submodule has run; it is still the innermost one."""

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """An operator has run."""

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.stack.append(self.names[module])
        self.entered(module, inputs)

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.left(module, inputs, output)
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default:
            with self:  # composite operators arrive whole where tensors were made in inference mode
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.saw(func, args, kwargs, result)
        return result
