"""How the channels of grouped layers are cut, so that every narrower network is a grouped one as well.

There are two exact rules, which also hold for a dense weight under a mask. *Whole groups*: a narrower layer has fewer
groups of the same size. *Blocks*: it has as many groups, each smaller; this is for layers with too few groups for the
narrowest width, and the only rule that passes a channel shuffle. Where the channels behind a shuffle of g groups are
cut in b equal blocks, those before it are cut in g x b. Norms over groups follow the same rules, and so do the heads of
attention: each is a group.

It works on the segments of a trace (see `litheseg.nn.tracing`). Where neither rule is exact, it raises a `ModelError`.

Usage:
    >>> set_group_rules(trace, narrowest=0.25)  # every segment now knows its `unit`, or its `blocks` and `step`
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from litheseg.errors import ModelError
from litheseg.nn.grouping import ChannelShuffle
from litheseg.nn.segments import Segment
from litheseg.nn.sides import HEADS, Sides, Trace

__all__ = ["set_group_rules"]


@dataclass(frozen=True)
class _Site:
    """A grouped layer or norm, a shuffle, or heads: its name, the channels on its two sides, its groups.

    `whole` is whether its groups can only be dropped.
    """

    name: str
    inputs: Segment
    outputs: Segment
    groups: int
    shuffles: bool = False
    whole: bool = False

    @property
    def sides(self) -> tuple[Segment, Segment]:
        return self.inputs, self.outputs


def set_group_rules(trace: Trace, narrowest: float) -> None:
    """Choose the rule for every segment that a grouped layer touches, and write it into the segment.

    Args:
        trace: of the network.
        narrowest: the narrowest width, in (0, 1].

    Raises:
        ModelError: a layer that cannot be cut exactly; the message names it and what would work.
    """
    layers = [_site(name, sides) for name, sides in trace.items() if sides.groups > 1 and not sides.depthwise]
    for name, sides in trace.items():
        if isinstance(sides.module, HEADS):
            layers += _head_sites(name, sides)
    shuffles = [_site(name, sides) for name, sides in trace.items() if isinstance(sides.module, ChannelShuffle)]
    sites = layers + shuffles
    in_blocks = {side for site in sites if site.shuffles or site.groups * narrowest < 1 for side in site.sides}
    for _ in range(len(sites) + 1):  # both sides of a site are cut by the same rule, and are fixed or elastic alike
        for site in sites:
            site.inputs.fixed = site.outputs.fixed = site.inputs.fixed or site.outputs.fixed
            if not in_blocks.isdisjoint(site.sides):
                in_blocks.update(site.sides)
    for site in layers:
        for side in site.sides:
            if side in in_blocks:
                side.blocks = math.lcm(side.blocks, site.groups)
            else:
                side.unit = math.lcm(side.unit or 1, side.size // site.groups)
    _fit_units([site for site in layers if site.inputs not in in_blocks])
    _fit_blocks(shuffles, in_blocks)
    for site in sites:
        if site.whole and site.inputs in in_blocks and not site.inputs.fixed:
            raise ModelError(
                f"layer '{site.name}' cannot be slimmed to width {narrowest:g}: less than one of its {site.groups} "
                f"heads would be left; the narrowest width is {1 / site.groups:g}, use wider --widths"
            )
        if not site.inputs.fixed:
            _check_blocks(site, narrowest) if site.inputs in in_blocks else _check_units(site, narrowest)


def _site(name: str, sides: Sides) -> _Site:
    shuffles = isinstance(sides.module, ChannelShuffle)
    groups = sides.module.groups if isinstance(sides.module, ChannelShuffle) else sides.groups
    if len(sides.inputs) > 1 or len(sides.outputs) > 1:
        side, pieces = ("reads", sides.inputs) if len(sides.inputs) > 1 else ("feeds", sides.outputs)
        raise ModelError(
            f"layer '{name}' cannot be slimmed: it {side} a concatenation of {' + '.join(str(p.size) for p in pieces)} "
            f"channels, which its {groups} groups would cross. Train it at width 1 only, or leave it dense or "
            "depthwise (choose other layers with --model.efficient.where)"
        )
    return _Site(name, sides.inputs[0], sides.outputs[0], groups, shuffles)


def _head_sites(name: str, sides: Sides) -> list[_Site]:
    """The heads of one layer; those that hold query, key and value can only go as a whole."""
    core: Any = sides.module
    if len(sides.inputs) != len(sides.outputs):
        raise ModelError(
            f"layer '{name}' cannot be slimmed: its {core.heads} heads would cross the parts of a concatenation. "
            "Train it at width 1 only"
        )
    heads = core.heads // len(sides.outputs)
    pairs = [*zip(sides.inputs, sides.outputs, strict=True), *((piece, sides.outputs[0]) for piece in sides.per_head)]
    return [_Site(name, inputs, outputs, heads, whole=not core.parts) for inputs, outputs in pairs]


def _fit_units(sites: list[_Site]) -> None:
    """Give both sides of every site as many units, repeatedly, since sites may follow one another."""
    for _ in range(len(sites) + 1):
        for site in sites:
            units = math.gcd(*(side.size // side.unit for side in site.sides))
            for side in site.sides:
                side.unit = side.size // units


def _fit_blocks(shuffles: list[_Site], in_blocks: set[Segment]) -> None:
    """Make the blocks on both sides of every shuffle fit, repeatedly, since shuffles may follow one another.

    Both sides must keep as many channels, so `step` becomes a common multiple of their blocks.
    """
    for _ in range(len(shuffles) + 1):
        for site in shuffles:
            site.inputs.blocks = math.lcm(site.inputs.blocks, site.groups * site.outputs.blocks)
            site.outputs.blocks = site.inputs.blocks // site.groups
    for segment in in_blocks:
        segment.step = segment.blocks
    for _ in range(len(shuffles) + 1):
        for site in shuffles:
            site.inputs.step = site.outputs.step = math.lcm(site.inputs.step, site.outputs.step)


def _check_blocks(site: _Site, narrowest: float) -> None:
    remedy = "use fewer groups, or no shuffle (--model.efficient.shuffle false)"
    if site.shuffles and site.inputs.blocks != site.groups * site.outputs.blocks:
        raise ModelError(
            f"layer '{site.name}' cannot be slimmed: what it shuffles meets what comes out of it, so that no cut fits "
            f"both; {remedy}"
        )
    for side in site.sides:
        if side.size % side.step:
            raise ModelError(
                f"layer '{site.name}' cannot be slimmed: its {side.size} channels would have to be cut in {side.step} "
                f"equal blocks; {remedy}"
            )
        if narrowest * side.size < side.step:
            raise ModelError(
                f"layer '{site.name}' cannot be slimmed to width {narrowest:g}: its {side.size} channels are cut in "
                f"{side.step} equal blocks, so that the narrowest width is {side.step / side.size:g}; use wider "
                f"--widths, or {remedy.removeprefix('use ')}"
            )


def _check_units(site: _Site, narrowest: float) -> None:
    units = site.inputs.size // site.inputs.unit
    if units * narrowest < 1:
        raise ModelError(
            f"layer '{site.name}' cannot be slimmed to width {narrowest:g}: its {site.groups} groups cannot be dropped "
            f"one by one, because {site.inputs.unit} of its {site.inputs.size} input channels must stay together; the "
            f"narrowest width is {1 / units:g}; use wider --widths, or a common number of groups"
        )
