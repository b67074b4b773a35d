"""Elastic layers: they compute with the first channels of their weights, as many as the model's width dial sets.

Each is built from the full-size layer that it replaces and from `Channels`, the rules by which input and output shrink.
Weights keep the plain layer's names and sizes, so plain state dicts load; `to_plain` gives the ordinary layer of the
current width. How layers are connected is found by `litheseg.nn.slim`.

Batch norm does not share its parameters: statistics, scales and shifts are kept for each width (switchable batch norm,
Yu et al., "Slimmable Neural Networks", ICLR 2019, Sec. 3.3), by the position of the width among the trained ones, since
two widths may round to the same number of channels.

Usage:
    >>> dial = WidthDial((1.0, 0.5))
    >>> image, hidden = Channels((ChannelPart(3, elastic=False),)), Channels((ChannelPart(64),))
    >>> conv = SlimConv2d(nn.Conv2d(3, 64, 3), dial, inputs=image, outputs=hidden)
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.nn.surgery import conv_like, convolve
from litheseg.nn.width import Channels, WidthDial

__all__ = [
    "BatchNormThen",
    "ChannelLayerNorm",
    "SlimConv2d",
    "SlimConvTranspose2d",
    "SlimGroupNorm",
    "SlimLayerNorm",
    "SlimLinear",
    "SwitchableBatchNorm2d",
    "width_key",
]


def width_key(width: float) -> str:
    """The name of a calibrated width in a state dict (names may hold no dot): 0.625 -> ``w0_625``."""
    return f"w{width:g}".replace(".", "_")


def _copy_into(plain: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Copy the given values into the parameters of a freshly built layer."""
    for name, value in tensors.items():
        if value is not None:
            parameter = getattr(plain, name)
            parameter.data = value.detach().clone().to(memory_format=torch.contiguous_format)
            parameter.requires_grad_(value.requires_grad)
    return plain


class _SlimConvolution(nn.Module):
    """Weights of full size, and how input and output shrink; see `SlimConv2d`."""

    def __init__(
        self, layer: nn.Conv2d | nn.ConvTranspose2d, dial: WidthDial, *, inputs: Channels, outputs: Channels
    ) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.dial, self.inputs, self.outputs = dial, inputs, outputs
        self.full_groups = layer.groups
        self.grouping = getattr(layer, "grouping", None)
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice

    @property
    def in_channels(self) -> int:
        """Channels of the input at the current width."""
        return self.inputs.count(self.dial.width)

    @property
    def out_channels(self) -> int:
        """Channels of the output at the current width."""
        return self.outputs.count(self.dial.width)

    @property
    def groups(self) -> int:
        """Groups at the current width: a narrower grouped layer drops whole groups, or the same part of each."""
        return self.inputs.groups(self.full_groups, self.dial.width)

    def _sliced_bias(self) -> Tensor | None:
        return None if self.bias is None else self.outputs.select(self.bias, 0, self.dial.width)

    def extra_repr(self) -> str:
        """The channels at full width and at the current one."""
        now = f"{self.in_channels}->{self.out_channels}"
        return f"{self.inputs.full}->{self.outputs.full} (now {now}), kernel_size={self.kernel_size}"


class SlimConv2d(_SlimConvolution):
    """Elastic `nn.Conv2d`: dense, grouped, depthwise, or gradually becoming grouped.

    Args:
        layer: the full-size layer, plain or gradual; its parameters are taken over, not copied.
        dial: the model's dial.
        inputs: how the input shrinks.
        outputs: how the output shrinks.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs.count(width) x H x W -> N x outputs.count(width) x H' x W'."""
        weight, groups = self._sliced_weight()
        return convolve(self, x, weight, self._sliced_bias(), groups)

    def _sliced_weight(self) -> tuple[Tensor, int]:
        """The weight at the current width, masked while it becomes grouped, and its groups."""
        weight, groups = self.weight, self.full_groups
        if self.grouping is not None:
            weight, groups = self.grouping.apply_to(weight)
        rows = self.outputs.select(weight, 0, self.dial.width)
        columns = self.inputs if groups == 1 else self.inputs.within(groups)
        return columns.select(rows, 1, self.dial.width), self.inputs.groups(groups, self.dial.width)

    def to_plain(self) -> nn.Module:
        """The `nn.Conv2d` of the current width; dense, with its mask applied, until it has become grouped."""
        weight, groups = self._sliced_weight()
        return _copy_into(conv_like(self, groups=groups), weight=weight, bias=self._sliced_bias())

    def to_grouped(self) -> SlimConv2d:
        """The elastic grouped layer that this one has become."""
        assert self.grouping is not None and self.grouping.done
        full = {"in_channels": self.inputs.full, "out_channels": self.outputs.full, "groups": self.grouping.groups}
        plain = conv_like(self, **full)
        _copy_into(plain, weight=self.grouping.blocks(self.weight), bias=self.bias)
        return SlimConv2d(plain, self.dial, inputs=self.inputs, outputs=self.outputs)


