"""Width: one dial per model, and the rule that turns a fraction of channels into a number of channels.

The dial knows which widths a model was trained for and which one is on. It does not know of layers: they ask it.
`Channels` says how one side of a layer shrinks; a tensor that is the concatenation of several has several parts, and
every part keeps its own first channels (slicing the concatenation as a whole would mix them up).

Paper: Yu et al., "Slimmable Neural Networks", ICLR 2019 (first-k channels); the parts are ours.

Usage:
    >>> dial = WidthDial((1.0, 0.5))
    >>> dial.turn(0.5)
    >>> Channels((Part(64), Part(3, elastic=False))).count(dial.width)
    35
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from litheseg.bundle.widths import check_width
from litheseg.errors import WidthError

__all__ = ["Channels", "Part", "WidthDial", "round_channels"]


def round_channels(channels: int, width: float, divisor: int = 8) -> int:
    """`width` x `channels`, rounded to the nearest multiple of `divisor` (halves up), at least one multiple of it.

    Never more than `channels`; exactly `channels` at width 1.
    """
    if width == 1.0:
        return channels
    multiple = int(width * channels / divisor + 0.5) * divisor
    return min(channels, max(divisor, multiple))


@dataclass(frozen=True)
class Part:
    """A run of channels that shrinks by itself.

    Attributes:
        full: channels at width 1.
        unit: channels that stay or go together (the channels of one group), 0 where none must; then `divisor` does not
            apply.
        blocks: equal runs of channels that shrink alike; each keeps its first channels.
        step: what the kept channels are a multiple of, itself a multiple of `blocks`, in whose place it stands.
        elastic: False for channels that never shrink: the image, the class logits, and what is added to them.
        divisor: what the kept channels are a multiple of.
    """

    full: int
    unit: int = 0
    blocks: int = 1
    elastic: bool = True
    divisor: int = 8
    step: int = 1

    def count(self, width: float) -> int:
        """Channels kept at `width`."""
        if not self.elastic:
            return self.full
        if self.unit:
            return self.unit * round_channels(self.full // self.unit, width, divisor=1)
        step = max(self.step, self.blocks)
        return step * round_channels(self.full // step, width, max(1, self.divisor // step))

    def select(self, tensor: Tensor, dim: int, start: int, width: float) -> Tensor:
        """The kept ones of the entries `start` to `start + full` of `tensor` along `dim`."""
        kept = self.count(width)
        if self.blocks == 1 or not self.elastic:
            return tensor.narrow(dim, start, kept)
        blocks = tensor.narrow(dim, start, self.full).unflatten(dim, (self.blocks, -1))
        return blocks.narrow(dim + 1, 0, kept // self.blocks).flatten(dim, dim + 1)

    def within(self, groups: int) -> Part:
        """How the channels of one of `groups` groups shrink: like their blocks, or, if groups go as a whole, not."""
        if self.blocks == 1:
            return Part(self.full // groups, elastic=False)
        step = max(self.step, self.blocks) // groups
        divisor = max(1, self.divisor // groups)
        return Part(self.full // groups, blocks=self.blocks // groups, divisor=divisor, step=step)


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor: concatenated parts, each keeping its own first channels."""

    parts: tuple[Part, ...]

    @property
    def full(self) -> int:
        """Channels at width 1."""
        return sum(part.full for part in self.parts)

    @property
    def elastic(self) -> bool:
        """Whether any part shrinks."""
        return any(part.elastic for part in self.parts)

    def count(self, width: float) -> int:
        """Channels kept at `width`."""
        return sum(part.count(width) for part in self.parts)

    def select(self, tensor: Tensor, dim: int, width: float) -> Tensor:
        """The entries of `tensor` along `dim` (full size) that are kept at `width`; a view where that is possible."""
        if width == 1.0 or not self.elastic:
            return tensor
        pieces, start = [], 0
        for part in self.parts:
            pieces.append(part.select(tensor, dim, start, width))
            start += part.full
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)

    def within(self, groups: int) -> Channels:
        """How the channels of one of `groups` groups shrink."""
        if groups == self.full or not self.elastic:
            return Channels((Part(self.full // groups, elastic=False),))
        return Channels((self.parts[0].within(groups),))


@dataclass
class WidthDial:
    """The one place where a model's width lives; all its elastic layers share one.

    Attributes:
        widths: those with batch-norm statistics and affine parameters of their own, widest first.
        calibrated: further widths, usable since `recalibrate`.
        divisor: what every layer's channels are rounded to.
        width: the one that is on.
    """

    widths: tuple[float, ...] = (1.0,)
    divisor: int = 8
    calibrated: tuple[float, ...] = ()
    width: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if not self.widths:
            raise WidthError("no widths given; (1.0,) is the full network")
        self.widths = tuple(sorted({check_width(width) for width in self.widths}, reverse=True))
        self.width = self.widths[0]

    @property
    def available(self) -> tuple[float, ...]:
        """All widths that the dial can be turned to, widest first."""
        return tuple(sorted(self.widths + self.calibrated, reverse=True))

    @property
    def index(self) -> int | None:
        """Position of the current width in `widths`; None where it is a calibrated one."""
        return self.widths.index(self.width) if self.width in self.widths else None

    def add(self, widths: Iterable[float]) -> None:
        """Make further widths available (the layers must have been given statistics for them)."""
        new = {check_width(width) for width in widths} - set(self.widths)
        self.calibrated = tuple(sorted(new | set(self.calibrated), reverse=True))

    def turn(self, width: float) -> None:
        """Set the width.

        Raises:
            WidthError: outside (0, 1], or not available.
        """
        width = check_width(width)
        if width not in self.available:
            known = ", ".join(f"{known:g}" for known in self.available)
            raise WidthError(
                f"width {width:g} has no batch-norm statistics; available: {known}. "
                "Make it usable with `litheseg.nn.recalibrate(model, batches, [width])` or `litheseg evaluate --widths`"
            )
        self.width = width
