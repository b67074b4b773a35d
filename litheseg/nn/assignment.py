"""Which channels share a group: found by permuting the channels of a network before they become grouped.

The groups of a `GradualConv2d` are fixed blocks of places; which channel stands at which place is free. Permuting the
channels of a tensor, together with every weight, bias and norm that touches them, leaves the function of the network as
it is. `find_relabelling` looks for the permutations with which the final blocks hold as much of the squared weights as
possible. Connections that only a later stage cuts count in part, and each layer counts alike, whatever the scale of its
weights, which the norm behind it makes arbitrary. What is deployed has no permutation at run time.

Channels change places only where that changes nothing: not those of the image and the outputs, not across the pieces of
a concatenation, only among channels that the same widths keep, not across the groups of a plain grouped layer, and not
across blocks that have faded. While a layer fades, weights that move into its blocks are multiplied by alpha, and those
that leave them divided by it, so that the function stays the same.

What may move is found in `litheseg.nn.movable`, the best places in `litheseg.nn.arrangement`.

Papers: Vallurupalli et al., "Efficient Semantic Segmentation using Gradual Grouping", CVPR Workshops 2018 (the groups);
Huang et al., "CondenseNet", CVPR 2018 (that groups are better found than given).

Usage:
    >>> relabelling = find_relabelling(model)  # with gradual layers; plain or elastic
    >>> relabelling.apply(model, optimizer)
    >>> relabelling.kept_before["layer1.conv1"], relabelling.kept_after["layer1.conv1"]
    (0.25, 0.61)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.nn.arrangement import ChannelSet, EnergyMatrix, arrange
from litheseg.nn.grouping import gradual_layers
from litheseg.nn.layers import SlimConvTranspose2d, SwitchableBatchNorm2d
from litheseg.nn.movable import MovableChannels, group_mask
from litheseg.nn.tracing import trace_model

__all__ = ["Relabelling", "find_relabelling"]


@dataclass(frozen=True)
class Relabelling:
    """New places for the channels of a network.

    Attributes:
        kept_before: by gradual layer: share of its squared weight inside the final blocks, in [0, 1].
        kept_after: the same once `apply` has been called.
        sources: by layer: for every output and every input channel, the place that it comes from.
    """

    kept_before: dict[str, float]
    kept_after: dict[str, float]
    sources: dict[str, tuple[Tensor, Tensor]]

    @torch.no_grad()
    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the channels, in place; the parameters stay the same objects, in the same memory.

        Gradients move along, and so does what the optimizer remembers of a parameter entry by entry (Adam's moments,
        the momentum); parameters that it has not seen yet do not matter. Call this for other copies of
        the weights (a moving average) as well.

        Args:
            model: the one that this was found for, or one with the same layers; still dense.
            optimizer: of its parameters.
        """
        for name, (outputs, inputs) in self.sources.items():
            layer: Any = model.get_submodule(name)
            mask = group_mask(layer)
            if mask is not None:
                layer.weight.data.mul_(mask.mask)
            for tensor, sources in _tensors(layer, outputs, inputs):
                state = optimizer.state.get(tensor, {}) if optimizer else {}
                for value in (tensor, tensor.grad, *state.values()):
                    if isinstance(value, Tensor) and value.shape == tensor.shape:
                        _move(value, sources)
            if mask is not None:
                layer.weight.data.div_(torch.where(mask.mask == 0, 1, mask.mask))


def find_relabelling(model: nn.Module) -> Relabelling:
    """Find the best places for the channels of a network whose layers are about to fade, or fading; it is not changed.

    The same weights give the same result. A layer none of whose channels can move stays contiguous; that is an error
    only if it is so for all of them. Layers that do not run are left out.

    Args:
        model: with gradual layers; plain or elastic.

    Raises:
        ModelError: there are gradual layers, but not one has channels that can change groups.
    """
    trace = trace_model(model, dense=True)
    network = MovableChannels(model, trace)
    layers = {name: pair for name, pair in gradual_layers(model).items() if name in trace}
    matrices = {name: EnergyMatrix.of(layer, mask, network.sides[name]) for name, (layer, mask) in layers.items()}
    sets = [ChannelSet(members, matrices.values()) for members in network.movable()]
    sets = [one for one in sets if one.matters]
    if layers and not sets:
        name = next(iter(layers))
        made, read = (network.reason(channels) for channels in network.sides[name])
        raise ModelError(
            f"no channels can change groups in layer '{name}' (what it reads {read}; what it makes {made}), nor in any "
            "other that fades. Keep their order (--grouping.assignment contiguous), or group others (--grouping.where)"
        )
    before = {name: matrix.kept for name, matrix in matrices.items()}
    arrange(sets, list(matrices.values()))
    after = {name: matrix.kept for name, matrix in matrices.items()}
    found = np.arange(network.count)
    for one in sets:
        found[one.members] = one.members[one.order]
    return Relabelling(before, after, network.sources(found))


# --- applying --------------------------------------------------------------------------------------------------------


def _tensors(layer: nn.Module, outputs: Tensor, inputs: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """What a layer holds per channel, with the source of every place along its first dimensions."""
    if isinstance(layer, SwitchableBatchNorm2d):
        for width in layer.dial.available:
            kept = layer.channels.select(torch.arange(len(outputs)), 0, width)
            place = torch.zeros_like(outputs)
            place[kept] = torch.arange(len(kept))
            yield from _tensors(layer.norm_of(width), place[outputs[kept]], place[outputs[kept]])
        return
    transposed = isinstance(layer, (nn.ConvTranspose2d, SlimConvTranspose2d))
    for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
        if tensor.ndim == 1:
            yield tensor, (outputs,)
        elif tensor.ndim > 1:
            first, second = (inputs, outputs) if transposed else (outputs, inputs)
            # A grouped weight has only the channels of one group in its second dimension, and they stay.
            yield tensor, (first, second) if tensor.shape[1] == len(second) else (first,)


def _move(value: Tensor, sources: tuple[Tensor, ...]) -> None:
    moved = value.detach()
    for dim, source in enumerate(sources):
        moved = moved.index_select(dim, source.to(value.device))
    value.data.copy_(moved)
