"""Where channels have to stand so that fixed blocks of matrices hold as much as possible.

Each matrix has channels along both sides, and a value for every pair of blocks. Sets of channels may be reordered, each
within itself, and one set may lie along many matrices, along both sides of one, or along one side twice. For one set
with all others held still, the best order is a linear assignment problem, solved exactly; it goes round the sets until
nothing is gained. Where a matrix has a set on both sides the problem is quadratic: a linear step is taken only if it
gains, then the best exchange of two channels, again and again. It begins twice, and the better end counts: with the
order as it is, and with one in which every set follows those already placed, the first by what its channels have in
common. Both are local searches: no order that differs in one set is better, but one that differs in several may be.

It knows numbers, not networks: `litheseg.nn.assignment` says what the matrices and the sets are.

Usage:
    >>> arrange(sets, matrices)
    >>> sets[0].order  # which member stands in the place of each
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["ChannelSet", "Ids", "Matrix", "arrange"]

Ids: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]
# By matrix: which of its rows and columns are placed already.
_Known: TypeAlias = "dict[Matrix, tuple[NDArray[np.bool_], NDArray[np.bool_]]]"

# The whole of a matrix counts 1. What a move must gain, to be made; what a round over all sets must, for one more.
_LEAST = 1e-9
_LEAST_PER_ROUND = 1e-3
# Exchanges tried per visit of a set that a matrix has on both sides: this over the channels of the set.
_EXCHANGES = 2**17


@dataclass(eq=False)
class Matrix:
    """A weight matrix in the order that is tried.

    Attributes:
        energy: rows x columns, not negative; its sum is 1 (or 0).
        level: groups x groups, in [0, 1]: the value of energy between two groups, which are contiguous and equal.
        channels: the numbers of the channels along the rows and along the columns.
    """

    energy: _Floats
    level: _Floats
    channels: tuple[Ids, Ids]

    @property
    def kept(self) -> float:
        """Energy inside the diagonal blocks, in [0, 1]."""
        return float(np.trace(self._blocks()))

    @property
    def value(self) -> float:
        """What is to be as large as possible."""
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

    def _blocks(self) -> _Floats:
        groups = len(self.level)
        return self.energy.reshape(groups, -1, groups, self.energy.shape[1] // groups).sum(axis=(1, 3))


@dataclass(frozen=True)
class _Use:
    """The places of a set along one axis of a matrix, in the order of its members."""

    matrix: Matrix
    axis: int
    places: Ids

    @property
    def groups(self) -> Ids:
        return self.matrix.groups_of(self.axis, self.places)

    def known(self, known: _Known) -> NDArray[np.bool_]:
        """Which channels of the other axis are placed."""
        return known[self.matrix][1 - self.axis]

    def benefit(self, known: _Known | None = None) -> _Floats:
        """From x to: what a member is worth in the place of another."""
        worth = self.matrix.worth(self.axis, None if known is None else self.known(known))
        return worth[self.places][:, self.groups]

    def likeness(self) -> _Floats:
        """Members x members: how far they go with the same channels of the other axis, in [0, 1]."""
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

    def __init__(self, members: Ids, matrices: Iterable[Matrix]) -> None:
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

    def evidence(self, known: _Known) -> float:
        """How much of what the members go with is placed already."""
        return float(sum(use.known(known).mean() for use in self.uses))

    def follow(self, known: _Known) -> None:
        """Move the members to where they are worth most to what is placed already."""
        order = self._best(self._benefit(known))
        if order is not None:
            self.move(order)

    def gather(self) -> None:
        """Put those that have much in common in the same groups."""
        homes = Counter(tuple(use.groups) for use in self.uses)
        home = max(homes, key=lambda groups: homes[groups])  # a shuffle gives a set more than one
        likeness = sum(use.likeness() for use in self.uses if tuple(use.groups) == home)
        self.move(_gathered(np.asarray(likeness), np.array(home)))

    def move(self, order: Ids) -> None:
        """Put in the place of every member what stands in that of `members[order]`."""
        self.order = self.order[order]
        for use in self.uses:
            use.matrix.move(use.axis, use.places, order)

    def _best(self, benefit: _Floats) -> Ids | None:
        """The best assignment, if it is better than none."""
        places = linear_sum_assignment(benefit, maximize=True)[1]  # of 2048 channels: 20 times as fast as transposed
        order: Ids = np.argsort(places)
        gain = benefit[order, np.arange(len(order))].sum() - np.trace(benefit)
        return order if gain > _LEAST else None

    def _exchange(self) -> float:
        """Exchange two members, the best ones first, while that gains."""
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

    def _benefit(self, known: _Known | None = None) -> _Floats:
        total: _Floats = np.zeros((len(self.members), len(self.members)))
        for use in self.uses:
            total += use.benefit(known)
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


def _gathered(likeness: _Floats, home: Ids) -> Ids:
    """An order in which each group of `home` has members that are alike: it grows by whoever is most like it."""
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


def arrange(sets: list[ChannelSet], matrices: list[Matrix]) -> None:
    """Leave sets and matrices in the best order found, never worse than the one that they are in; deterministic."""
    start = _State.of(sets, matrices)
    _climb(sets)
    as_it_is = _State.of(sets, matrices)
    start.restore(sets, matrices)
    _place(sets, matrices)
    _climb(sets)
    if sum(matrix.value for matrix in matrices) <= as_it_is.value + _LEAST:
        as_it_is.restore(sets, matrices)


def _climb(sets: list[ChannelSet]) -> None:
    while sum(one.improve() for one in sets) > _LEAST_PER_ROUND:
        pass


def _place(sets: list[ChannelSet], matrices: list[Matrix]) -> None:
    """Place one set after the other: next the one that knows most about where it belongs."""
    known: _Known = {matrix: tuple(np.ones(n, bool) for n in matrix.energy.shape) for matrix in matrices}  # type: ignore[misc]
    for use in (use for one in sets for use in one.uses):
        known[use.matrix][use.axis][use.places] = False
    waiting = list(sets)
    while waiting:
        chosen = max(waiting, key=lambda one: (one.evidence(known), len(one.uses)))
        chosen.follow(known) if chosen.evidence(known) > 0 else chosen.gather()
        for use in chosen.uses:
            known[use.matrix][use.axis][use.places] = True
        waiting.remove(chosen)


@dataclass(frozen=True)
class _State:
    """An order that was tried, and its value."""

    value: float
    orders: list[Ids]
    energies: list[_Floats]

    @classmethod
    def of(cls, sets: list[ChannelSet], matrices: list[Matrix]) -> _State:
        """The present one."""
        value = sum(matrix.value for matrix in matrices)
        return cls(value, [one.order for one in sets], [matrix.energy for matrix in matrices])

    def restore(self, sets: list[ChannelSet], matrices: list[Matrix]) -> None:
        """Go back to it."""
        for one, order in zip(sets, self.orders, strict=True):
            one.order = order
        for matrix, energy in zip(matrices, self.energies, strict=True):
            matrix.energy = energy