class SlimConvTranspose2d(_SlimConvolution):
    """Elastic `nn.ConvTranspose2d`; arguments as of `SlimConv2d`."""

    def __init__(self, layer: nn.ConvTranspose2d, dial: WidthDial, *, inputs: Channels, outputs: Channels) -> None:
        super().__init__(layer, dial, inputs=inputs, outputs=outputs)
        self.output_padding = layer.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs.count(width) x H x W -> N x outputs.count(width) x H' x W'."""
        return F.conv_transpose2d(
            x,
            self._sliced_weight(),
            self._sliced_bias(),
            self.stride,
            self.padding,  # type: ignore[arg-type]  # a transposed convolution's padding is never a string
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def _sliced_weight(self) -> Tensor:
        columns = self.outputs if self.full_groups == 1 else self.outputs.within(self.full_groups)
        return columns.select(self.inputs.select(self.weight, 0, self.dial.width), 1, self.dial.width)

    def to_plain(self) -> nn.Module:
        """The `nn.ConvTranspose2d` of the current width."""
        plain = conv_like(self, nn.ConvTranspose2d, groups=self.groups, output_padding=self.output_padding)
        return _copy_into(plain, weight=self._sliced_weight(), bias=self._sliced_bias())


class SlimLinear(nn.Module):
    """Elastic `nn.Linear`; arguments as of `SlimConv2d`."""

    def __init__(self, layer: nn.Linear, dial: WidthDial, *, inputs: Channels, outputs: Channels) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.dial, self.inputs, self.outputs = dial, inputs, outputs

    def _sliced(self) -> tuple[Tensor, Tensor | None]:
        width = self.dial.width
        weight = self.inputs.select(self.outputs.select(self.weight, 0, width), 1, width)
        return weight, None if self.bias is None else self.outputs.select(self.bias, 0, width)

    def forward(self, x: Tensor) -> Tensor:
        """... x inputs.count(width) -> ... x outputs.count(width)."""
        return F.linear(x, *self._sliced())

    def to_plain(self) -> nn.Module:
        """The `nn.Linear` of the current width."""
        weight, bias = self._sliced()
        return _copy_into(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight=weight, bias=bias)


class BatchNormThen(nn.BatchNorm2d):
    """Batch norm followed by what was fused to it (timm's `BatchNormAct2d`: dropout and activation)."""

    def __init__(self, num_features: int, *, then: nn.Module, **others: Any) -> None:
        super().__init__(num_features, **others)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same shape."""
        return self.then(super().forward(x))


class SwitchableBatchNorm2d(nn.Module):
    """One `nn.BatchNorm2d` for each trained width, and further ones for widths in between.

    Args:
        layer: the full-size layer; every width starts from its statistics and affine parameters.
        dial: the model's dial.
        channels: how the tensor shrinks.
        then: applied after the normalisation (a fused activation), or None.
    """

    def __init__(
        self, layer: nn.BatchNorm2d, dial: WidthDial, *, channels: Channels, then: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.dial, self.channels, self.then = dial, channels, then
        self.norms = nn.ModuleList(self._shrunk(layer, width) for width in dial.widths)
        self.calibrated = nn.ModuleDict()

    def _shrunk(self, layer: nn.BatchNorm2d, width: float) -> nn.BatchNorm2d:
        norm = nn.BatchNorm2d(self.channels.count(width), layer.eps, layer.momentum, layer.affine)
        state = {name: self._fit(value, width) for name, value in layer.state_dict().items() if "." not in name}
        norm.load_state_dict(state)
        return norm if layer.running_mean is None else norm.to(layer.running_mean)

    def _fit(self, value: Tensor, width: float) -> Tensor:
        """The entries of a full-size vector that a width keeps; the counter of batches as it is."""
        return self.channels.select(value, 0, width) if value.ndim else value

    def norm_of(self, width: float) -> nn.BatchNorm2d | nn.SyncBatchNorm:
        """The batch norm of an available width; synchronised where a distributed run has made it so."""
        widths = self.dial.widths
        norm = self.norms[widths.index(width)] if width in widths else self.calibrated[width_key(width)]
        assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        return norm

    @property
    def current(self) -> nn.BatchNorm2d | nn.SyncBatchNorm:
        """The batch norm of the current width."""
        return self.norm_of(self.dial.width)

    def forward(self, x: Tensor) -> Tensor:
        """N x channels.count(width) x H x W -> the same shape."""
        y = self.current(x)
        return y if self.then is None else self.then(y)

    @torch.no_grad()
    def add_width(self, width: float) -> None:
        """Give a further width a batch norm, interpolated between the two neighbouring trained widths.

        A channel that the narrower neighbour lacks takes the wider neighbour's value, and so does all of a width below
        the trained range. The statistics are only a start: `recalibrate` measures them.
        """
        wider = min(known for known in self.dial.widths if known >= width)
        narrower = max((known for known in self.dial.widths if known <= width), default=wider)
        share = 1.0 if wider == narrower else (width - narrower) / (wider - narrower)
        norm = copy.deepcopy(self.norm_of(wider))
        norm.num_features = self.channels.count(width)
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(norm, name)
            if tensor is not None:
                low, high = self._spread(name, narrower), self._spread(name, wider)
                mixed = torch.where(low.isnan(), high, share * high + (1 - share) * low)
                tensor.data = self._fit(mixed, width).clone()
        self.calibrated[width_key(width)] = norm

    def _spread(self, name: str, width: float) -> Tensor:
        """A width's vector laid out at full size, NaN where it has no channel."""
        vector = getattr(self.norm_of(width), name)
        full = vector.new_full((self.channels.full,), torch.nan)
        positions = torch.arange(self.channels.full, device=vector.device)
        full[self._fit(positions, width)] = vector
        return full

    def to_plain(self) -> nn.Module:
        """The batch norm of the current width, and what follows it."""
        norm = self.current
        arguments: dict[str, Any] = {"eps": norm.eps, "momentum": norm.momentum, "affine": norm.affine}
        if self.then is None:
            plain = nn.BatchNorm2d(norm.num_features, **arguments)
        else:
            plain = BatchNormThen(norm.num_features, then=copy.deepcopy(self.then), **arguments)
        plain.load_state_dict(norm.state_dict(), strict=False)
        if norm.running_mean is not None:
            plain.to(norm.running_mean)
        return _copy_into(plain, weight=norm.weight, bias=norm.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept a plain batch norm's entries as well: every width takes its first channels of them."""
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        plain = {name: state_dict.pop(prefix + name) for name in names if prefix + name in state_dict}
        for index, width in enumerate(self.dial.widths if plain else ()):
            for name, value in plain.items():
                state_dict[f"{prefix}norms.{index}.{name}"] = self._fit(value, width)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _SlimAffineNorm(nn.Module):
    """A norm without running statistics: scale and shift of full size, and how the channels shrink."""

    def __init__(self, layer: nn.GroupNorm | nn.LayerNorm, dial: WidthDial, *, channels: Channels) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.dial, self.channels = dial, channels

    def _sliced(self) -> tuple[Tensor | None, Tensor | None]:
        return tuple(
            None if value is None else self.channels.select(value, 0, self.dial.width)
            for value in (self.weight, self.bias)
        )  # type: ignore[return-value]


class SlimGroupNorm(_SlimAffineNorm):
    """Elastic `nn.GroupNorm`: a narrower layer drops whole groups, so that the others' statistics stay as they are.

    Where there are too few groups for that, it drops the same part of each.
    """

    def __init__(self, layer: nn.GroupNorm, dial: WidthDial, *, channels: Channels) -> None:
        super().__init__(layer, dial, channels=channels)
        self.full_groups = layer.num_groups

    @property
    def groups(self) -> int:
        """Groups at the current width."""
        return self.channels.groups(self.full_groups, self.dial.width)

    def forward(self, x: Tensor) -> Tensor:
        """N x channels.count(width) x ... -> the same shape."""
        return F.group_norm(x, self.groups, *self._sliced(), self.eps)

    def to_plain(self) -> nn.Module:
        """The `nn.GroupNorm` of the current width."""
        weight, bias = self._sliced()
        count = self.channels.count(self.dial.width)
        plain = nn.GroupNorm(self.groups, count, self.eps, affine=weight is not None)
        return _copy_into(plain, weight=weight, bias=bias)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of N x C x H x W."""

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SlimLayerNorm(_SlimAffineNorm):
    """Elastic `nn.LayerNorm` over channels, last (... x C) or first (N x C x H x W).

    Its statistics are those of each sample, so no width needs its own (Slimmable ConvNeXt, arXiv 2605.22677).
    """

    def __init__(self, layer: nn.LayerNorm, dial: WidthDial, *, channels: Channels, channels_first: bool) -> None:
        super().__init__(layer, dial, channels=channels)
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        """The shape of `x` is kept."""
        if self.channels_first:
            x = x.movedim(1, -1)
        y = F.layer_norm(x, (x.shape[-1],), *self._sliced(), self.eps)
        return y.movedim(-1, 1) if self.channels_first else y

    def to_plain(self) -> nn.Module:
        """The layer norm of the current width."""
        weight, bias = self._sliced()
        kind = ChannelLayerNorm if self.channels_first else nn.LayerNorm
        count = self.channels.count(self.dial.width)
        plain = kind(count, self.eps, elementwise_affine=weight is not None, bias=bias is not None)
        return _copy_into(plain, weight=weight, bias=bias)
