"""Which channels share a group: found by permuting the channels of a network before they become grouped.

The groups of a `GradualConv2d` are fixed blocks of places; which channel stands at which place is free. Permuting the
channels of a tensor, together with every weight, bias and norm that touches them, leaves the function of the network as
it is. `find_relabelling` looks for the permutations with which the final blocks hold as much of the squared weights as
possible. Connections that only a later stage cuts count in part, and each layer counts alike, whatever the scale of its
weights, which the norm behind it makes arbitrary. What is deployed has no permutation at run time.

Channels change places only where that changes nothing: not those of the image and the outputs, not across the pieces of
a concatenation, only among channels that the same widths keep, not across the groups of a plain grouped layer, and not
across blocks that have faded. While a layer fades, weights that move into its blocks are multiplied by alpha, and those
that leave them divided by it, so that the function stays the same.

The search: channels that may change places form a set, which may lie along many weight matrices, or along both sides
of one. With all other sets held still, the best order of a set is a linear assignment problem, solved exactly; sets
take turns until nothing is gained. Where a set lies along both sides of a matrix the problem is quadratic: the linear
step is taken only if it gains, then the best exchange of two channels, again and again. This runs from two starts, the
present order and one that places set after set by what is already placed, and the better result counts.

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.nn.grouping import ChannelShuffle, GroupMask, gradual_layers
from litheseg.nn.layers import SlimConvTranspose2d, SlimGroupNorm, SwitchableBatchNorm2d
from litheseg.nn.segments import Segment
from litheseg.nn.tracing import HEADS, Sides, Trace, trace_model
from litheseg.nn.width import Channels

__all__ = ["Relabelling", "find_relabelling"]

_Ids: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]
# By matrix: which of its rows and of its columns are placed already.
_Placed: TypeAlias = "dict[_Matrix, tuple[NDArray[np.bool_], NDArray[np.bool_]]]"

# Least gains, where a whole matrix counts 1: of a move, and of a round over all sets for another round to follow.
_LEAST = 1e-9
_LEAST_PER_ROUND = 1e-3
# Exchanges tried per visit of a set that lies along both sides of a matrix: this over the number of its channels.
_EXCHANGES = 2**17


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
        the momentum); parameters that it has not seen yet do not matter. Call this for other copies of
        the weights (a moving average) as well.

        Args:
            model: the one that this was found for, or one with the same layers; still dense.
            optimizer: of its parameters.
        """
        for name, (outputs, inputs) in self.sources.items():
            layer: Any = model.get_submodule(name)
            mask = _mask(layer)
            if mask is not None:
                layer.weight.data.mul_(mask.mask)
            for tensor, sources in _tensors(layer, outputs, inputs):
                state = optimizer.state.get(tensor, {}) if optimizer else {}
                for value in (tensor, tensor.grad, *state.values()):
                    if isinstance(value, Tensor) and value.shape == tensor.shape:
                        _move(value, sources)
            if mask is not None:
                layer.weight.data.div_(torch.where(mask.mask == 0, 1, mask.mask))


def find_relabelling(model: nn.Module) -> Relabelling:
    """Find the best places for the channels of a network whose layers are about to fade, or fading; it is not changed.

    The same weights give the same result. A layer none of whose channels can move stays contiguous; that is an error
    only if it is so for all of them. Layers that do not run are left out.

    Args:
        model: with gradual layers; plain or elastic.

    Raises:
        ModelError: there are gradual layers, but not one has channels that can change groups.
    """
    trace = trace_model(model, dense=True)
    network = _Network(model, trace)
    layers = {name: pair for name, pair in gradual_layers(model).items() if name in trace}
    matrices = {name: _Matrix.of(layer, mask, network.sides[name]) for name, (layer, mask) in layers.items()}
    sets = [_ChannelSet(members, matrices.values()) for members in network.movable()]
    sets = [one for one in sets if one.matters]
    if layers and not sets:
        name = next(iter(layers))
        made, read = (network.reason(channels) for channels in network.sides[name])
        raise ModelError(
            f"no channels can change groups in layer '{name}' (what it reads {read}; what it makes {made}), nor in any "
            "other that fades. Keep their order (--grouping.assignment contiguous), or group others (--grouping.where)"
        )
    before = {name: matrix.kept for name, matrix in matrices.items()}
    _arrange(sets, list(matrices.values()))
    after = {name: matrix.kept for name, matrix in matrices.items()}
    found = np.arange(network.count)
    for one in sets:
        found[one.members] = one.members[one.order]
    return Relabelling(before, after, network.sources(found))


