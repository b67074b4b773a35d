"""Layers that change their shape, and the transformations that put them into a network and take them out again.

To read in this order: `width` (how many channels a width keeps), `layers` (that compute with them), `tracing` (which
channels belong together, by `watching` a run), `slicing` (how groups are cut), `slim` (a plain network becomes
elastic), `extract` (and plain again). Then `grouping` (dense convolutions become grouped), `assignment` (which channels
share a group) and `efficient` (cheaper convolutions); `surgery` replaces single layers.
"""

from __future__ import annotations

from litheseg.nn.extract import drop_training_heads, extract, fold
from litheseg.nn.slim import add_width, available_widths, get_width, recalibrate, set_width, slim
from litheseg.nn.width import ChannelPart, Channels, WidthDial, round_channels

__all__ = [
    "ChannelPart",
    "Channels",
    "WidthDial",
    "add_width",
    "available_widths",
    "drop_training_heads",
    "extract",
    "fold",
    "get_width",
    "recalibrate",
    "round_channels",
    "set_width",
    "slim",
]
