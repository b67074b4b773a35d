"""Which channels share a group: found by permuting the channels of a network that is not grouped yet.

The blocks of a `GradualConv2d` are fixed, and so is every channel shuffle; which channel stands where is not. Permuting
the channels of a tied set, together with every weight, bias and norm that touches them, leaves the function of the
network as it is. `find_relabelling` looks for the permutations with which the final blocks hold as much of the squared
weights as possible; connections that a later stage cuts count in part. Each layer counts alike, whatever the scale of
its weights, which the norm behind it makes arbitrary. How the search goes is in `litheseg.nn.arrangement`.

Channels change places only where nobody can tell: not those of the image and the outputs, not across the pieces of a
concatenation, only among channels that the same widths keep, not where a plain grouped layer would be torn apart. While
a layer fades, weights that move into its blocks are scaled by alpha, and those that leave them by 1 / alpha, so that
the function stays the same then, too; blocks of earlier stages are not crossed. What is deployed knows nothing of it:
there is no permutation at run time.

It does not know of time, training or data: weights are all it looks at.

Papers: Vallurupalli et al., "Efficient Semantic Segmentation using Gradual Grouping", CVPR Workshops 2018 (the groups);
Huang et al., "CondenseNet", CVPR 2018 (that groups are better found than given).

Usage:
    >>> relabelling = find_relabelling(model)  # with gradual layers; plain or elastic
    >>> relabelling.apply(model, optimizer)
    >>> relabelling.kept_before["layer1.conv1"], relabelling.kept_after["layer1.conv1"]
    (0.25, 0.61)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.nn.arrangement import ChannelSet, Ids, Matrix, arrange
from litheseg.nn.grouping import GroupMask, channel_shuffle, gradual_layers
from litheseg.nn.layers import SlimConvTranspose2d, SlimGroupNorm, SwitchableBatchNorm2d, width_key
from litheseg.nn.tracing import Segment, Sides, Trace, trace_model
from litheseg.nn.width import Channels

__all__ = ["Relabelling", "find_relabelling"]


@dataclass(frozen=True)
class Relabelling:
    """New places for the channels of a network.

    Attributes:
        kept_before: by gradual layer: share of its squared weight inside the final blocks, in [0, 1].
        kept_after: the same once `apply` has been called.
        sources: by layer: for every output and every input channel, the place that it comes from.
    """

    kept_before: dict[str, float]
    kept_after: dict[str, float]
    sources: dict[str, tuple[Tensor, Tensor]]

    @torch.no_grad()
    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the channels, in place; the parameters stay the same objects, in the same memory.

        Gradients move along, and so does what the optimizer remembers of a parameter entry by entry (Adam's moments,
        the momentum); parameters that it has not seen yet do not matter. Whoever keeps other copies of the weights (a
        moving average) calls this for them as well.

        Args:
            model: the one that this was found for, or one with the same layers; still dense.
            optimizer: of its parameters.
        """
        for name, (outputs, inputs) in self.sources.items():
            layer = model.get_submodule(name)
            mask = _mask(layer)
            if mask is not None:
                layer.weight.data.mul_(mask.mask)  # type: ignore[operator,union-attr]
            for tensor, sources in _tensors(layer, outputs, inputs):
                state = optimizer.state.get(tensor, {}) if optimizer else {}
                for value in (tensor, tensor.grad, *state.values()):
                    if isinstance(value, Tensor) and value.shape == tensor.shape:
                        _move(value, sources)
            if mask is not None:
                layer.weight.data.div_(torch.where(mask.mask == 0, 1, mask.mask))  # type: ignore[operator,union-attr]


def find_relabelling(model: nn.Module) -> Relabelling:
    """The best places found for the channels of a network that is about to fade, or fading; it is left as it is.

    The same weights give the same result. A layer none of whose channels can move stays contiguous; that is an error
    only if it is so for all of them. Layers that the trace did not reach are not looked at.

    Args:
        model: with gradual layers; plain or elastic.

    Raises:
        ModelError: there are gradual layers, but not one has channels that can change groups.
    """
    trace = trace_model(model, dense=True)
    network = _Network(model, trace)
    layers = {name: pair for name, pair in gradual_layers(model).items() if name in trace.sides}
    matrices = {name: _matrix(layer, mask, network.sides[name]) for name, (layer, mask) in layers.items()}
    sets = [ChannelSet(members, matrices.values()) for members in network.movable()]
    sets = [one for one in sets if one.matters]
    if layers and not sets:
        raise _stuck(next(iter(layers)), network)
    before = {name: matrix.kept for name, matrix in matrices.items()}
    arrange(sets, list(matrices.values()))
    after = {name: matrix.kept for name, matrix in matrices.items()}
    found = np.arange(network.count)
    for one in sets:
        found[one.members] = one.members[one.order]
    return Relabelling(before, after, network.sources(found))


