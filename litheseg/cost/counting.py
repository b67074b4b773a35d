"""What one forward pass costs on paper: parameters, multiply-accumulates and peak activation memory.

The module is copied to the `meta` device, where tensors have shapes but no data, and run once while every operator is
watched. So functional convolutions, sliced weights and branches that eval mode skips are counted as they run. A
512x1024 forward costs milliseconds and no memory.

- MACs: convolutions (grouped ones by their groups; transposed ones at their *input* resolution) and matrix products of
  linear layers; half of PyTorch's FLOPs. Biases, norms, activations, pooling, interpolation and attention's batched
  products are not counted.
- Peak activation memory: bytes of the float32 tensors, batch 1, that are alive at once, at the worst moment of the
  run. A tensor lives from the operator that makes it to the last one that reads it; input and result are included,
  views and in-place results share their storage. Parameters, buffers and the workspaces of kernels are not included. It
  is what a runtime needs that frees eagerly and fuses nothing; a fusing runtime needs less.

Usage:
    >>> count(erfnet, size=(512, 1024)).macs
    26604339200
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from litheseg.models.inference import evaluating
from litheseg.nn.surgery import copied
from litheseg.nn.watching import Watch, image_channels

__all__ = ["Cost", "LayerCost", "count", "layer_table"]

_COUNTED = ("convolution", "_convolution", "convolution_overrideable", "mm", "addmm")


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates and peak activation bytes (float32) of one forward pass at batch 1."""

    params: int
    macs: int
    peak_activation_bytes: int


@dataclass(frozen=True)
class LayerCost:
    """One module that owns parameters or multiply-accumulates.

    `output` is the shape of its last result at batch 1, empty if it did not run or returns no single tensor.
    """

    name: str
    type: str
    output: tuple[int, ...]
    params: int
    macs: int


def count(module: nn.Module, size: tuple[int, int], *, channels: int | None = None) -> Cost:
    """Count parameters, MACs and peak activation bytes of a module in eval mode; the module is left as it was.

    Args:
        module: takes an image 1 x `channels` x H x W. An elastic one is counted at the width it is set to, but with all
            of its parameters; `extract` it first for the parameters of one width.
        size: height and width of the image in pixels.
        channels: channels of the image; None for those that the module says.
    """
    run = _counted(module, (1, channels or image_channels(module), *size))
    params = sum(parameter.numel() for parameter in module.parameters())
    return Cost(params=params, macs=sum(run.macs.values()), peak_activation_bytes=run.peak_bytes())


def layer_table(module: nn.Module, size: tuple[int, int]) -> tuple[LayerCost, ...]:
    """Rows for the modules that own parameters or MACs, in execution order, those that did not run last.

    A shared parameter is in the row of its first owner, a module called twice has the MACs of both calls: the columns
    sum to `count`.
    """
    run = _counted(module, (1, image_channels(module), *size))
    seen: set[int] = set()
    params = {}
    for name, child in module.named_modules():
        fresh = {id(value): value.numel() for value in child.parameters(recurse=False) if id(value) not in seen}
        seen.update(fresh)
        params[name] = sum(fresh.values())
    rows = (
        LayerCost(name, type(module.get_submodule(name)).__name__, shape, params[name], run.macs.get(name, 0))
        for name, shape in (run.shapes | {name: () for name in params if name not in run.shapes}).items()
    )
    return tuple(row for row in rows if row.params or row.macs)


class _Count(Watch):
    """Notes the MACs of every module, the shape of its result, and when each storage is made and last read.

    Args:
        module: in eval mode.

    Attributes:
        macs: by name of the innermost module that ran them.
        shapes: of the results, by module, in order of completion.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.macs: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._constants = {StorageWeakRef(t.untyped_storage()) for t in (*module.parameters(), *module.buffers())}
        self._bytes: dict[StorageWeakRef, int] = {}
        self._first: dict[StorageWeakRef, int] = {}
        self._last: dict[StorageWeakRef, int] = {}
        self._step = 0

    def left(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note the shape of the result."""
        self.shapes[self.where] = tuple(output.shape) if isinstance(output, Tensor) else ()

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Count an operator."""
        if func._overloadpacket.__name__ in _COUNTED:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self.macs[self.where] = self.macs.get(self.where, 0) + flops // 2
        self._step += 1
        self.touch((args, kwargs, result))

    def touch(self, tensors: Any) -> None:
        """Note that all tensors in this structure are alive at the present step."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            # Weak, so that a real run can free its tensors; the reference still keeps the identity from being reused.
            storage = StorageWeakRef(tensor.untyped_storage())
            if storage in self._constants:
                continue
            self._bytes[storage] = max(self._bytes.get(storage, 0), tensor.untyped_storage().nbytes())
            self._first.setdefault(storage, self._step)
            self._last[storage] = self._step

    def peak_bytes(self) -> int:
        """The largest sum of bytes alive in one step."""
        change = [0] * (self._step + 2)
        for storage, size in self._bytes.items():
            change[self._first[storage]] += size
            change[self._last[storage] + 1] -= size
        alive = peak = 0
        for delta in change:
            alive += delta
            peak = max(peak, alive)
        return peak


def _counted(module: nn.Module, shape: tuple[int, ...]) -> _Count:
    """Watch one forward pass on `meta`, or with real zeros where the module reads values of tensors."""
    try:
        with torch.device("meta"):
            return _run(_meta_copy(module), torch.empty(shape))
    except (NotImplementedError, RuntimeError):
        parameter = next(module.parameters(), torch.empty(0))
        return _run(module, torch.zeros(shape, device=parameter.device, dtype=parameter.dtype))


def _run(module: nn.Module, image: Tensor) -> _Count:
    with torch.no_grad(), evaluating(module):
        run = _Count(module)
        run.touch(image)
        run.touch(run.run(lambda: module(image)))
    return run


def _meta_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes only: the weights themselves are never duplicated."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta", dtype=torch.float32), False)
    for buffer in module.buffers():
        dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
        memo[id(buffer)] = torch.empty_like(buffer, device="meta", dtype=dtype)
    return copied(module, memo)
