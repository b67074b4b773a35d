"""Layers that compute with a part of their weights, as their dial says.

Each takes the full-size layer it stands for and says, as `Channels`, how its input and output shrink. Weights keep the
plain layer's names and sizes, so plain state dicts load; `to_plain` gives the ordinary layer of the current width. They
do not know how they are connected: `litheseg.nn.slim` finds that out.

Batch norm is the exception to sharing: statistics *and* affine parameters are kept per width (switchable batch norm,
Yu et al., ICLR 2019, Sec. 3.3), keyed by the position of the width and not by the channel count, to which two widths
may round alike.

Usage:
    >>> dial = WidthDial((1.0, 0.5))
    >>> image, hidden = Channels((Part(3, elastic=False),)), Channels((Part(64),))
    >>> conv = SlimConv2d(nn.Conv2d(3, 64, 3), dial, inputs=image, outputs=hidden)
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.nn.width import Channels, WidthDial

__all__ = [
    "Affine",
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


Affine = Literal["interpolated", "nearest"]


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


class _SlimConvBase(nn.Module):
    """What convolutions and their transpose share: weights of full size and the two channel rules."""

    def __init__(
        self, layer: nn.Conv2d | nn.ConvTranspose2d, dial: WidthDial, *, inputs: Channels, outputs: Channels
    ) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.dial, self.inputs, self.outputs = dial, inputs, outputs
        self.full_groups = layer.groups
        self.grouping = getattr(layer, "grouping", None)
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding = layer.padding
        self.padding_mode = layer.padding_mode
        self._border = layer._reversed_padding_repeated_twice

    @property
    def groups(self) -> int:
        """Groups at the current width: a narrower grouped layer drops whole groups, or the same part of each."""
        return self._groups_of(self.full_groups)

    def _groups_of(self, full_groups: int) -> int:
        if full_groups == 1:
            return 1
        return self.inputs.count(self.dial.width) // self.inputs.within(full_groups).count(self.dial.width)

    def _sliced_bias(self) -> Tensor | None:
        return None if self.bias is None else self.outputs.select(self.bias, 0, self.dial.width)

    def _plain_arguments(self) -> dict[str, Any]:
        return {
            "in_channels": self.inputs.count(self.dial.width),
            "out_channels": self.outputs.count(self.dial.width),
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias is not None,
            "padding_mode": self.padding_mode,
        }

    def extra_repr(self) -> str:
        """The channels at full width and at the current one."""
        now = f"{self.inputs.count(self.dial.width)}->{self.outputs.count(self.dial.width)}"
        return f"{self.inputs.full}->{self.outputs.full} (now {now}), kernel_size={self.kernel_size}"


class SlimConv2d(_SlimConvBase):
    """Elastic `nn.Conv2d`: dense, grouped (drops whole groups or parts of them), depthwise, or on the way to groups.

    Args:
        layer: the full-size layer, plain or gradual; its parameters are taken over, not copied.
        dial: the model's dial.
        inputs: how the input shrinks.
        outputs: how the output shrinks.
    """

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs.count(width) x H x W -> N x outputs.count(width) x H' x W'."""
        (weight, groups), bias = self._sliced_weight(), self._sliced_bias()
        if self.padding_mode == "zeros":
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)
        x = F.pad(x, self._border, mode=self.padding_mode)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, groups)

    def _sliced_weight(self) -> tuple[Tensor, int]:
        """The weight at the current width, and its groups; a mask is cut like the weight it belongs to."""
        weight, groups = self.weight, self.full_groups
        if self.grouping is not None:
            weight, groups = self.grouping.apply_to(weight)
        rows = self.outputs.select(weight, 0, self.dial.width)
        columns = self.inputs if groups == 1 else self.inputs.within(groups)
        return columns.select(rows, 1, self.dial.width), self._groups_of(groups)

    def to_plain(self) -> nn.Module:
        """The `nn.Conv2d` of the current width; dense, with its mask applied, where it has not faded to the end."""
        weight, groups = self._sliced_weight()
        plain = nn.Conv2d(**self._plain_arguments() | {"groups": groups})
        return _copy_into(plain, weight=weight, bias=self._sliced_bias())

    def to_grouped(self) -> SlimConv2d:
        """The elastic grouped layer that this one has become."""
        assert self.grouping is not None and self.grouping.done
        full = {"in_channels": self.inputs.full, "out_channels": self.outputs.full, "groups": self.grouping.groups}
        plain = nn.Conv2d(**self._plain_arguments() | full)
        _copy_into(plain, weight=self.grouping.blocks(self.weight), bias=self.bias)
        return SlimConv2d(plain, self.dial, inputs=self.inputs, outputs=self.outputs)


