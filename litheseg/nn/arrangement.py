"""The search for an order of channels in which the blocks of gradual layers hold most of the squared weights.

A set of channels may lie along many weight matrices, or along both sides of one. With all other sets held still, the
best order of a set is a linear assignment problem, solved exactly; sets take turns until nothing is gained. Where a set
lies along both sides of a matrix the problem is quadratic: the linear step is taken only if it gains, then the best
exchange of two channels, again and again. This runs from two starts, the present order and one that places set after
set by what is already placed, and the better result counts.

Usage:
    >>> sets = [ChannelSet(members, matrices) for members in network.movable()]
    >>> arrange(sets, matrices)
    >>> sets[0].members[sets[0].order]
    array([3, 0, 1, 2])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from litheseg.nn.grouping import GroupMask
from litheseg.nn.movable import Ids

__all__ = ["ChannelSet", "EnergyMatrix", "arrange"]

Floats: TypeAlias = NDArray[np.float64]
# By matrix: which of its rows and of its columns are placed already.
_Placed: TypeAlias = "dict[EnergyMatrix, tuple[NDArray[np.bool_], NDArray[np.bool_]]]"

# Least gains, where a whole matrix counts 1: of a move, and of a round over all sets for another round to follow.
_LEAST = 1e-9
_LEAST_PER_ROUND = 1e-3
# Exchanges tried per visit of a set that lies along both sides of a matrix: this over the number of its channels.
_EXCHANGES = 2**17


@dataclass(eq=False)
class EnergyMatrix:
    """The squared weights of a gradual layer, in the order that is tried.

    Attributes:
        energy: outputs x inputs, not negative; its sum is 1 (or 0).
        level: groups x groups, in [0, 1]: the share of the stages in which two groups are connected.
        channels: the numbers of the channels along the rows and along the columns.
    """

    energy: Floats
    level: Floats
    channels: tuple[Ids, Ids]

    @classmethod
    def of(cls, layer: Any, mask: GroupMask, channels: tuple[Ids, Ids]) -> EnergyMatrix:
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

    def along(self, axis: int) -> Floats:
        """Energy with the channels of an axis first."""
        return self.energy if axis == 0 else self.energy.T

    def worth(self, axis: int, counted: NDArray[np.bool_] | None = None) -> Floats:
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

    def groups_of(self, axis: int, places: Ids) -> Ids:
        """The groups of some places."""
        return places * len(self.level) // self.energy.shape[axis]

    def move(self, axis: int, places: Ids, order: Ids) -> None:
        """Put at `places` what is at `places[order]`."""
        sources = np.arange(self.energy.shape[axis])
        sources[places] = places[order]
        self.energy = self.energy.take(sources, axis)

    @cached_property
    def _one_stage(self) -> bool:
        return np.array_equal(self.level, np.eye(len(self.level)))

    def _blocks(self) -> Floats:
        groups = len(self.level)
        return self.energy.reshape(groups, -1, groups, self.energy.shape[1] // groups).sum(axis=(1, 3))


@dataclass(frozen=True)
class _Use:
    """The places of a set along one axis of a matrix, in the order of its members."""

    matrix: EnergyMatrix
    axis: int
    places: Ids

    @property
    def groups(self) -> Ids:
        return self.matrix.groups_of(self.axis, self.places)

    def placed(self, placed: _Placed) -> NDArray[np.bool_]:
        """Which channels of the other axis are placed."""
        return placed[self.matrix][1 - self.axis]

    def benefit(self, placed: _Placed | None = None) -> Floats:
        """Members x members: what a member is worth in the place of another."""
        worth = self.matrix.worth(self.axis, None if placed is None else self.placed(placed))
        return worth[self.places][:, self.groups]

    def likeness(self) -> Floats:
        """Members x members: how far they are connected with the same channels of the other axis, in [0, 1]."""
        size = np.sqrt(self.matrix.along(self.axis)[self.places])
        size /= np.maximum(np.linalg.norm(size, axis=1, keepdims=True), np.finfo(float).tiny)
        return size @ size.T


class ChannelSet:
    """Channels that may change places with one another.

    Args:
        members: their numbers.
        matrices: those that may touch them; each side has all members equally often, or none.

    Attributes:
        order: which member stands in the place of each.
    """

    def __init__(self, members: Ids, matrices: Iterable[EnergyMatrix]) -> None:
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

    def move(self, order: Ids) -> None:
        """Put in the place of every member what stands in that of `members[order]`."""
        self.order = self.order[order]
        for use in self.uses:
            use.matrix.move(use.axis, use.places, order)

    def _best(self, benefit: Floats) -> Ids | None:
        """The best assignment, if it is better than none."""
        places = linear_sum_assignment(benefit, maximize=True)[1]  # of 2048 channels: 20 times as fast as transposed
        order: Ids = np.argsort(places)
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

    def _benefit(self, placed: _Placed | None = None) -> Floats:
        total: Floats = np.zeros((len(self.members), len(self.members)))
        for use in self.uses:
            total += use.benefit(placed)
        return total

    def _pairs(self) -> list[tuple[_Use, _Use]]:
        """Uses along the two sides of the same matrix."""
        return [(a, b) for a in self.uses for b in self.uses if a.matrix is b.matrix and (a.axis, b.axis) == (0, 1)]

    def _second_order(self) -> Floats:
        """What exchanging two members adds to the sum of their benefits, because they meet in a matrix."""
        total: Floats = np.zeros((len(self.members), len(self.members)))
        for rows, columns in self._pairs():
            energy = rows.matrix.energy[np.ix_(rows.places, columns.places)]
            level = rows.matrix.level[np.ix_(rows.groups, columns.groups)]
            total += _contrast(energy) * _contrast(level)
        return total


def _contrast(matrix: Floats) -> Floats:
    """For two indices: the sum of their diagonal entries less the two between them."""
    return np.add.outer(matrix.diagonal(), matrix.diagonal()) - matrix - matrix.T


def _gathered(likeness: Floats, home: Ids) -> Ids:
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


def arrange(sets: list[ChannelSet], matrices: list[EnergyMatrix]) -> None:
    """Leave sets and matrices in the best order found, never worse than the one that they are in."""
    start = _state(sets, matrices)
    _climb(sets)
    value, climbed = sum(matrix.value for matrix in matrices), _state(sets, matrices)
    _restore(sets, matrices, start)
    _place(sets, matrices)
    _climb(sets)
    if sum(matrix.value for matrix in matrices) <= value + _LEAST:
        _restore(sets, matrices, climbed)


def _climb(sets: list[ChannelSet]) -> None:
    while sum(one.improve() for one in sets) > _LEAST_PER_ROUND:
        pass


def _place(sets: list[ChannelSet], matrices: list[EnergyMatrix]) -> None:
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


def _state(sets: list[ChannelSet], matrices: list[EnergyMatrix]) -> tuple[list[Ids], list[Floats]]:
    return [one.order for one in sets], [matrix.energy for matrix in matrices]


def _restore(sets: list[ChannelSet], matrices: list[EnergyMatrix], state: tuple[list[Ids], list[Floats]]) -> None:
    for one, order in zip(sets, state[0], strict=True):
        one.order = order
    for matrix, energy in zip(matrices, state[1], strict=True):
        matrix.energy = energy
