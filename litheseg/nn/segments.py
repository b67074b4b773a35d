"""Segments: runs of channels that shrink as one, tied, split and cut while a network is traced.

Usage:
    >>> stem, branch = Segment(64), Segment(64)
    >>> tie([stem], [branch])  # added to one another
    >>> resolve([stem]) == resolve([branch])
    True
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Segment", "cut", "resolve", "tie"]


class Segment:
    """A run of channels that shrinks as one, wherever in the network it appears.

    Attributes:
        size: number of channels at full width.
        fixed: whether it keeps its size at every width.
        unit: channels that stay or go together, set by `litheseg.nn.slicing` with the next two; 0 for any.
        blocks: equal parts of the segment; each keeps as many of its first channels.
        step: the number of kept channels is a multiple of it.
        meets_itself: whether it was added to, or multiplied by, something made of it, as a residual stream is.
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
        """Tie this segment to one of the same size: from now on they are one."""
        if self is other:
            self.meets_itself = True
            return
        other.fixed |= self.fixed
        other.meets_itself |= self.meets_itself
        self._joined = other


def resolve(segments: Iterable[Segment]) -> list[Segment]:
    """What some segments have become."""
    return [piece for segment in segments for piece in segment.resolve()]


def tie(first: list[Segment], second: list[Segment]) -> None:
    """Tie two lists of the same total size piece by piece, splitting the larger segment where their ends differ."""
    position = 0
    while True:
        left, right = resolve(first), resolve(second)
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


def cut(segments: list[Segment], start: int, size: int) -> list[Segment]:
    """The channels `start` to `start + size` of a list, whose segments are split where that begins and ends.

    The result lies on whole segments, also where the same segment appears in the list twice.
    """
    while True:
        found, end, uneven = [], 0, None
        for piece in resolve(segments):
            begin, end = end, end + piece.size
            inside = [edge - begin for edge in (start, start + size) if begin < edge < end]
            if inside:
                uneven = (piece, inside[0])
                break
            if start <= begin and end <= start + size:
                found.append(piece)
        if uneven is None:
            return found
        uneven[0].split(uneven[1])