class SlimConvTranspose2d(_SlimConvBase):
    """Elastic `nn.ConvTranspose2d`; arguments as in `SlimConv2d`."""

    def __init__(self, layer: nn.ConvTranspose2d, dial: WidthDial, *, inputs: Channels, outputs: Channels) -> None:
        super().__init__(layer, dial, inputs=inputs, outputs=outputs)
        self.output_padding = layer.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs.count(width) x H x W -> N x outputs.count(width) x H' x W'."""
        weight, bias = self._sliced_weight(), self._sliced_bias()
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]  # a transposed convolution's padding is never a text
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def _sliced_weight(self) -> Tensor:
        columns = self.outputs if self.full_groups == 1 else self.outputs.within(self.full_groups)
        return columns.select(self.inputs.select(self.weight, 0, self.dial.width), 1, self.dial.width)

    def to_plain(self) -> nn.Module:
        """The `nn.ConvTranspose2d` of the current width."""
        plain = nn.ConvTranspose2d(**self._plain_arguments(), output_padding=self.output_padding)  # type: ignore[arg-type]
        return _copy_into(plain, weight=self._sliced_weight(), bias=self._sliced_bias())


class SlimLinear(nn.Module):
    """Elastic `nn.Linear`; arguments as in `SlimConv2d`."""

    def __init__(self, layer: nn.Linear, dial: WidthDial, *, inputs: Channels, outputs: Channels) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
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
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        return _copy_into(plain, weight=weight, bias=bias)


class BatchNormThen(nn.BatchNorm2d):
    """Batch norm followed by what was fused to it (timm's `BatchNormAct2d`: dropout and activation)."""

    def __init__(self, num_features: int, *, eps: float, momentum: float | None, affine: bool, then: nn.Module) -> None:
        super().__init__(num_features, eps, momentum, affine)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same shape."""
        return self.then(super().forward(x))


class SwitchableBatchNorm2d(nn.Module):
    """One `nn.BatchNorm2d` per width, keyed by the width's position; further widths by calibration.

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
        return self.channels.select(value, 0, width) if value.ndim else value

    @property
    def current(self) -> nn.BatchNorm2d | nn.SyncBatchNorm:
        """The batch norm of the current width; synchronised where a distributed run has made it so."""
        index = self.dial.index
        norm = self.calibrated[width_key(self.dial.width)] if index is None else self.norms[index]
        assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """N x channels.count(width) x H x W -> the same shape."""
        y = self.current(x)
        return y if self.then is None else self.then(y)

    @torch.no_grad()
    def add_width(self, width: float, affine: Affine = "interpolated") -> None:
        """Give a width between the trained ones a batch norm, made from its two neighbours.

        Scales and shifts are interpolated between them, or those of the nearest one.

        A channel that the narrower neighbour lacks takes the wider neighbour's value. The statistics are a starting
        point only; `recalibrate` measures them.
        """
        wider = min(known for known in self.dial.widths if known >= width)
        narrower = max(known for known in self.dial.widths if known <= width)
        share = 1.0 if wider == narrower else (width - narrower) / (wider - narrower)
        if affine == "nearest":
            share = float(share >= 0.5)
        norm = copy.deepcopy(self.norms[self.dial.widths.index(wider)])
        assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
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
        vector = getattr(self.norms[self.dial.widths.index(width)], name)
        full = vector.new_full((self.channels.full,), torch.nan)
        positions = torch.arange(self.channels.full, device=vector.device)
        full[self._fit(positions, width)] = vector
        return full

    def to_plain(self) -> nn.Module:
        """The batch norm of the current width, and what follows it."""
        norm = self.current
        if self.then is None and isinstance(norm, nn.BatchNorm2d):
            return copy.deepcopy(norm)
        plain = (
            nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
            if self.then is None
            else BatchNormThen(
                norm.num_features,
                eps=norm.eps,
                momentum=norm.momentum,
                affine=norm.affine,
                then=copy.deepcopy(self.then),
            )
        )
        plain.load_state_dict(norm.state_dict(), strict=False)
        return plain if norm.running_mean is None else plain.to(norm.running_mean)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept a plain batch norm's entries as well: every width takes its first channels of them."""
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        plain = {name: state_dict.pop(prefix + name) for name in names if prefix + name in state_dict}
        for index, width in enumerate(self.dial.widths if plain else ()):
            for name, value in plain.items():
                state_dict[f"{prefix}norms.{index}.{name}"] = self._fit(value, width)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _SlimAffineNorm(nn.Module):
    """What the norms without running statistics share: scale and shift of full size, and the channel rule."""

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
        if self.full_groups == 1:
            return 1
        width = self.dial.width
        return self.channels.count(width) // self.channels.within(self.full_groups).count(width)

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

    Its statistics are of the sample, so no width needs its own (Slimmable ConvNeXt, arXiv 2605.22677).
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
