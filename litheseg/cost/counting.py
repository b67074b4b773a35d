"""What one forward pass costs on paper: parameters, multiply-accumulates and peak activation memory.

The module is copied to the `meta` device, where tensors have shapes but no data, and run once; a dispatch mode sees
every operator that really runs, so functional convolutions, slim slices and branches that are off in eval mode are
counted as they are. A 512x1024 forward costs milliseconds and no memory.

- MACs: convolutions (grouped ones by their groups; transposed ones at their *input* resolution) and matrix products of
  linear layers. Biases, norms, activations, pooling, interpolation and attention's batched products are not counted.
- Peak activation memory: bytes of the float32 tensors, batch 1, that are alive at once, at the worst moment of the
  run. A tensor lives from the operator that makes it to the last one that reads it; input and result are included,
  views and in-place results share their storage. Parameters, buffers and the workspaces of kernels are not. It is what
  a runtime that frees eagerly and fuses nothing needs; a fusing runtime needs less.

It does not know time (see `litheseg.runtime.timing`) nor widths (see `widths`).

Usage:
    >>> count(erfnet, size=(512, 1024)).macs
    26604339200
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from litheseg.models.inference import evaluating

__all__ = ["Cost", "Layer", "count", "layer_table"]

_CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable")
_PRODUCTS = {"mm": 0, "addmm": 1}  # operator -> position of the left factor


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates and peak activation bytes (float32) of one forward pass at batch 1."""

    params: int
    macs: int
    peak_activation_bytes: int


@dataclass(frozen=True)
class Layer:
    """One module that owns parameters or multiply-accumulates.

    `output` is the shape of its last result at batch 1, empty if it did not run or returns no single tensor.
    """

    name: str
    type: str
    output: tuple[int, ...]
    params: int
    macs: int


def count(module: nn.Module, size: tuple[int, int], *, channels: int = 3) -> Cost:
    """Count parameters, MACs and peak activation bytes of a module in eval mode; the module is left as it was.

    Args:
        module: takes an image 1 x `channels` x H x W. An elastic one is counted at the width it is set to, but with
            all of its parameters; `extract` it first for the parameters of one width.
        size: height and width of the image in pixels.
        channels: channels of the image.
    """
    trace, _ = _run(module, (1, channels, *size))
    params = sum(parameter.numel() for parameter in module.parameters())
    return Cost(params=params, macs=sum(trace.macs.values()), peak_activation_bytes=trace.peak_bytes())


def layer_table(module: nn.Module, size: tuple[int, int], *, channels: int = 3) -> tuple[Layer, ...]:
    """Rows for the modules that own parameters or MACs, in execution order, those that did not run last.

    A shared parameter is in the row of its first owner, a module called twice has the MACs of both calls: the columns
    sum to `count`. Arguments as `count`.
    """
    trace, shapes = _run(module, (1, channels, *size))
    own = _own_params(module)
    modules = dict(module.named_modules(remove_duplicate=True))
    names = [*shapes, *(name for name in modules if name not in shapes)]
    rows = (
        Layer(name, type(modules[name]).__name__, shapes.get(name, ()), own[name], trace.macs.get(name, 0))
        for name in names
    )
    return tuple(row for row in rows if row.params or row.macs)


class _Trace(TorchDispatchMode):
    """Records, operator by operator, the MACs of the running module and which storages are read and made."""

    def __init__(self, constants: set[StorageWeakRef]) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self.stack: list[str] = [""]
        self._constants = constants
        self._bytes: dict[StorageWeakRef, int] = {}
        self._first: dict[StorageWeakRef, int] = {}
        self._last: dict[StorageWeakRef, int] = {}
        self._step = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # composite operators arrive whole where tensors were made in inference mode
            result = func.decompose(*args, **kwargs) if func is not torch.ops.prim.device.default else NotImplemented
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        macs = _operator_macs(func, args, result)
        if macs:
            self.macs[self.stack[-1]] = self.macs.get(self.stack[-1], 0) + macs
        self._step += 1
        self.touch((args, kwargs, result))
        return result

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


def _operator_macs(func: Any, args: tuple[Any, ...], result: Any) -> int:
    name = func._overloadpacket.__name__
    if name in _CONVOLUTIONS:
        image, weight, transposed = args[0], args[1], args[6]
        # Each input pixel of a transposed convolution, each output pixel of an ordinary one, meets the weight once.
        pixels = (image if transposed else result).shape[2:]
        return int(image.shape[0] * math.prod(pixels) * weight.numel())
    if name in _PRODUCTS:
        left, right = args[_PRODUCTS[name]], args[_PRODUCTS[name] + 1]
        return int(left.shape[0] * left.shape[1] * right.shape[1])
    return 0


def _run(module: nn.Module, shape: tuple[int, ...]) -> tuple[_Trace, dict[str, tuple[int, ...]]]:
    """Trace one forward pass on `meta`, or with real zeros where the module reads values of tensors."""
    try:
        with torch.device("meta"):
            return _traced(_meta_copy(module), torch.empty(shape))
    except (NotImplementedError, RuntimeError):
        parameter = next(module.parameters(), torch.empty(0))
        return _traced(module, torch.zeros(shape, device=parameter.device, dtype=parameter.dtype))


def _traced(module: nn.Module, image: Tensor) -> tuple[_Trace, dict[str, tuple[int, ...]]]:
    tensors = [*module.parameters(), *module.buffers()]
    trace = _Trace({StorageWeakRef(tensor.untyped_storage()) for tensor in tensors})
    with torch.no_grad(), evaluating(module), _watching(module, trace) as shapes:
        trace.touch(image)
        with trace:
            result = module(image)
        trace.touch(result)
    return trace, shapes


@contextmanager
def _watching(module: nn.Module, trace: _Trace) -> Iterator[dict[str, tuple[int, ...]]]:
    """Keep `trace.stack` at the running module and collect the shapes of the results, in order of completion."""
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str, child: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            trace.stack.append(name)

        def leave(_module: nn.Module, _args: Any, result: Any) -> None:
            trace.stack.pop()
            shapes[name] = tuple(result.shape) if isinstance(result, Tensor) else ()

        return [child.register_forward_pre_hook(enter, prepend=True), child.register_forward_hook(leave)]

    handles = [handle for name, child in module.named_modules() for handle in watch(name, child)]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _meta_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes only: the weights themselves are never duplicated."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta", dtype=torch.float32), False)
    for buffer in module.buffers():
        dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
        memo[id(buffer)] = torch.empty_like(buffer, device="meta", dtype=dtype)
    return copy.deepcopy(module, memo)


def _own_params(module: nn.Module) -> dict[str, int]:
    """Parameters that each module owns itself; shared ones belong to the first."""
    own: dict[str, int] = {}
    seen: set[int] = set()
    for name, child in module.named_modules():
        fresh = {id(p): p.numel() for p in child.parameters(recurse=False) if id(p) not in seen}
        seen.update(fresh)
        own[name] = sum(fresh.values())
    return own
