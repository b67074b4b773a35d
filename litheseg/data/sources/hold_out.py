"""Which of the training images are scored instead: a part that is held out, or k folds of which each is scored once.

Images that are alike must not be torn apart: frames of one video, near duplicates. So whole units are chosen: single
images, sequences, or groups of near duplicates. The order of units is that of `splits.ranked`.

Usage:
    >>> holding = Holding("groups", seed=0, groups=lambda: [["b1", "b2"]])
    >>> holding.part(["a", "b1", "b2", "c", "d"], 0.2)
    {'d'}
    >>> [sorted(fold) for fold in holding.folds(["a", "b1", "b2", "c"], 2)]
    [['b1', 'b2'], ['a', 'c']]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from litheseg.data.sources.splits import by_sequence, ranked
from litheseg.errors import DataError

__all__ = ["HOLD_OUT", "Holding"]

HOLD_OUT = ("random", "sequences", "groups", "last")
"""What may be held out: images, whole sequences by their names, groups of near duplicates, or ends of sequences."""
_OVER = 1.25  # times the images that are wanted: so many may whole units hold


@dataclass(frozen=True)
class Holding:
    """How images are chosen.

    Attributes:
        how: one of `HOLD_OUT`.
        seed: chooses among units.
        groups: gives the ids of near duplicates, two or more in each group; asked for "groups" only.
    """

    how: str
    seed: int = 0
    groups: Callable[[], Iterable[Sequence[str]]] = tuple

    def part(self, ids: Sequence[str], share: float) -> set[str]:
        """About a share of the ids, at least one and not all.

        In their order, units are taken that do not make it too many; the smallest one, where all are too large.

        Args:
            ids: two or more.
            share: in (0, 1).

        Raises:
            DataError: all are of one unit.
        """
        if self.how == "last":
            sequences = by_sequence(ids).values()
            return {name for own in sequences for name in own[len(own) - _count(own, share) :]}
        units = self._units(ids)
        if len(units) < 2 <= len(ids):
            what = "of one sequence by their names" if self.how == "sequences" else "nearly equal to each other"
            raise DataError(f"all {len(ids)} images are {what}; use hold_out: last")
        wanted, chosen = _count(ids, share), list[str]()
        for unit in units:
            if len(chosen) < wanted and len(chosen) + len(unit) <= _OVER * wanted:
                chosen += unit
        smallest: list[str] = min(units, key=len)
        return set(chosen or smallest)

    def folds(self, ids: Sequence[str], count: int) -> list[set[str]]:
        """All ids in folds of about equal size; where whole units are too few, sequences are cut into parts.

        Raises:
            DataError: fewer ids than folds, or fewer than two folds.
        """
        if not 2 <= count <= len(ids):
            raise DataError(f"{count} folds of {len(ids)} images are not possible; choose from 2 to {len(ids)}")
        units = _cut(ids, count) if self.how == "last" else self._units(ids)
        units = units if len(units) >= count else _cut(ids, count)
        folds = [set[str]() for _ in range(count)]
        for unit in sorted(units, key=len, reverse=True):
            min(folds, key=len).update(unit)
        return folds

    def _units(self, ids: Sequence[str]) -> list[list[str]]:
        """The ids in units, in an order that depends on the seed only."""
        units = [[name] for name in ids]
        if self.how == "sequences":
            units = list(by_sequence(ids).values())
        elif self.how == "groups":
            known: set[str] = set(ids)
            groups = [kept for group in self.groups() if (kept := sorted(known.intersection(group)))]
            grouped = {name for group in groups for name in group}
            units = [*groups, *([name] for name in ids if name not in grouped)]
        first = {unit[0]: unit for unit in units}
        return [first[name] for name in ranked(first, self.seed)]


def _cut(ids: Iterable[str], count: int) -> list[list[str]]:
    """All sequences, one after the other, cut into so many parts: neighbours are torn apart at the cuts only."""
    line = [name for own in by_sequence(ids).values() for name in own]
    ends = [index * len(line) // count for index in range(count + 1)]
    return [line[first:last] for first, last in itertools.pairwise(ends)]


def _count(names: Sequence[str], share: float) -> int:
    """How many are a share, at least one and not all, if there are two."""
    return min(max(round(len(names) * share), 1), len(names) - 1)