# --- applying --------------------------------------------------------------------------------------------------------


def _tensors(layer: nn.Module, outputs: Tensor, inputs: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """What a layer holds per channel, with the source of every place along its first dimensions."""
    if isinstance(layer, SwitchableBatchNorm2d):
        for width in layer.dial.available:
            kept = layer.channels.select(torch.arange(len(outputs)), 0, width)
            place = torch.zeros_like(outputs)
            place[kept] = torch.arange(len(kept))
            yield from _tensors(layer.norm_of(width), place[outputs[kept]], place[outputs[kept]])
        return
    transposed = isinstance(layer, (nn.ConvTranspose2d, SlimConvTranspose2d))
    for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
        if tensor.ndim == 1:
            yield tensor, (outputs,)
        elif tensor.ndim > 1:
            first, second = (inputs, outputs) if transposed else (outputs, inputs)
            # A grouped weight has only the channels of one group in its second dimension, and they stay.
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
            self._mark_stages(name, _mask(layer))
            if any(owners[id(value)] > 1 for value in layer.parameters(recurse=False)):
                for channels in self.sides[name]:
                    self._hold(channels, f"belongs to weights that '{name}' shares with another layer")

    def movable(self) -> list[_Ids]:
        """Sets of channels that may change places with one another, in the order in which they appear."""
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for channel in range(self.count):
            alike[tuple(self._marks[channel])].append(channel)
        return [np.array(members) for members in alike.values() if len(members) > 1]

    def sources(self, found: _Ids) -> dict[str, tuple[Tensor, Tensor]]:
        """`Relabelling.sources` of the layers that change, if `found` says which channel comes to each one's place."""
        moves = {name: tuple(_source(side, found) for side in pair) for name, pair in self.sides.items()}
        return {
            name: (torch.from_numpy(outputs), torch.from_numpy(inputs))
            for name, (outputs, inputs) in moves.items()
            if not all(np.array_equal(side, np.arange(len(side))) for side in (outputs, inputs))
        }

    def reason(self, channels: _Ids) -> str:
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
        self.sides: dict[str, tuple[_Ids, _Ids]] = {
            name: (numbers[outputs].astype(np.int64), numbers[inputs].astype(np.int64))
            for name, (outputs, inputs) in slots.items()
        }
        for index, segment in enumerate(segments):
            self._mark_segment(index, segment, numbers[places[segment]])
        for (owner, name), bare in trace.bare.items():
            for segment in bare.segments:
                if segment in places:  # else it has an entry for each head
                    self._hold(numbers[places[segment]], f"belongs to the parameter '{f'{owner}.{name}'.lstrip('.')}'")

    def _mark_segment(self, index: int, segment: Segment, channels: _Ids) -> None:
        self._mark(("segment", index), channels, np.zeros_like(channels))
        if segment.fixed:
            self._hold(channels, "is the image, an output, or added to one")
        elif len(np.unique(channels)) < len(channels):
            self._hold(channels, "is added to itself in another order, behind a shuffle")

    def _mark_groups(self, name: str, sides: Sides) -> None:
        """Keep channels in the groups of norms and plain convolutions, or, where the weight cannot follow, still."""
        layer, (outputs, inputs), groups = sides.module, self.sides[name], sides.groups
        if _mask(layer) is not None or groups == 1 or (sides.keeps and groups == len(inputs)):
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

    def _hold(self, channels: _Ids, why: str) -> None:
        self._mark("held", channels, channels)
        for channel in channels.tolist():
            self._held.setdefault(channel, why)

    def _mark(self, kind: Any, channels: _Ids, values: _Ids) -> None:
        for channel, value in zip(channels.tolist(), values.tolist(), strict=True):
            self._marks[channel].append((kind, value))


def _groups(channels: _Ids, groups: int) -> _Ids:
    """The group of every place."""
    return np.arange(len(channels)) * groups // len(channels)


def _source(side: _Ids, found: _Ids) -> _Ids:
    """For every place of a side, where the channel that comes to it is now; repeated channels stay in their order."""
    order = np.argsort(side, kind="stable")
    ordered, rank = side[order], np.empty_like(order)
    rank[order] = np.arange(len(order))
    return order[np.searchsorted(ordered, found[side]) + rank - np.searchsorted(ordered, side)]


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Matrix:
    """The squared weights of a gradual layer, in the order that is tried.

    Attributes:
        energy: outputs x inputs, not negative; its sum is 1 (or 0).
        level: groups x groups, in [0, 1]: the share of the stages in which two groups are connected.
        channels: the numbers of the channels along the rows and along the columns.
    """

    energy: _Floats
    level: _Floats
    channels: tuple[_Ids, _Ids]

    @classmethod
    def of(cls, layer: Any, mask: GroupMask, channels: tuple[_Ids, _Ids]) -> _Matrix:
        """That of a layer, with its mask applied."""
        weight = (layer.weight.detach() * mask.mask).double().cpu()
        energy = weight.square().flatten(2).sum(2).numpy()
        rows, columns = (size // mask.groups for size in energy.shape)
        level = mask.cut.cpu().numpy()[::rows, ::columns] / len(mask.stages)
        return cls(energy / max(energy.sum(), np.finfo(float).tiny), level, channels)

    @property
    def kept(self) -> float:
        """Energy inside the diagonal blocks, in [0, 1]."""
        return float(np.trace(self._blocks()))

    @property
    def value(self) -> float:
        """What the search makes as large as possible: energy weighted by level."""
        return float((self._blocks() * self.level).sum())

    def along(self, axis: int) -> _Floats:
        """Energy with the channels of an axis first."""
        return self.energy if axis == 0 else self.energy.T

    def worth(self, axis: int, counted: NDArray[np.bool_] | None = None) -> _Floats:
        """Channels x groups: the value of each row (axis 0) or column (1) in every group.

        Args:
            axis: 0 or 1.
            counted: which channels of the other axis count; all of them if None.
        """
        energy, level = self.along(axis), self.level if axis == 0 else self.level.T
        if counted is not None:
            energy = energy * counted
        grouped = energy.reshape(len(energy), len(level), -1).sum(axis=2)
        return grouped if self._one_stage else grouped @ level.T  # an identity of 2048 groups takes seconds

    def groups_of(self, axis: int, places: _Ids) -> _Ids:
        """The groups of some places."""
        return places * len(self.level) // self.energy.shape[axis]

    def move(self, axis: int, places: _Ids, order: _Ids) -> None:
        """Put at `places` what is at `places[order]`."""
        sources = np.arange(self.energy.shape[axis])
        sources[places] = places[order]
        self.energy = self.energy.take(sources, axis)

    @cached_property
    def _one_stage(self) -> bool:
        return np.array_equal(self.level, np.eye(len(self.level)))

    def _blocks(self) -> _Floats:
        groups = len(self.level)
        return self.energy.reshape(groups, -1, groups, self.energy.shape[1] // groups).sum(axis=(1, 3))


@dataclass(frozen=True)
class _Use:
    """The places of a set along one axis of a matrix, in the order of its members."""

    matrix: _Matrix
    axis: int
    places: _Ids

    @property
    def groups(self) -> _Ids:
        return self.matrix.groups_of(self.axis, self.places)

    def placed(self, placed: _Placed) -> NDArray[np.bool_]:
        """Which channels of the other axis are placed."""
        return placed[self.matrix][1 - self.axis]

    def benefit(self, placed: _Placed | None = None) -> _Floats:
        """Members x members: what a member is worth in the place of another."""
        worth = self.matrix.worth(self.axis, None if placed is None else self.placed(placed))
        return worth[self.places][:, self.groups]

    def likeness(self) -> _Floats:
        """Members x members: how far they are connected with the same channels of the other axis, in [0, 1]."""
        size = np.sqrt(self.matrix.along(self.axis)[self.places])
        size /= np.maximum(np.linalg.norm(size, axis=1, keepdims=True), np.finfo(float).tiny)
        return size @ size.T


class _ChannelSet:
    """Channels that may change places with one another.

    Args:
        members: their numbers.
        matrices: those that may touch them; each side has all members equally often, or none.

    Attributes:
        order: which member stands in the place of each.
    """

    def __init__(self, members: _Ids, matrices: Iterable[_Matrix]) -> None:
        self.members, self.order = members, np.arange(len(members))
        self.uses: list[_Use] = []
        for matrix in matrices:
            for axis, side in enumerate(matrix.channels):
                places = np.flatnonzero(np.isin(side, members))
                rows = places[np.argsort(side[places], kind="stable")].reshape(len(members), -1)
                self.uses += [_Use(matrix, axis, column) for column in rows.T]

    @property
    def matters(self) -> bool:
        """Whether a move changes what lies in any matrix's blocks."""
        return any(np.ptp(use.groups) > 0 for use in self.uses)

    def improve(self) -> float:
        """Move the members to where they are worth most; returns the gain, never negative."""
        gain, order = 0.0, self._best(self._benefit())
        if order is not None:
            before = self._value()
            self.move(order)
            gain = self._value() - before
            if gain < _LEAST:
                self.move(np.argsort(order))
                gain = 0.0
        return gain + (self._exchange() if self._pairs() else 0.0)

    def evidence(self, placed: _Placed) -> float:
        """How much of what the members are connected with is placed."""
        return float(sum(use.placed(placed).mean() for use in self.uses))

    def place(self, placed: _Placed) -> None:
        """Move the members to where they are worth most to what is placed; if nothing is, put like beside like."""
        if self.evidence(placed) > 0:
            order = self._best(self._benefit(placed))
            if order is not None:
                self.move(order)
            return
        homes = Counter(tuple(use.groups) for use in self.uses)
        home = max(homes, key=lambda groups: homes[groups])  # a shuffle gives a set more than one
        likeness = sum(use.likeness() for use in self.uses if tuple(use.groups) == home)
        self.move(_gathered(np.asarray(likeness), np.array(home)))

    def move(self, order: _Ids) -> None:
        """Put in the place of every member what stands in that of `members[order]`."""
        self.order = self.order[order]
        for use in self.uses:
            use.matrix.move(use.axis, use.places, order)

    def _best(self, benefit: _Floats) -> _Ids | None:
        """The best assignment, if it is better than none."""
        places = linear_sum_assignment(benefit, maximize=True)[1]  # of 2048 channels: 20 times as fast as transposed
        order: _Ids = np.argsort(places)
        gain = benefit[order, np.arange(len(order))].sum() - np.trace(benefit)
        return order if gain > _LEAST else None

    def _exchange(self) -> float:
        """Exchange two members, the best ones first, while that gains; returns the gain."""
        total = 0.0
        for _ in range(_EXCHANGES // len(self.members)):
            benefit = self._benefit()
            gains = benefit + benefit.T - np.add.outer(benefit.diagonal(), benefit.diagonal()) + self._second_order()
            first, second = np.unravel_index(gains.argmax(), gains.shape)
            if gains[first, second] < _LEAST:
                break
            order = np.arange(len(self.members))
            order[first], order[second] = second, first
            self.move(order)
            total += float(gains[first, second])
        return total

    def _value(self) -> float:
        return sum(matrix.value for matrix in dict.fromkeys(use.matrix for use in self.uses))

    def _benefit(self, placed: _Placed | None = None) -> _Floats:
        total: _Floats = np.zeros((len(self.members), len(self.members)))
        for use in self.uses:
            total += use.benefit(placed)
        return total

    def _pairs(self) -> list[tuple[_Use, _Use]]:
        """Uses along the two sides of the same matrix."""
        return [(a, b) for a in self.uses for b in self.uses if a.matrix is b.matrix and (a.axis, b.axis) == (0, 1)]

    def _second_order(self) -> _Floats:
        """What exchanging two members adds to the sum of their benefits, because they meet in a matrix."""
        total: _Floats = np.zeros((len(self.members), len(self.members)))
        for rows, columns in self._pairs():
            energy = rows.matrix.energy[np.ix_(rows.places, columns.places)]
            level = rows.matrix.level[np.ix_(rows.groups, columns.groups)]
            total += _contrast(energy) * _contrast(level)
        return total


def _contrast(matrix: _Floats) -> _Floats:
    """For two indices: the sum of their diagonal entries less the two between them."""
    return np.add.outer(matrix.diagonal(), matrix.diagonal()) - matrix - matrix.T


def _gathered(likeness: _Floats, home: _Ids) -> _Ids:
    """An order in which each group of `home` has similar members: each next one is the most similar to its group."""
    order, free = np.zeros_like(home), np.ones(len(home), bool)
    left = likeness.sum(axis=1)
    for group in np.unique(home):
        like = left.copy()  # the first is the one with most in common with all that are left
        for index, place in enumerate(np.flatnonzero(home == group)):
            member = int(np.where(free, like, -np.inf).argmax())
            like = likeness[member] + (like if index else 0)
            order[place], free[member] = member, False
            left -= likeness[member]
    return order


def _arrange(sets: list[_ChannelSet], matrices: list[_Matrix]) -> None:
    """Leave sets and matrices in the best order found, never worse than the one that they are in."""
    start = _state(sets, matrices)
    _climb(sets)
    value, climbed = sum(matrix.value for matrix in matrices), _state(sets, matrices)
    _restore(sets, matrices, start)
    _place(sets, matrices)
    _climb(sets)
    if sum(matrix.value for matrix in matrices) <= value + _LEAST:
        _restore(sets, matrices, climbed)


def _climb(sets: list[_ChannelSet]) -> None:
    while sum(one.improve() for one in sets) > _LEAST_PER_ROUND:
        pass


def _place(sets: list[_ChannelSet], matrices: list[_Matrix]) -> None:
    """Place one set after the other: next the one that is connected most with what is placed."""
    placed: _Placed = {matrix: tuple(np.ones(n, bool) for n in matrix.energy.shape) for matrix in matrices}  # type: ignore[misc]
    for use in (use for one in sets for use in one.uses):
        placed[use.matrix][use.axis][use.places] = False
    waiting = list(sets)
    while waiting:
        chosen = max(waiting, key=lambda one: (one.evidence(placed), len(one.uses)))
        chosen.place(placed)
        for use in chosen.uses:
            placed[use.matrix][use.axis][use.places] = True
        waiting.remove(chosen)


def _state(sets: list[_ChannelSet], matrices: list[_Matrix]) -> tuple[list[_Ids], list[_Floats]]:
    return [one.order for one in sets], [matrix.energy for matrix in matrices]


def _restore(sets: list[_ChannelSet], matrices: list[_Matrix], state: tuple[list[_Ids], list[_Floats]]) -> None:
    for one, order in zip(sets, state[0], strict=True):
        one.order = order
    for matrix, energy in zip(matrices, state[1], strict=True):
        matrix.energy = energy
