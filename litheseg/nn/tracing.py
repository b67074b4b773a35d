"""Which channels of a network belong together: found by running it once and watching every tensor.

Each tensor of the run carries a tag: which of its dimensions holds channels, and the segments that make it up. A layer
starts a new segment; an addition ties two; a concatenation lines them up; whatever keeps the channels passes them on. A
segment splits where it meets a concatenation of smaller ones. What breaks the channels up (a reshape across them, a
slice of them) cannot shrink and is an error that names the layer.

It knows nothing of widths: `litheseg.nn.slim` turns segments into `Channels`. Watching happens below autograd, where
there are few operators and no Python control flow, so any module that runs can be traced.

Usage:
    >>> trace = trace_channels(model, lambda m: [m(torch.rand(2, 3, 64, 64))])
    >>> trace.sides["layer1.0.conv1"].outputs  # segments
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm.layers
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from litheseg.errors import ModelError
from litheseg.nn.grouping import ChannelShuffle, GradualConv2d

__all__ = ["Segment", "Sides", "Trace", "run_example", "trace_channels", "trace_model"]

# Subclasses whose forward is the plain layer's, at most with a masked weight, or an activation that keeps the channels.
_KNOWN_FORWARDS = (BatchNormAct2d, GradualConv2d, timm.layers.Linear)
_LEAVES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, ChannelShuffle)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


class Segment:
    """A run of channels that is produced, tied and dropped as one.

    Attributes:
        size: channels.
        fixed: whether it must keep its size.
        unit: channels that stay or go together, or 0 (see `litheseg.nn.slicing`).
        blocks: equal runs of channels that shrink alike, each keeping its first channels (likewise).
        step: what the number of kept channels is a multiple of (likewise).
        meets_itself: whether it was added to what was made of it, or multiplied by it, as a residual stream is.
    """

    def __init__(self, size: int, *, fixed: bool = False) -> None:
        self.size, self.fixed = size, fixed
        self.unit, self.blocks, self.step = 0, 1, 1
        self.meets_itself = False
        self._joined: Segment | None = None
        self._halves: tuple[Segment, Segment] | None = None

    def resolve(self) -> list[Segment]:
        """The segments that this one has become: itself, the one it was tied to, or the pieces it was split into."""
        if self._joined is not None:
            return self._joined.resolve()
        if self._halves is not None:
            return [piece for half in self._halves for piece in half.resolve()]
        return [self]

    def split(self, size: int) -> None:
        """Split into the first `size` channels and the rest."""
        self._halves = (Segment(size, fixed=self.fixed), Segment(self.size - size, fixed=self.fixed))
        for half in self._halves:
            half.meets_itself = self.meets_itself

    def join(self, other: Segment) -> None:
        """Become one with a segment of the same size."""
        if self is other:
            self.meets_itself = True
            return
        other.fixed |= self.fixed
        other.meets_itself |= self.meets_itself
        self._joined = other


def _resolve(segments: Iterable[Segment]) -> list[Segment]:
    return [piece for segment in segments for piece in segment.resolve()]


def _tie(first: list[Segment], second: list[Segment]) -> None:
    """Make two channel lists of the same total size one, splitting whatever straddles."""
    position = 0
    while True:
        left, right = _resolve(first), _resolve(second)
        if position == len(left):
            return
        a, b = left[position], right[position]
        if a.size > b.size:
            a.split(b.size)
        elif b.size > a.size:
            b.split(a.size)
        else:
            a.join(b)
            position += 1


@dataclass
class Sides:
    """The channels on the two sides of a layer; a normalisation has the same on both.

    Attributes:
        channels_first: whether the channels are dimension 1 (as opposed to last).
    """

    module: nn.Module
    inputs: list[Segment]
    outputs: list[Segment]
    channels_first: bool = True

    @property
    def keeps(self) -> bool:
        """Whether the layer makes no channels of its own: norms, depthwise convolutions."""
        return self.outputs is self.inputs

    def separate(self, groups: int) -> bool:
        """Whether `groups` groups keep every channel to itself."""
        return all(groups == sum(segment.size for segment in side) for side in (self.inputs, self.outputs))


@dataclass
class _Tag:
    """Where a tensor keeps its channels, and which."""

    dim: int
    segments: list[Segment]


@dataclass
class Trace:
    """The result: the two sides of every parametrised layer, by module name, in the order in which they ran."""

    sides: dict[str, Sides]

    @staticmethod
    def pieces(segments: Iterable[Segment]) -> list[Segment]:
        """What the segments have become by ties and splits."""
        return _resolve(segments)

    def producers(self, segment: Segment) -> list[str]:
        """The layers that make these channels anew; those that keep them (norms, depthwise) are left out."""
        return [name for name, sides in self.sides.items() if segment in _resolve(sides.outputs) and not sides.keeps]

    def readers(self, segment: Segment, *, apart_from: tuple[str, ...] = ()) -> list[str]:
        """The convolutions that read these channels one after the other, where nothing else does.

        That is: any number of depthwise ones, which keep them, and one that ends them. Empty in all other cases.

        Args:
            segment: the channels.
            apart_from: beginnings of the names of layers that do not count.
        """
        readers = {
            name: sides
            for name, sides in self.sides.items()
            if segment in _resolve(sides.inputs)
            and not isinstance(sides.module, _NORMS)
            and not f"{name}.".startswith(apart_from)
        }
        alone = not segment.meets_itself and all(
            _resolve(sides.inputs) == [segment] and isinstance(sides.module, _CONVOLUTIONS)
            for sides in readers.values()
        )
        ends = [index for index, sides in enumerate(readers.values(), start=1) if not sides.keeps]
        return list(readers) if alone and ends == [len(readers)] else []

    @property
    def grouped(self) -> dict[str, int]:
        """Grouped layers and norms with their groups; a layer that is on the way to groups has those of its end.

        Depthwise ones are left out: they keep every channel to itself.
        """
        groups = {name: _groups(sides.module) for name, sides in self.sides.items()}
        return {name: number for name, number in groups.items() if number > 1 and not self.sides[name].separate(number)}

    @property
    def shuffled(self) -> dict[str, int]:
        """Channel shuffles and their groups."""
        kinds = {name: sides.module for name, sides in self.sides.items()}
        return {name: module.groups for name, module in kinds.items() if isinstance(module, ChannelShuffle)}


def run_example(module: nn.Module, image: Tensor) -> list[Tensor]:
    """Run a module; returns the tensors that keep their channels.

    Those of `module.outputs(image)` (a `SegmentationModel`: all but ``features``), or `module(image)`.
    """
    outputs = getattr(module, "outputs", None)
    if callable(outputs):
        return [value for name, value in outputs(image).items() if name != "features"]
    result = module(image)
    return [result] if isinstance(result, Tensor) else list(result.values() if isinstance(result, dict) else result)


def trace_model(module: nn.Module, *, dense: bool = False) -> Trace:
    """`trace_channels` of a copy in training mode, with a small image; the random state is left as it was.

    A module whose parameters have shapes but no memory (on the meta device) is traced there.
    """
    device = "meta" if any(parameter.is_meta for parameter in module.parameters()) else "cpu"
    with torch.random.fork_rng(devices=[]):
        image = torch.rand(2, 3, 64, 64, device=device)
        copied = copy.deepcopy(module).to(device).float().train()
        return trace_channels(copied, lambda m: run_example(m, image), dense=dense)


def trace_channels(module: nn.Module, call: Callable[[nn.Module], Iterable[Tensor]], *, dense: bool = False) -> Trace:
    """Run `call(module)` once and report the channels of every layer it used.

    Args:
        module: run as it is (mode, buffers): hand in a copy.
        call: feeds the module an image and returns the tensors whose channels must keep their size.
        dense: take layers that are on the way to depthwise as the dense ones that they still are.

    Raises:
        ModelError: a layer does something to channels that cannot shrink; the message names it.
    """
    watch = _Watch(module, dense_until_converted=dense)
    with torch.no_grad(), watch.hooks(), watch:
        outputs = list(call(module))
    for tensor in outputs:
        for segment in watch.segments_of(tensor):
            segment.fixed = True
    return Trace(watch.sides)


def _groups(module: nn.Module) -> int:
    """Groups of a convolution, at its end if it is on the way, or of a norm; 1 for other layers."""
    if isinstance(module, GradualConv2d):
        return module.grouping.groups
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    return module.groups if isinstance(module, _CONVOLUTIONS) else 1


class _Watch(TorchDispatchMode):
    """Tags tensors while the module runs."""

    def __init__(self, module: nn.Module, *, dense_until_converted: bool = False) -> None:
        super().__init__()
        self.sides: dict[str, Sides] = {}
        self._dense_until_converted = dense_until_converted
        self._module = module
        self._names = {child: name for name, child in module.named_modules()}
        self._tags: dict[int, _Tag] = {}
        self._alive: list[Tensor] = []  # ids are only unique among the living
        self._stack: list[str] = []
        self._leaf: nn.Module | None = None

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow the module stack while this is open."""
        handles = []
        for child in self._names:
            handles.append(child.register_forward_pre_hook(self._enter))
            handles.append(child.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def segments_of(self, tensor: Tensor) -> list[Segment]:
        """The current segments of a tensor; none if its channels are not tracked."""
        tag = self._tags.get(id(tensor))
        return _resolve(tag.segments) if tag else []

    def _set(self, tensor: Tensor, dim: int, segments: list[Segment]) -> None:
        self._alive.append(tensor)
        self._tags[id(tensor)] = _Tag(dim, segments)

    def _fail(self, what: str) -> ModelError:
        where = self._stack[-1] if self._stack else ""
        kind = type(self._module.get_submodule(where)).__name__ if where else type(self._module).__name__
        return ModelError(
            f"layer '{where or '(the model itself)'}' ({kind}) cannot be slimmed: {what}. "
            "Rewrite it so that channels are only convolved, normalised, added or concatenated"
        )

    # --- layers ------------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._stack.append(self._names[module])
        if self._leaf is None and isinstance(module, _LEAVES):
            self._leaf = module

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._leaf is module:
            self._leaf = None
            self._pass_layer(module, inputs[0], output)
        self._stack.pop()

    def _pass_layer(self, module: nn.Module, x: Tensor, y: Tensor) -> None:
        """Record a layer's sides and tag its output."""
        name = self._stack[-1]
        tag = self._tags.get(id(x)) or _Tag(1, [Segment(x.shape[1], fixed=True)])
        self._check_layer(module, x, tag.dim)
        norm = isinstance(module, _NORMS)
        sides = self.sides.get(name)
        if sides is None:
            outputs = tag.segments if norm else self._new_outputs(module, tag.segments, y, tag.dim)
            sides = Sides(module, tag.segments, outputs, channels_first=tag.dim == 1 and x.ndim == 4)
            self.sides[name] = sides
        else:  # a layer that is used again ties both uses
            _tie(sides.inputs, tag.segments)
        self._set(y, tag.dim, sides.outputs)

    def _check_layer(self, module: nn.Module, x: Tensor, dim: int) -> None:
        plain = next(kind for kind in _LEAVES if isinstance(module, kind))
        if isinstance(module, nn.LayerNorm):
            if len(module.normalized_shape) > 1 or module.normalized_shape[0] != x.shape[dim]:
                raise self._fail("its normalisation spans more than the channels")
        elif type(module).forward is not plain.forward and not isinstance(module, _KNOWN_FORWARDS):
            raise self._fail(f"it is a {plain.__name__} with a forward of its own")
        if isinstance(module, nn.Linear) and dim != x.ndim - 1:
            raise self._fail("it is not applied to the channels")

    def _new_outputs(self, module: Any, inputs: list[Segment], y: Tensor, dim: int) -> list[Segment]:
        channels = y.shape[dim]
        in_channels = sum(segment.size for segment in _resolve(inputs))
        if _groups(module) == in_channels == channels and self._ties_depthwise(module):
            return inputs  # depthwise: every channel stays itself
        return [Segment(channels, fixed=channels == 1)]

    def _ties_depthwise(self, module: nn.Module) -> bool:
        return not (self._dense_until_converted and isinstance(module, GradualConv2d))

    # --- operators ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._leaf is None:
            self._pass_operator(func, args, kwargs or {}, result)
        return result

    def _pass_operator(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tagged = [(tensor, self._tags[id(tensor)]) for tensor in tensors if id(tensor) in self._tags]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.ndim]
        if not tagged or not outputs:
            return
        name = func.overloadpacket.__name__
        rule = _RULES.get(name, _Watch._elementwise if len(tensors) > 1 else _Watch._unary)
        for output in outputs:
            rule(self, name, args, tensors, tagged, output)

    def _concatenate(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        dim = (args[1] if len(args) > 1 else 0) % output.ndim
        tag = tagged[0][1]
        if dim != tag.dim:
            self._elementwise(name, args, tensors, tagged, output)
            return
        segments: list[Segment] = []
        for tensor in tensors:
            own = self._tags.get(id(tensor))
            segments += own.segments if own else [Segment(tensor.shape[dim], fixed=True)]
        self._set(output, dim, segments)

    def _permute(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        tensor, tag = tagged[0]
        order = list(range(tensor.ndim))
        if name == "permute":
            order = [dim % tensor.ndim for dim in args[1]]
        else:
            a, b = (0, 1) if name == "t" else (args[1] % tensor.ndim, args[2] % tensor.ndim)
            order[a], order[b] = order[b], order[a]
        self._set(output, order.index(tag.dim), tag.segments)

    def _reshape(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        tensor, tag = tagged[0]
        before, channels = math.prod(tensor.shape[: tag.dim]), tensor.shape[tag.dim]
        for dim in range(output.ndim):
            if math.prod(output.shape[:dim]) == before and output.shape[dim] == channels:
                self._set(output, dim, tag.segments)
                return
        raise self._fail(f"it reshapes {tuple(tensor.shape)} to {tuple(output.shape)}, across the channels")

    def _reduce(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        tensor, tag = tagged[0]
        dims = args[1] if len(args) > 1 and args[1] is not None else list(range(tensor.ndim))
        reduced = {dim % tensor.ndim for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}
        if tag.dim in reduced:
            return  # over all channels: whatever their number, one value
        kept = output.ndim == tensor.ndim
        self._set(output, tag.dim if kept else tag.dim - sum(dim < tag.dim for dim in reduced), tag.segments)

    def _slice(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        tensor, tag = tagged[0]
        dim = (args[1] if len(args) > 1 else 0) % tensor.ndim
        if name in ("split", "split_with_sizes", "unsafe_split"):
            dim = (args[2] if len(args) > 2 else 0) % tensor.ndim
        if dim == tag.dim and output.shape[min(dim, output.ndim - 1)] != tensor.shape[dim]:
            raise self._fail(f"it takes a part of the {tensor.shape[dim]} channels ({name})")
        removed = output.ndim < tensor.ndim and dim < tag.dim
        self._set(output, tag.dim - removed, tag.segments)

    def _unary(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        tensor, tag = tagged[0]
        if output.ndim != tensor.ndim or output.shape[tag.dim] != tensor.shape[tag.dim]:
            raise self._fail(f"'{name}' turns {tuple(tensor.shape)} into {tuple(output.shape)}")
        self._set(output, tag.dim, tag.segments)

    def _elementwise(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        """Broadcasting: channels at the same place from the right are tied; single channels take part unnoticed."""
        wide = [(tensor, tag) for tensor, tag in tagged if tensor.shape[tag.dim] > 1]
        if not wide:
            return
        tensor, tag = wide[0]
        place, channels = tensor.ndim - tag.dim, tensor.shape[tag.dim]
        for other in tensors:
            if id(other) not in self._tags and other.ndim >= place and other.shape[other.ndim - place] == channels:
                raise self._fail(f"'{name}' mixes its {channels} channels with a constant or a bare parameter")
        for other, other_tag in wide[1:]:
            if other.ndim - other_tag.dim != place or other.shape[other_tag.dim] != channels:
                raise self._fail(f"'{name}' of {tuple(tensor.shape)} and {tuple(other.shape)} mixes channels")
            _tie(tag.segments, other_tag.segments)
        if output.ndim < place or output.shape[output.ndim - place] != channels:
            raise self._fail(f"'{name}' turns {tuple(tensor.shape)} into {tuple(output.shape)}")
        self._set(output, output.ndim - place, tag.segments)


_RULES: dict[str, Callable[..., None]] = {
    "cat": _Watch._concatenate,
    "permute": _Watch._permute,
    "transpose": _Watch._permute,
    "t": _Watch._permute,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"), _Watch._reshape),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _Watch._reduce),
    **dict.fromkeys(("slice", "narrow", "select", "split", "split_with_sizes", "unsafe_split"), _Watch._slice),
}
