"""Which channels of a network may change places with one another, and what stands in the way of the others.

Channels are numbered over the whole network and marked by all that keeps them apart: pieces of a concatenation, groups
of plain layers, blocks that have faded, widths. Those with the same marks may change places.

Usage:
    >>> network = MovableChannels(model, trace_model(model, dense=True))
    >>> [len(members) for members in network.movable()]
    [16, 32]
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from litheseg.nn.grouping import ChannelShuffle, GroupMask
from litheseg.nn.layers import SlimConvTranspose2d, SlimGroupNorm
from litheseg.nn.segments import Segment
from litheseg.nn.sides import HEADS, Sides, Trace
from litheseg.nn.width import Channels

__all__ = ["Ids", "MovableChannels", "group_mask"]

Ids: TypeAlias = NDArray[np.int64]
"""Numbers of channels, or places."""


class MovableChannels:
    """The channels of a network, numbered, with marks: channels change places only if all their marks are the same.

    A channel before a shuffle and the same one behind it have one number.

    Attributes:
        count: number of channels.
        sides: by layer: the numbers of the channels at its outputs and at its inputs.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._marks: dict[int, list[Any]] = defaultdict(list)
        self._held: dict[int, str] = {}  # why a channel cannot move at all
        self._number(trace)
        owners = Counter(id(value) for child in model.modules() for value in child.parameters(recurse=False))
        for name, sides in trace.items():
            if isinstance(sides.module, HEADS):
                for channels in self.sides[name]:
                    self._hold(channels, f"belongs to the heads of '{name}'")
                continue
            layer = model.get_submodule(name)
            self._mark_groups(name, sides)
            self._mark_widths(name, layer)
            self._mark_stages(name, group_mask(layer))
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
        """`Relabelling.sources` of the layers that change, if `found` says which channel comes to each one's place."""
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
        pieces = {name: (sides.outputs, sides.inputs) for name, sides in trace.items()}
        segments = list(dict.fromkeys(piece for pair in pieces.values() for side in pair for piece in side))
        ends = np.cumsum([segment.size for segment in segments])
        places = {segment: np.arange(end - segment.size, end) for segment, end in zip(segments, ends, strict=True)}
        slots = {
            name: tuple(np.concatenate([places[piece] for piece in side]) for side in pair)
            for name, pair in pieces.items()
        }
        same = [np.zeros((2, 0), np.int64)]
        for name, sides in trace.items():
            if isinstance(sides.module, ChannelShuffle):
                shuffled = sides.module(torch.from_numpy(slots[name][1])[None])[0]
                same.append(np.stack([slots[name][0], shuffled.numpy()]))
        links = np.concatenate(same, axis=1)
        graph = coo_array((np.ones(links.shape[1]), links), shape=(ends[-1], ends[-1]))
        self.count, numbers = connected_components(graph, directed=False)
        self.sides: dict[str, tuple[Ids, Ids]] = {
            name: (numbers[outputs].astype(np.int64), numbers[inputs].astype(np.int64))
            for name, (outputs, inputs) in slots.items()
        }
        for index, segment in enumerate(segments):
            self._mark_segment(index, segment, numbers[places[segment]])
        for (owner, name), bare in trace.bare.items():
            for segment in bare.segments:
                if segment in places:  # else it has an entry for each head
                    self._hold(numbers[places[segment]], f"belongs to the parameter '{f'{owner}.{name}'.lstrip('.')}'")

    def _mark_segment(self, index: int, segment: Segment, channels: Ids) -> None:
        self._mark(("segment", index), channels, np.zeros_like(channels))
        if segment.fixed:
            self._hold(channels, "is the image, an output, or added to one")
        elif len(np.unique(channels)) < len(channels):
            self._hold(channels, "is added to itself in another order, behind a shuffle")

    def _mark_groups(self, name: str, sides: Sides) -> None:
        """Keep channels in the groups of norms and plain convolutions, or, where the weight cannot follow, still."""
        layer, (outputs, inputs), groups = sides.module, self.sides[name], sides.groups
        if group_mask(layer) is not None or groups == 1 or (sides.keeps and groups == len(inputs)):
            return  # dense or one group for each channel: all that belongs to a channel follows it
        if isinstance(layer, (nn.GroupNorm, SlimGroupNorm)):
            self._mark(("groups", name), inputs, _groups(inputs, groups))
            return
        transposed = isinstance(layer, (nn.ConvTranspose2d, SlimConvTranspose2d))
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        self._mark(("groups", name), first, _groups(first, groups))
        self._hold(second, f"belongs to the {groups} groups of '{name}'")

    def _mark_stages(self, name: str, mask: GroupMask | None) -> None:
        """Keep channels in the blocks outside which all has faded."""
        over = () if mask is None else mask.stages[: mask.stage + (mask.alpha == 0.0)]
        for channels in self.sides[name] if over else ():
            self._mark(("stages", name), channels, _groups(channels, over[-1]))

    def _mark_widths(self, name: str, layer: nn.Module) -> None:
        """Tell apart channels that different widths keep."""
        outputs, inputs = self.sides[name]
        for attribute, side in (("outputs", outputs), ("inputs", inputs), ("channels", inputs)):
            rule = getattr(layer, attribute, None)
            if isinstance(rule, Channels):
                kept = torch.zeros(rule.full, dtype=torch.int64)
                for width in layer.dial.available:  # type: ignore[union-attr]
                    kept[rule.select(torch.arange(rule.full), 0, width)] += 1  # a narrower width keeps some of these
                self._mark(("widths", name), side, kept.numpy())

    def _hold(self, channels: Ids, why: str) -> None:
        self._mark("held", channels, channels)
        for channel in channels.tolist():
            self._held.setdefault(channel, why)

    def _mark(self, kind: Any, channels: Ids, values: Ids) -> None:
        for channel, value in zip(channels.tolist(), values.tolist(), strict=True):
            self._marks[channel].append((kind, value))


def group_mask(layer: nn.Module) -> GroupMask | None:
    """The mask of a gradual layer; None for others."""
    mask = getattr(layer, "grouping", None)
    return mask if isinstance(mask, GroupMask) else None


def _groups(channels: Ids, groups: int) -> Ids:
    """The group of every place."""
    return np.arange(len(channels)) * groups // len(channels)


def _source(side: Ids, found: Ids) -> Ids:
    """For every place of a side, where the channel that comes to it is now; repeated channels stay in their order."""
    order = np.argsort(side, kind="stable")
    ordered, rank = side[order], np.empty_like(order)
    rank[order] = np.arange(len(order))
    return order[np.searchsorted(ordered, found[side]) + rank - np.searchsorted(ordered, side)]
