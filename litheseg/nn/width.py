"""Width: one dial per model, and the rule that turns a fraction of channels into a number of channels.

`WidthDial` holds a model's trained widths and the one that is set; all elastic layers of a model share one.
`Channels` says which channels of a tensor are kept at a width. A tensor that was concatenated has several parts, and
each part keeps its own first channels: the first channels of the whole would be those of the first part alone.

Paper: Yu et al., "Slimmable Neural Networks", ICLR 2019 (a narrower layer has the first channels); the parts are ours.

Usage:
    >>> dial = WidthDial((1.0, 0.5))
    >>> dial.turn(0.5)
    >>> Channels((ChannelPart(64), ChannelPart(3, elastic=False))).count(dial.width)
    35
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from litheseg.errors import WidthError
from litheseg.values import check_width

__all__ = ["ChannelPart", "Channels", "WidthDial", "round_channels"]


def round_channels(channels: int, width: float, divisor: int = 8) -> int:
    """`width` x `channels`, rounded to the nearest multiple of `divisor` (halves up), at least one multiple of it.

    Never more than `channels`; exactly `channels` at width 1.
    """
    if width == 1.0:
        return channels
    multiple = int(width * channels / divisor + 0.5) * divisor
    return min(channels, max(divisor, multiple))


@dataclass(frozen=True)
class ChannelPart:
    """Neighbouring channels that shrink by one rule.

    Attributes:
        full: number of channels at width 1.
        unit: if not 0, channels are kept in whole units of this size (the channels of one group), whatever `divisor`.
        blocks: equal blocks that the channels are cut into; each keeps as many of its first channels.
        elastic: False for channels that never shrink: the image, the class logits, and what is added to them.
        divisor: the number of kept channels is a multiple of it.
        step: the number of kept channels is a multiple of it as well; where it is set, a multiple of `blocks`.
    """

    full: int
    unit: int = 0
    blocks: int = 1
    elastic: bool = True
    divisor: int = 8
    step: int = 1

    def count(self, width: float) -> int:
        """Number of channels kept at `width`."""
        if not self.elastic:
            return self.full
        if self.unit:
            return self.unit * round_channels(self.full // self.unit, width, divisor=1)
        step = max(self.step, self.blocks)
        return step * round_channels(self.full // step, width, max(1, self.divisor // step))

    def select(self, tensor: Tensor, dim: int, start: int, width: float) -> Tensor:
        """What `width` keeps of the entries `start` to `start + full` of `tensor` along `dim`."""
        kept = self.count(width)
        if self.blocks == 1 or not self.elastic:
            return tensor.narrow(dim, start, kept)
        blocks = tensor.narrow(dim, start, self.full).unflatten(dim, (self.blocks, -1))
        return blocks.narrow(dim + 1, 0, kept // self.blocks).flatten(dim, dim + 1)

    def within(self, groups: int) -> ChannelPart:
        """The rule inside one of `groups` groups: that of its blocks; none where whole groups are dropped."""
        if self.blocks == 1:
            return ChannelPart(self.full // groups, elastic=False)
        step = max(self.step, self.blocks) // groups
        divisor = max(1, self.divisor // groups)
        return ChannelPart(self.full // groups, blocks=self.blocks // groups, divisor=divisor, step=step)


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor: concatenated parts, each keeping its own first channels."""

    parts: tuple[ChannelPart, ...]

    @property
    def full(self) -> int:
        """Number of channels at width 1."""
        return sum(part.full for part in self.parts)

    @property
    def elastic(self) -> bool:
        """Whether any part shrinks."""
        return any(part.elastic for part in self.parts)

    def count(self, width: float) -> int:
        """Number of channels kept at `width`."""
        return sum(part.count(width) for part in self.parts)

    def groups(self, full_groups: int, width: float) -> int:
        """Groups that a layer of `full_groups` has at `width`: fewer where whole groups are dropped, else as many."""
        return 1 if full_groups == 1 else self.count(width) // self.within(full_groups).count(width)

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
        """The channels of one of `groups` groups."""
        if groups == self.full or not self.elastic:
            return Channels((ChannelPart(self.full // groups, elastic=False),))
        return Channels((self.parts[0].within(groups),))


@dataclass
class WidthDial:
    """The one place where a model's width lives; all its elastic layers share one.

    Attributes:
        widths: those trained, with batch norms of their own, widest first.
        divisor: the channels of every layer are rounded to multiples of it.
        calibrated: further widths, whose batch norms `recalibrate` has measured, widest first.
        width: the one that is set.
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

    def add(self, width: float) -> None:
        """Make a further width available; the layers must have batch norms for it."""
        self.calibrated = tuple(sorted({width, *self.calibrated} - set(self.widths), reverse=True))

    def turn(self, width: float) -> None:
        """Set the width.

        Raises:
            WidthError: not one of `available`.
        """
        if width not in self.available:
            known = ", ".join(f"{known:g}" for known in self.available)
            raise WidthError(
                f"width {check_width(width):g} has no batch-norm statistics; available: {known}. "
                "Make it usable with `litheseg.nn.recalibrate(model, batches, [width])` or `litheseg evaluate --widths`"
            )
        self.width = width
