"""draft"""
from __future__ import annotations
import torch
from torch import Tensor, nn
__all__ = ["ChannelShuffle", "channel_shuffle"]

def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of N x C x H x W out: those of one group end up in all groups (ShuffleNet, Fig. 1c)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ChannelShuffle(nn.Module):
    """`channel_shuffle` as a layer, built of operators that every exporter knows."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same shape."""
        return channel_shuffle(x, self.groups)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
