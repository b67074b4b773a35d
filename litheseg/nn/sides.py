"""What a traced network consists of: the channels on both sides of every layer, and of bare parameters.

Usage:
    >>> sides = trace_model(model)["layer1.0.conv1"]
    >>> sides.inputs, sides.outputs, sides.depthwise  # segments, segments, and whether it is depthwise
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from litheseg.nn.attention import Heads, SlimHeads
from litheseg.nn.layers import SlimConv2d, SlimConvTranspose2d, SlimGroupNorm, SlimLayerNorm, SwitchableBatchNorm2d
from litheseg.nn.segments import Segment

__all__ = ["CONVOLUTIONS", "HEADS", "NORMS", "Bare", "Sides", "Trace"]

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, SlimConv2d, SlimConvTranspose2d)
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, SwitchableBatchNorm2d, SlimGroupNorm, SlimLayerNorm)
HEADS = (Heads, SlimHeads)


@dataclass
class Sides:
    """The channels that go into a layer and those that come out.

    Attributes:
        module: the layer in the network that was run.
        inputs: segments of its input.
        outputs: segments of its output.
        keeps: whether every channel passes through by itself: norms, depthwise convolutions.
        channels_first: whether the channels are dimension 1 of its input, rather than the last.
        per_head: of the heads of attention: segments that have one channel for each head.
    """

    module: nn.Module
    inputs: list[Segment]
    outputs: list[Segment]
    keeps: bool = False
    channels_first: bool = True
    per_head: list[Segment] = field(default_factory=list)

    @property
    def groups(self) -> int:
        """Groups of a convolution or a norm, 1 for other layers; of a gradual convolution those that it ends with."""
        grouping = getattr(self.module, "grouping", None)
        if grouping is not None:
            return int(grouping.groups)
        if isinstance(self.module, nn.GroupNorm):
            return self.module.num_groups
        return int(self.module.groups) if isinstance(self.module, (*CONVOLUTIONS, SlimGroupNorm)) else 1

    @property
    def depthwise(self) -> bool:
        """Whether there is one group for each channel."""
        return all(self.groups == sum(segment.size for segment in side) for side in (self.inputs, self.outputs))


@dataclass
class Bare:
    """A parameter that a module adds, multiplies or concatenates itself: the dimension of its channels, and these."""

    dim: int
    segments: list[Segment]


class Trace(dict[str, Sides]):
    """The two sides of every layer that ran, by name, in the order in which they first ran.

    Attributes:
        bare: bare parameters whose channels are those of layers, by the name of their module and their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bare: dict[tuple[str, str], Bare] = {}