def _matrix(layer: nn.Module, mask: GroupMask, channels: tuple[Ids, Ids]) -> Matrix:
    """The squared effective weights of a layer, and in what share of the stages two groups are connected."""
    weight = (layer.weight.detach() * mask.mask).double().cpu()  # type: ignore[operator]
    energy = weight.square().flatten(2).sum(2).numpy()
    rows, columns = (size // mask.groups for size in energy.shape)
    level = mask.cut.cpu().numpy()[::rows, ::columns] / len(mask.stages)
    return Matrix(energy / max(energy.sum(), np.finfo(float).tiny), level, channels)


def _stuck(name: str, network: _Network) -> ModelError:
    made, read = (network.reason(channels) for channels in network.sides[name])
    return ModelError(
        f"no channels can change groups in layer '{name}' (what it reads {read}; what it makes {made}), nor in any "
        "other that fades. Keep their order (--grouping.assignment contiguous), or group others (--grouping.where)"
    )


# --- applying --------------------------------------------------------------------------------------------------------


def _tensors(layer: nn.Module, outputs: Tensor, inputs: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """What a layer holds per channel, with the source of every place along its first dimensions."""
    if isinstance(layer, SwitchableBatchNorm2d):
        known = {layer.dial.widths[index]: norm for index, norm in enumerate(layer.norms)}
        known |= {width: layer.calibrated[width_key(width)] for width in layer.dial.calibrated}
        for width, norm in known.items():
            kept = layer.channels.select(torch.arange(len(outputs)), 0, width)
            place = torch.zeros_like(outputs)
            place[kept] = torch.arange(len(kept))
            yield from _tensors(norm, place[outputs[kept]], place[outputs[kept]])
        return
    transposed = isinstance(layer, (nn.ConvTranspose2d, SlimConvTranspose2d))
    for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
        if tensor.ndim == 1:
            yield tensor, (outputs,)
        elif tensor.ndim > 1:
            first, second = (inputs, outputs) if transposed else (outputs, inputs)
            # A grouped weight has but the channels of one group in its second dimension, and they stay.
            yield tensor, (first, second) if tensor.shape[1] == len(second) else (first,)


def _mask(layer: nn.Module) -> GroupMask | None:
    mask = getattr(layer, "grouping", None)
    return mask if isinstance(mask, GroupMask) else None


def _move(value: Tensor, sources: tuple[Tensor, ...]) -> None:
    moved = value.detach()
    for dim, source in enumerate(sources):
        moved = moved.index_select(dim, source.to(value.device))
    value.data.copy_(moved)


# --- what may move ---------------------------------------------------------------------------------------------------


class _Network:
    """The channels of a network, numbered, and what tells them apart.

    A channel before a shuffle and the same one behind it have one number.

    Attributes:
        count: channels.
        sides: by layer: the numbers of the channels at its outputs and at its inputs.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._marks: dict[int, list[Any]] = defaultdict(list)
        self._held: dict[int, str] = {}
        self._number(trace)
        owners = Counter(id(value) for child in model.modules() for value in child.parameters(recurse=False))
        for name, sides in trace.sides.items():
            layer = model.get_submodule(name)
            self._mark_groups(name, sides)
            self._mark_widths(name, layer)
            self._mark_stages(name, _mask(layer))
            if any(owners[id(value)] > 1 for value in layer.parameters(recurse=False)):
                for channels in self.sides[name]:
                    self._hold(channels, f"belongs to weights that '{name}' shares with another layer")

    def movable(self) -> list[Ids]:
        """Sets of channels that may change places with one another, in the order in which they appear."""
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for channel in range(self.count):
            alike[tuple(self._marks[channel])].append(channel)
        return [np.array(members) for members in alike.values() if len(members) > 1]

    def sources(self, found: Ids) -> dict[str, tuple[Tensor, Tensor]]:
        """`Relabelling.sources` where `found` says which channel comes to the place of each; still layers left out."""
        moves = {name: tuple(_source(side, found) for side in pair) for name, pair in self.sides.items()}
        return {
            name: (torch.from_numpy(outputs), torch.from_numpy(inputs))
            for name, (outputs, inputs) in moves.items()
            if not all(np.array_equal(side, np.arange(len(side))) for side in (outputs, inputs))
        }

    def reason(self, channels: Ids) -> str:
        """Why these cannot change groups."""
        known = [self._held[channel] for channel in channels.tolist() if channel in self._held]
        return known[0] if known else "comes in runs (by concatenation, width, stage) that lie within single groups"

    def _number(self, trace: Trace) -> None:
        """Number the channels of all segments; what a shuffle passes on keeps its number."""
        pieces = {
            name: (Trace.pieces(sides.outputs), Trace.pieces(sides.inputs)) for name, sides in trace.sides.items()
        }
        segments = list(dict.fromkeys(piece for pair in pieces.values() for side in pair for piece in side))
        ends = np.cumsum([segment.size for segment in segments])
        places = {segment: np.arange(end - segment.size, end) for segment, end in zip(segments, ends, strict=True)}
        slots = {
            name: tuple(np.concatenate([places[piece] for piece in side]) for side in pair)
            for name, pair in pieces.items()
        }
        same = [np.zeros((2, 0), np.int64)]
        for name, groups in trace.shuffled.items():
            dealt = channel_shuffle(torch.from_numpy(slots[name][1])[None], groups)[0]
            same.append(np.stack([slots[name][0], dealt.numpy()]))
        links = np.concatenate(same, axis=1)
        graph = coo_array((np.ones(links.shape[1]), links), shape=(ends[-1], ends[-1]))
        self.count, numbers = connected_components(graph, directed=False)
        self.sides: dict[str, tuple[Ids, Ids]] = {
            name: (numbers[outputs].astype(np.int64), numbers[inputs].astype(np.int64))
            for name, (outputs, inputs) in slots.items()
        }
        for index, segment in enumerate(segments):
            self._mark_segment(index, segment, numbers[places[segment]])

    def _mark_segment(self, index: int, segment: Segment, channels: Ids) -> None:
        self._mark(("segment", index), channels, np.zeros_like(channels))
        if segment.fixed:
            self._hold(channels, "is the image, an output, or added to one")
        elif len(np.unique(channels)) < len(channels):
            self._hold(channels, "is added to itself in another order, behind a shuffle")

    def _mark_groups(self, name: str, sides: Sides) -> None:
        """Keep channels in the groups of norms and plain convolutions, or, where the weight cannot follow, still."""
        layer, (outputs, inputs) = sides.module, self.sides[name]
        if getattr(layer, "grouping", None) is not None:
            return  # still dense
        groups = sides.groups
        if isinstance(layer, (nn.GroupNorm, SlimGroupNorm)):
            first, second = inputs, None
        elif isinstance(layer, (nn.ConvTranspose2d, SlimConvTranspose2d)):
            first, second = inputs, outputs
        else:
            first, second = outputs, inputs
        if groups == 1 or (sides.keeps and groups == len(first)):
            return  # dense, depthwise or one by one: all that belongs to a channel follows it
        self._mark(("groups", name), first, _groups(first, groups))
        if second is not None:
            self._hold(second, f"belongs to the {groups} groups of '{name}'")

    def _mark_stages(self, name: str, mask: GroupMask | None) -> None:
        """Keep channels in the blocks beyond which nothing is left."""
        over = () if mask is None else mask.stages[: mask.stage + (mask.alpha == 0.0)]
        for channels in self.sides[name] if over else ():
            self._mark(("stages", name), channels, _groups(channels, over[-1]))

    def _mark_widths(self, name: str, layer: nn.Module) -> None:
        """Tell apart channels that not the same widths keep."""
        outputs, inputs = self.sides[name]
        for attribute, side in (("outputs", outputs), ("inputs", inputs), ("channels", inputs)):
            rule = getattr(layer, attribute, None)
            if isinstance(rule, Channels):
                kept = torch.zeros(rule.full, dtype=torch.int64)
                for width in layer.dial.available:  # type: ignore[union-attr]
                    kept[rule.select(torch.arange(rule.full), 0, width)] += 1  # what is narrower keeps some of these
                self._mark(("widths", name), side, kept.numpy())

    def _hold(self, channels: Ids, why: str) -> None:
        self._mark("held", channels, channels)
        for channel in channels.tolist():
            self._held.setdefault(channel, why)

    def _mark(self, kind: Any, channels: Ids, values: Ids) -> None:
        """Tell channels apart: those with different marks never change places."""
        for channel, value in zip(channels.tolist(), values.tolist(), strict=True):
            self._marks[channel].append((kind, value))


def _groups(channels: Ids, groups: int) -> Ids:
    """The group of every place."""
    return np.arange(len(channels)) * groups // len(channels)


def _source(side: Ids, found: Ids) -> Ids:
    """For every place of a side, where the channel that comes to it is now; concatenated runs keep to their own."""
    order = np.argsort(side, kind="stable")
    ordered, rank = side[order], np.empty_like(order)
    rank[order] = np.arange(len(order))
    return order[np.searchsorted(ordered, found[side]) + rank - np.searchsorted(ordered, side)]
