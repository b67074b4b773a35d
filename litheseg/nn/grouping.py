"""Convolutions that turn from dense to grouped while they are trained.

A `GradualConv2d` has the weight of a dense layer, multiplied by a mask: 1 inside the diagonal blocks of its future
groups, `alpha` elsewhere. At alpha 1 it is dense, at alpha 0 it computes what the grouped layer computes. `densify`
puts such layers in the place of a network's grouped convolutions, `fade` sets alpha, and `convert` turns them into
plain grouped convolutions: what is deployed has the names and shapes of the network that `densify` was given.

When alpha changes is up to `litheseg.training.gradual`. Groups are contiguous blocks of channels, as in the paper;
`litheseg.nn.assignment` permutes channels so that those which belong together share a group.

Paper: Vallurupalli et al., "Efficient Semantic Segmentation using Gradual Grouping", CVPR Workshops 2018 (Sec. 3.2).

Usage:
    >>> densify(model, ["body.conv1", "body.conv2"], stages=(2, 4))
    >>> fade(model, stage=0, alpha=0.5)
    >>> convert(model)  # once every stage is at alpha 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.nn.surgery import conv_like, convolve, replace_layer

__all__ = [
    "ChannelShuffle",
    "GradualConv2d",
    "GroupMask",
    "channel_shuffle",
    "convert",
    "densify",
    "fade",
    "gradual_layers",
]


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Reorder the channels of N x C x H x W so that each group's end up in all groups (ShuffleNet, Fig. 1c)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ChannelShuffle(nn.Module):
    """`channel_shuffle` as a layer, made of operators that every exporter supports."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same shape."""
        return channel_shuffle(x, self.groups)

    def extra_repr(self) -> str:
        """The groups."""
        return f"groups={self.groups}"


