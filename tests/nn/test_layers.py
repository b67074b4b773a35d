"""Every elastic layer against the plain layer of that size, with weights sliced by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from litheseg.nn import ChannelPart, Channels, WidthDial
from litheseg.nn.layers import (
    SlimConv2d,
    SlimConvTranspose2d,
    SlimGroupNorm,
    SlimLayerNorm,
    SlimLinear,
    SwitchableBatchNorm2d,
)

IMAGE = Channels((ChannelPart(3, elastic=False),))
WIDTHS = (1.0, 0.75, 0.5, 0.25)


@pytest.fixture
def dial() -> WidthDial:
    return WidthDial(WIDTHS)


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_dense_convolution(dial: WidthDial, width: float, padding_mode: str) -> None:
    plain = nn.Conv2d(32, 64, (3, 1), stride=2, padding=(2, 0), dilation=(2, 1), padding_mode=padding_mode)
    weight, bias = plain.weight.detach().clone(), plain.bias.detach().clone()
    slim = SlimConv2d(plain, dial, inputs=Channels((ChannelPart(32),)), outputs=Channels((ChannelPart(64),)))
    dial.turn(width)
    rows, columns = int(64 * width), int(32 * width)
    small = nn.Conv2d(columns, rows, (3, 1), stride=2, padding=(2, 0), dilation=(2, 1), padding_mode=padding_mode)
    small.load_state_dict({"weight": weight[:rows, :columns], "bias": bias[:rows]})
    x = torch.randn(2, columns, 9, 11)
    _close(slim(x), small(x))
    extracted = slim.to_plain()
    assert type(extracted) is nn.Conv2d
    _close(extracted(x), small(x))


def test_same_padding(dial: WidthDial) -> None:
    plain = nn.Conv2d(16, 16, 3, padding="same", padding_mode="reflect", dilation=2)
    slim = SlimConv2d(plain, dial, inputs=Channels((ChannelPart(16),)), outputs=Channels((ChannelPart(16),)))
    x = torch.randn(1, 16, 9, 9)
    _close(slim(x), plain(x))
    _close(slim.to_plain()(x), plain(x))


@pytest.mark.parametrize("width", WIDTHS)
def test_depthwise_convolution(dial: WidthDial, width: float) -> None:
    plain = nn.Conv2d(32, 32, 3, padding=1, groups=32)
    slim = SlimConv2d(plain, dial, inputs=Channels((ChannelPart(32),)), outputs=Channels((ChannelPart(32),)))
    dial.turn(width)
    kept = int(32 * width)
    x = torch.randn(2, kept, 5, 5)
    full = torch.cat([x, torch.randn(2, 32 - kept, 5, 5)], 1)
    _close(slim(x), plain(full)[:, :kept])
    assert slim.to_plain().groups == kept


@pytest.mark.parametrize("width", WIDTHS)
def test_grouped_convolution_drops_whole_groups(dial: WidthDial, width: float) -> None:
    plain = nn.Conv2d(16, 32, 3, padding=1, groups=4)
    slim = SlimConv2d(
        plain, dial, inputs=Channels((ChannelPart(16, unit=4),)), outputs=Channels((ChannelPart(32, unit=8),))
    )
    dial.turn(width)
    groups = int(4 * width)
    x = torch.randn(2, 4 * groups, 5, 5)
    full = torch.cat([x, torch.randn(2, 16 - 4 * groups, 5, 5)], 1)
    _close(slim(x), plain(full)[:, : 8 * groups])
    assert slim.to_plain().groups == groups


def test_concatenated_input_takes_matching_columns(dial: WidthDial) -> None:
    plain = nn.Conv2d(16 + 3 + 32, 8, 1)
    weight = plain.weight.detach().clone()
    inputs = Channels((ChannelPart(16), ChannelPart(3, elastic=False), ChannelPart(32)))
    slim = SlimConv2d(plain, dial, inputs=inputs, outputs=Channels((ChannelPart(8, elastic=False),)))
    dial.turn(0.5)
    first, second, third = torch.randn(1, 8, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(1, 16, 4, 4)
    by_hand = sum(
        torch.einsum("oi,nihw->nohw", columns[:, :, 0, 0], part)
        for columns, part in ((weight[:, :8], first), (weight[:, 16:19], second), (weight[:, 19:35], third))
    )
    _close(slim(torch.cat([first, second, third], 1)), by_hand + plain.bias.view(1, -1, 1, 1))


@pytest.mark.parametrize("width", WIDTHS)
def test_transposed_convolution(dial: WidthDial, width: float) -> None:
    plain = nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1)
    weight, bias = plain.weight.detach().clone(), plain.bias.detach().clone()
    slim = SlimConvTranspose2d(plain, dial, inputs=Channels((ChannelPart(32),)), outputs=Channels((ChannelPart(16),)))
    dial.turn(width)
    columns, rows = int(32 * width), {1.0: 16, 0.75: 16, 0.5: 8, 0.25: 8}[width]
    small = nn.ConvTranspose2d(columns, rows, 3, stride=2, padding=1, output_padding=1)
    small.load_state_dict({"weight": weight[:columns, :rows], "bias": bias[:rows]})
    x = torch.randn(2, columns, 5, 7)
    _close(slim(x), small(x))
    _close(slim.to_plain()(x), small(x))


def test_linear(dial: WidthDial) -> None:
    plain = nn.Linear(32, 10)
    slim = SlimLinear(
        plain, dial, inputs=Channels((ChannelPart(32),)), outputs=Channels((ChannelPart(10, elastic=False),))
    )
    dial.turn(0.25)
    x = torch.randn(3, 8)
    _close(slim(x), x @ plain.weight[:, :8].T + plain.bias)
    _close(slim.to_plain()(x), slim(x))


def test_group_norm_keeps_the_other_groups_as_they_are(dial: WidthDial) -> None:
    plain = nn.GroupNorm(4, 32)
    nn.init.normal_(plain.weight)
    slim = SlimGroupNorm(plain, dial, channels=Channels((ChannelPart(32, unit=8),)))
    dial.turn(0.5)
    full = torch.randn(2, 32, 4, 4)
    _close(slim(full[:, :16]), plain(full)[:, :16])
    _close(slim.to_plain()(full[:, :16]), plain(full)[:, :16])


@pytest.mark.parametrize("channels_first", [True, False])
def test_layer_norm(dial: WidthDial, channels_first: bool) -> None:
    plain = nn.LayerNorm(32)
    nn.init.normal_(plain.weight)
    slim = SlimLayerNorm(plain, dial, channels=Channels((ChannelPart(32),)), channels_first=channels_first)
    dial.turn(0.5)
    x = torch.randn(2, 4, 4, 16)
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    by_hand = (x - mean) / torch.sqrt(variance + 1e-5) * plain.weight[:16] + plain.bias[:16]
    given = x.movedim(-1, 1) if channels_first else x
    wanted = by_hand.movedim(-1, 1) if channels_first else by_hand
    _close(slim(given), wanted)
    _close(slim.to_plain()(given), wanted)


def _batch_norm(dial: WidthDial, channels: int = 32) -> SwitchableBatchNorm2d:
    return SwitchableBatchNorm2d(nn.BatchNorm2d(channels), dial, channels=Channels((ChannelPart(channels),)))


def test_running_one_width_leaves_the_others_batch_norm_untouched(dial: WidthDial) -> None:
    norm = _batch_norm(dial).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    dial.turn(0.5)
    norm(torch.randn(4, 16, 3, 3) + 5).sum().backward()
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]) != (
            (name.startswith("norms.2.") and "running" in name) or "2.num" in name
        )
    assert all((p.grad is not None) == name.startswith("norms.2.") for name, p in norm.named_parameters())


def test_batch_norm_is_keyed_by_width_not_by_channels() -> None:
    """Widths 0.3 and 0.25 of 32 channels both round to 8; their statistics must differ all the same."""
    dial = WidthDial((0.3, 0.25))
    norm = _batch_norm(dial).train()
    dial.turn(0.3)
    norm(torch.randn(4, 8, 3, 3) + 5)
    dial.turn(0.25)
    assert norm.current.running_mean.abs().max() == 0


def test_batch_norm_between_two_widths_is_interpolated() -> None:
    dial = WidthDial((1.0, 0.5))
    norm = _batch_norm(dial, 16)
    norm.norms[0].weight.data = torch.arange(16.0)
    norm.norms[1].weight.data = torch.arange(8.0) + 100
    norm.add_width(0.75)
    weight = norm.calibrated["w0_75"].weight
    shared = 0.5 * torch.arange(8.0) + 0.5 * (torch.arange(8.0) + 100)
    assert torch.allclose(weight, torch.cat([shared, torch.arange(8.0, 16.0)])[: len(weight)])


def test_a_plain_state_dict_reaches_every_width(dial: WidthDial) -> None:
    norm, plain = _batch_norm(dial), nn.BatchNorm2d(32)
    nn.init.normal_(plain.weight)
    plain.running_mean.normal_()
    norm.load_state_dict(plain.state_dict())
    for width, part in zip(WIDTHS, norm.norms, strict=True):
        assert torch.equal(part.weight, plain.weight[: int(32 * width)])
        assert torch.equal(part.running_mean, plain.running_mean[: int(32 * width)])
