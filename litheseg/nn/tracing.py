"""Which channels of a network belong together: found by running it once and watching every tensor.

Each tensor of the run carries a tag: which of its dimensions holds channels, and the list of segments (runs of
channels) that they consist of. A layer makes a new segment; an addition ties the segments of its two sides, so that
they shrink alike; a concatenation appends one list to the other; pooling, activations and the like pass the list on.
Where segments of different sizes meet, the larger one is split. What mixes channels in another way (a reshape across
them, a slice of them) cannot shrink, and is an error that names the layer.

`litheseg.nn.slim` turns segments into `Channels`, which depend on the width.

Usage:
    >>> trace = trace_model(model)
    >>> trace["layer1.0.conv1"].outputs  # segments
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import timm.layers
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from litheseg.errors import ModelError
from litheseg.nn.attention import Heads, SlimHeads, adopt_attention
from litheseg.nn.grouping import ChannelShuffle, GradualConv2d
from litheseg.nn.layers import BatchNormThen, SlimLinear, SwitchableBatchNorm2d
from litheseg.nn.segments import Segment, cut, resolve, tie
from litheseg.nn.sides import CONVOLUTIONS, HEADS, NORMS, Bare, Sides, Trace
from litheseg.nn.surgery import copied
from litheseg.nn.watching import Watch, image_channels

__all__ = ["run_example", "trace_channels", "trace_model"]

_LEAVES = (*CONVOLUTIONS, *NORMS, *HEADS, nn.Linear, SlimLinear, ChannelShuffle)
# Subclasses whose forward is the plain layer's, at most with a masked weight, or an activation that keeps the channels.
_KNOWN_FORWARDS = (
    *(BatchNormAct2d, BatchNormThen, GradualConv2d),
    *(timm.layers.GroupNorm, timm.layers.GroupNorm1, timm.layers.Linear),
)


@dataclass
class _Tag:
    """Which dimension of a tensor holds its channels, and which channels they are.

    A guess is made of a bare parameter: it counts once the parameter meets a tensor whose channels are known.
    """

    dim: int
    segments: list[Segment]
    guess: bool = False


def run_example(module: nn.Module, image: Tensor) -> list[Tensor]:
    """Run a module and return the outputs whose channels must keep their number.

    Those of `module.outputs(image)` but ``features`` for a `SegmentationModel`, else those of `module(image)`.
    """
    outputs = getattr(module, "outputs", None)
    if callable(outputs):
        return [value for name, value in outputs(image).items() if name != "features"]
    result = module(image)
    return [result] if isinstance(result, Tensor) else list(result.values() if isinstance(result, dict) else result)


def trace_model(module: nn.Module, *, dense: bool = False) -> Trace:
    """Trace a copy of a network in training mode on a small random image; the random state is left as it was.

    Args:
        module: plain, or elastic (traced at full width, whatever its width is); on the meta device it stays there.
        dense: see `trace_channels`.
    """
    device = "meta" if any(parameter.is_meta for parameter in module.parameters()) else "cpu"
    with torch.random.fork_rng(devices=[]):
        image = torch.rand(2, image_channels(module), 64, 64, device=device)
        probe = adopt_attention(_at_full_width(copied(module))).to(device).float().train()
        return trace_channels(probe, lambda m: run_example(m, image), dense=dense)


def _at_full_width(module: nn.Module) -> nn.Module:
    """Set an elastic network to all of its channels, in place, though no width may have been trained with them."""
    dial = getattr(module, "width_dial", None)
    if dial is not None:
        dial.widths, dial.width = (1.0,), 1.0
        for layer in module.modules():
            if isinstance(layer, SwitchableBatchNorm2d):
                layer.norms = nn.ModuleList([nn.BatchNorm2d(layer.channels.full)])
    return module


def trace_channels(module: nn.Module, call: Callable[[nn.Module], Iterable[Tensor]], *, dense: bool = False) -> Trace:
    """Run `call(module)` once and report the channels of every layer it used.

    Args:
        module: run as it is (mode, buffers): hand in a copy.
        call: feeds the module an image and returns the tensors whose channels must keep their number.
        dense: treat a convolution that becomes depthwise gradually as the dense one that it still is.

    Raises:
        ModelError: a layer does something to channels that cannot shrink; the message names it.
    """
    watch = _Tagger(module, dense=dense)
    with torch.no_grad():
        outputs = watch.run(lambda: list(call(module)))
    for tensor in outputs:
        for segment in watch.segments_of(tensor):
            segment.fixed = True
    watch.settle()
    return watch.trace


class _Tagger(Watch):
    """Tags every tensor of a run with its channels.

    Args:
        module: run as it is.
        dense: see `trace_channels`.
    """

    def __init__(self, module: nn.Module, *, dense: bool) -> None:
        super().__init__(module)
        self.trace = Trace()
        self._module, self._dense = module, dense
        self._tags: dict[int, _Tag] = {}
        self._alive: list[Tensor] = []  # ids are only unique among the living
        self._leaf: nn.Module | None = None
        self._guessing = False  # whether the present operator has read nothing but guesses
        self._find_bare_parameters()

    def _find_bare_parameters(self) -> None:
        """Tag every parameter outside of layers whose shape tells which dimension may hold channels."""
        for name, child in self._module.named_modules():
            if not isinstance(child, _LEAVES):
                for own, value in child.named_parameters(recurse=False):
                    wide = [dim for dim, size in enumerate(value.shape) if size > 1]
                    if len(wide) == 1 or (value.ndim == 3 and value.shape[0] == 1 and wide):
                        bare = Bare(wide[-1], [Segment(value.shape[wide[-1]])])
                        self.trace.bare[name, own] = bare
                        self._tags[id(value)] = _Tag(bare.dim, bare.segments, guess=True)

    def settle(self) -> None:
        """Resolve what the trace holds, and forget bare parameters whose channels are no layer's."""
        for sides in self.trace.values():
            sides.inputs, sides.outputs = resolve(sides.inputs), resolve(sides.outputs)
            sides.per_head = resolve(sides.per_head)
        known = {piece for sides in self.trace.values() for piece in (*sides.inputs, *sides.outputs, *sides.per_head)}
        for key, bare in list(self.trace.bare.items()):
            bare.segments = resolve(bare.segments)
            if not known.issuperset(bare.segments):
                del self.trace.bare[key]

    def segments_of(self, tensor: Tensor) -> list[Segment]:
        """The current segments of a tensor; none if its channels are not tracked."""
        tag = self._tags.get(id(tensor))
        return resolve(tag.segments) if tag else []

    def _set(self, tensor: Tensor, dim: int, segments: list[Segment]) -> None:
        self._alive.append(tensor)
        self._tags[id(tensor)] = _Tag(dim, segments, self._guessing)

    def _fail(self, what: str) -> ModelError:
        kind = type(self._module.get_submodule(self.where)).__name__
        return ModelError(
            f"layer '{self.where or '(the model itself)'}' ({kind}) cannot be slimmed: {what}. "
            "Rewrite it so that channels are only convolved, normalised, added or concatenated"
        )

    # --- layers ------------------------------------------------------------------------------------------------------

    def entered(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """From here on operators belong to a layer, and are not looked at one by one."""
        if self._leaf is None and isinstance(module, _LEAVES):
            self._leaf = module

    def left(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Record a layer's sides and tag its output."""
        if self._leaf is not module:
            return
        self._leaf, self._guessing, x = None, False, inputs[0]
        tag = self._tags.get(id(x)) or _Tag(1, [Segment(x.shape[1], fixed=True)])
        self._check_layer(module, x, tag.dim)
        sides = self.trace.get(self.where)
        if sides is None:
            made = Segment(output.shape[tag.dim], fixed=output.shape[tag.dim] == 1)
            sides = Sides(module, tag.segments, [made], channels_first=tag.dim == 1 and x.ndim == 4)
            if isinstance(module, HEADS):
                self._tie_heads(sides, inputs)
            still_dense = self._dense and getattr(module, "grouping", None) is not None
            if isinstance(module, NORMS) or (sides.depthwise and not still_dense):
                sides.keeps, sides.outputs = True, sides.inputs
            self.trace[self.where] = sides
        else:  # a layer that is used again ties both uses
            tie(sides.inputs, tag.segments)
        self._set(output, tag.dim, sides.outputs)

    def _tie_heads(self, sides: Sides, inputs: tuple[Any, ...]) -> None:
        """Tie query, key and value; what comes out of heads that hold all three has a third of the channels."""
        core = sides.module.core if isinstance(sides.module, SlimHeads) else sides.module
        assert isinstance(core, Heads)
        if not core.parts:
            sides.inputs = resolve(sides.inputs)
            sides.outputs = [Segment(piece.size // 3, fixed=piece.fixed) for piece in sides.inputs]
            return
        equal: list[list[Segment]] = []
        for x, parts in zip(inputs, core.parts, strict=False):
            size = x.shape[-1] // parts
            equal += [cut(self._tags[id(x)].segments, part * size, size) for part in range(parts)]
        for other in equal[1:]:
            tie(equal[0], other)
        sides.inputs = equal[0]
        for x in inputs[len(core.parts) :]:
            sides.per_head += self._tags[id(x)].segments if id(x) in self._tags else []

    def _check_layer(self, module: nn.Module, x: Tensor, dim: int) -> None:
        if isinstance(module, HEADS):
            return
        plain = next(kind for kind in _LEAVES if isinstance(module, kind))
        if isinstance(module, nn.LayerNorm):
            if len(module.normalized_shape) > 1 or module.normalized_shape[0] != x.shape[dim]:
                raise self._fail("its normalisation spans more than the channels")
        elif type(module).forward is not plain.forward and not isinstance(module, _KNOWN_FORWARDS):
            raise self._fail(f"it is a {plain.__name__} with a forward of its own")
        if isinstance(module, nn.Linear) and dim != x.ndim - 1:
            raise self._fail("it is not applied to the channels")

    # --- operators ---------------------------------------------------------------------------------------------------

    def saw(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Tag what an operator between layers made."""
        if self._leaf is not None:
            return
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tagged = [(tensor, self._tags[id(tensor)]) for tensor in tensors if id(tensor) in self._tags]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.ndim]
        if not tagged or not outputs:
            return
        name = func.overloadpacket.__name__
        rule = _RULES.get(name, _Tagger._elementwise if len(tensors) > 1 else _Tagger._unary)
        self._guessing = all(tag.guess for _, tag in tagged)
        tagged.sort(key=lambda pair: pair[1].guess)
        for output in outputs:
            try:
                rule(self, name, args, tensors, tagged, output)
            except ModelError:
                if not self._guessing:
                    raise

    def _concatenate(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        dim = (args[1] if len(args) > 1 else 0) % output.ndim
        tag = tagged[0][1]
        if dim != tag.dim:
            self._elementwise(name, args, tensors, tagged, output)
            return
        segments: list[Segment] = []
        for tensor in tensors:
            own = self._tags.get(id(tensor))
            segments += own.segments if own and own.dim == dim else [Segment(tensor.shape[dim], fixed=True)]
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
        at = 2 if name == "linalg_vector_norm" else 1  # behind the order of the norm
        dims = args[at] if len(args) > at and args[at] is not None else list(range(tensor.ndim))
        reduced = {dim % tensor.ndim for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}
        if tag.dim in reduced:
            return  # over all channels: whatever their number, one value
        kept = output.ndim == tensor.ndim
        self._set(output, tag.dim if kept else tag.dim - sum(dim < tag.dim for dim in reduced), tag.segments)

    def _slice(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        tensor, tag = tagged[0]
        dim = (args[1] if len(args) > 1 else 0) % tensor.ndim
        if name in _SPLITS:
            dim = (args[2] if len(args) > 2 else 0) % tensor.ndim
            if dim == tag.dim:
                self._split(tensor, tag, output)
                return
        if dim == tag.dim and output.shape[min(dim, output.ndim - 1)] != tensor.shape[dim]:
            raise self._fail(f"it takes a part of the {tensor.shape[dim]} channels ({name})")
        removed = output.ndim < tensor.ndim and dim < tag.dim
        self._set(output, tag.dim - removed, tag.segments)

    def _split(self, tensor: Tensor, tag: _Tag, output: Tensor) -> None:
        """A run of the channels; runs of the same size shrink alike, so that a narrower tensor is split as evenly."""
        start = int(output.storage_offset() - tensor.storage_offset()) // tensor.stride(tag.dim)
        size = output.shape[tag.dim]
        own, first = cut(tag.segments, start, size), cut(tag.segments, 0, size)
        if start >= size:
            tie(first, own)
        self._set(output, tag.dim, resolve(own))

    def _unary(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        tensor, tag = tagged[0]
        if output.ndim != tensor.ndim or output.shape[tag.dim] != tensor.shape[tag.dim]:
            raise self._fail(f"'{name}' turns {tuple(tensor.shape)} into {tuple(output.shape)}")
        self._set(output, tag.dim, tag.segments)

    def _elementwise(self, name: str, args: Any, tensors: Any, tagged: Any, output: Tensor) -> None:
        """Broadcasting: channels at the same place from the right are tied; single channels are skipped."""
        wide = [(tensor, tag) for tensor, tag in tagged if tensor.shape[tag.dim] > 1]
        if not wide:
            return
        tensor, tag = wide[0]
        place, channels = tensor.ndim - tag.dim, tensor.shape[tag.dim]
        # A guess that does not hold here is a constant.
        wrong = {id(other) for other, own in wide if own.guess and not tag.guess and other.ndim - own.dim != place}
        wide = [pair for pair in wide if id(pair[0]) not in wrong]
        known = self._tags.keys() - wrong
        for other in tensors:
            if id(other) not in known and other.ndim >= place and other.shape[other.ndim - place] == channels:
                raise self._fail(f"'{name}' mixes its {channels} channels with a constant or a bare parameter")
        for other, other_tag in wide[1:]:
            if other.ndim - other_tag.dim != place or other.shape[other_tag.dim] != channels:
                raise self._fail(f"'{name}' of {tuple(tensor.shape)} and {tuple(other.shape)} mixes channels")
            tie(tag.segments, other_tag.segments)
        if output.ndim < place or output.shape[output.ndim - place] != channels:
            raise self._fail(f"'{name}' turns {tuple(tensor.shape)} into {tuple(output.shape)}")
        self._set(output, output.ndim - place, tag.segments)


_SPLITS = ("split", "split_with_sizes", "unsafe_split")
_RULES: dict[str, Callable[..., None]] = {
    "cat": _Tagger._concatenate,
    "permute": _Tagger._permute,
    "transpose": _Tagger._permute,
    "t": _Tagger._permute,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"), _Tagger._reshape),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "linalg_vector_norm"), _Tagger._reduce),
    **dict.fromkeys(("slice", "narrow", "select", *_SPLITS), _Tagger._slice),
}