class GroupMask(nn.Module):
    """The mask on a dense weight that becomes grouped, in one stage or several (to 2 groups, then 4, then 8).

    In each stage the weights outside that stage's blocks fade from factor 1 to 0. Blocks of later stages lie within
    those of earlier ones.

    Args:
        out_channels: rows of the weight.
        in_channels: its columns.
        stages: groups at the end of each stage; each a multiple of the one before, the last divides both channels.

    Attributes:
        stage: the current one, from 0.
        alpha: factor on the weights that fade in this stage, in [0, 1].
        cut: out x in, the stage in which each connection fades; `len(stages)` for those that stay.
        mask: out x in x 1 x 1, the factors.
    """

    mask: Tensor
    cut: Tensor

    def __init__(self, out_channels: int, in_channels: int, stages: Sequence[int]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.stage, self.alpha = 0, 1.0
        cut = torch.stack([_same_group(out_channels, in_channels, groups) for groups in self.stages]).sum(0)
        self.register_buffer("cut", cut, persistent=False)
        self.register_buffer("mask", torch.ones(out_channels, in_channels, 1, 1), persistent=False)

    @property
    def groups(self) -> int:
        """Groups at the end."""
        return self.stages[-1]

    @property
    def done(self) -> bool:
        """Whether all weights outside the final blocks have faded."""
        return self.alpha == 0.0 and self.stage == len(self.stages) - 1

    def fade(self, stage: int, alpha: float) -> None:
        """Set stage and alpha; earlier stages are at 0, later ones at 1."""
        if (stage, alpha) == (self.stage, self.alpha):
            return
        self.stage, self.alpha = stage, alpha
        factors = self.mask.new_tensor([0.0] * stage + [alpha] + [1.0] * (len(self.stages) - stage))
        self.mask.copy_(factors[self.cut][:, :, None, None])

    def fading(self, weight: Tensor) -> Tensor:
        """The entries of `weight` (out x in x kh x kw) that fade in the current stage, as N x kh x kw."""
        return weight[self.cut == self.stage]

    def kept(self, weight: Tensor) -> Tensor:
        """The entries inside the blocks of the current stage, as N x kh x kw."""
        return weight[self.cut > self.stage]

    def apply_to(self, weight: Tensor) -> tuple[Tensor, int]:
        """The weight to convolve with, and its groups: masked and dense, or, when done, the blocks alone."""
        return (self.blocks(weight), self.groups) if self.done else (weight * self.mask, 1)

    def blocks(self, weight: Tensor) -> Tensor:
        """The diagonal blocks of out x in x kh x kw as a grouped weight, out x in / groups x kh x kw."""
        split = weight.unflatten(1, (self.groups, -1)).unflatten(0, (self.groups, -1))
        return split.diagonal(dim1=0, dim2=2).movedim(-1, 0).flatten(0, 1)

    def extra_repr(self) -> str:
        """Groups by stage, and how far it has come."""
        return f"groups={' -> '.join(map(str, (1, *self.stages)))}, stage={self.stage}, alpha={self.alpha:g}"


def _same_group(out_channels: int, in_channels: int, groups: int) -> Tensor:
    """A matrix out x in, True where both channels are in the same of `groups` contiguous blocks."""
    rows, columns = (torch.arange(n) * groups // n for n in (out_channels, in_channels))
    return rows[:, None] == columns[None, :]


class GradualConv2d(nn.Conv2d):
    """A dense convolution that becomes a grouped one; its state dict is that of the dense layer.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: as of `nn.Conv2d`.
        stages: groups at the end of each stage, such as (4,) or (2, 4, 8).
        **others: further arguments of `nn.Conv2d`; not `groups`.

    Raises:
        ModelError: stages that do not divide the channels or one another.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, *, stages: Sequence[int], **others: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **others)
        before = 1
        for groups in stages:
            if groups < before or groups % before or in_channels % groups or out_channels % groups:
                raise ModelError(
                    f"groups {' -> '.join(map(str, stages))} of a layer with {in_channels} input and {out_channels} "
                    "output channels: each must divide both, and be a multiple of the one before, such as 2 -> 4 -> 8"
                )
            before = groups
        self.grouping = GroupMask(out_channels, in_channels, stages)

    def forward(self, input: Tensor) -> Tensor:
        """N x in x H x W -> N x out x H' x W'."""
        weight, groups = self.grouping.apply_to(self.weight)
        return convolve(self, input, weight, self.bias, groups)

    def to_plain(self) -> nn.Conv2d:
        """The plain layer that computes the same: dense, with its mask applied, until it has become grouped."""
        weight, groups = self.grouping.apply_to(self.weight.detach())
        plain: nn.Conv2d = conv_like(self, groups=groups)
        plain.weight.data = weight.contiguous()
        if self.bias is not None:
            assert plain.bias is not None
            plain.bias.data = self.bias.detach().clone()
        return plain

    def to_grouped(self) -> nn.Conv2d:
        """The plain grouped layer that this one has become."""
        assert self.grouping.done
        return self.to_plain()


def gradual_layers(model: nn.Module) -> dict[str, tuple[nn.Module, GroupMask]]:
    """The layers that become grouped, plain or elastic, with their masks, by name, in the order of definition."""
    return {
        name: (layer, layer.grouping)
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "grouping", None), GroupMask)
    }


def densify(model: nn.Module, names: Sequence[str], stages: Sequence[int] = ()) -> None:
    """Replace grouped layers, in place, by dense ones that can become grouped; their weights are fresh.

    These are drawn with the standard deviation of the grouped layer's weights, scaled to the larger number of inputs.

    Args:
        model: plain; its grouped convolutions are the target.
        names: of `nn.Conv2d` layers; those that are not grouped are left as they are.
        stages: groups on the way to the target, such as (2, 4); a layer whose groups one of them does not divide has
            its final groups in that stage already.

    Raises:
        ModelError: none of the layers is grouped.
    """
    grouped = [name for name in names if model.get_submodule(name).groups > 1]  # type: ignore[operator]
    if not grouped:
        raise ModelError(
            "gradual grouping needs a network with grouped convolutions to end in, and none of the chosen layers is "
            "one; choose such a model (erfnet-dg4*), set --model.efficient.groups 4, or change --grouping.where"
        )
    for name in grouped:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        own = [stage if stage < 1 or layer.groups % stage == 0 else layer.groups for stage in stages]
        gradual: GradualConv2d = conv_like(layer, GradualConv2d, stages=(*own, layer.groups))
        nn.init.normal_(gradual.weight, std=float(layer.weight.detach().std()) / layer.groups**0.5)
        if layer.bias is not None:
            assert gradual.bias is not None
            gradual.bias.data = layer.bias.detach().clone()
        replace_layer(model, name, gradual)


def fade(model: nn.Module, stage: int, alpha: float) -> None:
    """Set stage and alpha of all layers that become grouped."""
    for _, mask in gradual_layers(model).values():
        mask.fade(stage, alpha)


def convert(model: nn.Module) -> nn.Module:
    """Replace, in place, every layer that has faded by the plain (or elastic) grouped one; returns the model.

    The function stays the same but for the rounding of other kernels: only zeros are left out.

    Raises:
        ModelError: a layer has not faded to the end.
    """
    for name, (layer, mask) in gradual_layers(model).items():
        if not mask.done:
            raise ModelError(
                f"layer '{name}' cannot be converted to {mask.groups} groups: alpha is {mask.alpha:g} in stage "
                f"{mask.stage + 1} of {len(mask.stages)}; train until the last stage has reached 0"
            )
        replace_layer(model, name, layer.to_grouped())  # type: ignore[operator]
    return model
