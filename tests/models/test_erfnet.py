"""ERFNet against the published layer table: parameters, MACs, shapes, alignment."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from litheseg.cost.profile import count
from litheseg.models.erfnet import Down, ERFNet, NonBottleneck1d, Up, erfnet


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(module: nn.Module, *shape: int) -> int:
    """Convolution MACs, from torch's own counter, on the meta device: nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta").eval()(torch.empty(1, *shape, device="meta"))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


@pytest.mark.parametrize(
    ("num_classes", "parameters", "macs"), [(19, 2_064_191, 26_604_339_200), (20, 2_064_256, 26_612_727_808)]
)
def test_totals_equal_the_published(num_classes: int, parameters: int, macs: int) -> None:
    model = erfnet(num_classes)
    assert _parameters(model) == parameters
    assert _macs(model, 3, 512, 1024) == macs


def test_litheseg_counts_the_same() -> None:
    cost = count(erfnet(19).eval(), (512, 1024))
    assert (cost.params, cost.macs) == (2_064_191, 26_604_339_200)


@pytest.mark.parametrize(
    ("layer", "shape", "parameters", "macs"),
    [
        (Down(3, 16), (3, 512, 1024), 396, 46_006_272),
        (Down(16, 64), (16, 256, 512), 7_088, 226_492_416),
        (NonBottleneck1d(64, 1, 0.03), (64, 128, 256), 49_664, 1_610_612_736),
        (Down(64, 128), (64, 128, 256), 37_184, 301_989_888),
        (NonBottleneck1d(128, 16, 0.3), (128, 64, 128), 197_632, 1_610_612_736),
        (Up(128, 64), (128, 64, 128), 73_920, 603_979_776),
        (Up(64, 16), (64, 128, 256), 9_264, 301_989_888),
        (NonBottleneck1d(16), (16, 256, 512), 3_200, 402_653_184),
        (nn.ConvTranspose2d(16, 20, 2, 2), (16, 256, 512), 1_300, 167_772_160),
    ],
)
def test_layers_equal_the_table(layer: nn.Module, shape: tuple[int, ...], parameters: int, macs: int) -> None:
    assert _parameters(layer) == parameters
    assert _macs(layer, *shape) == macs


def test_layers_follow_the_table_in_order() -> None:
    model = erfnet(20)
    names = [type(layer).__name__ for part in (model.encoder, model.decoder) for layer in part]
    block = "NonBottleneck1d"
    assert names == ["Down", "Down", *[block] * 5, "Down", *[block] * 8, "Up", block, block, "Up", block, block]
    dilated = [layer.conv3.dilation[0] for layer in model.encoder if isinstance(layer, NonBottleneck1d)]
    assert dilated == [1] * 5 + [2, 4, 8, 16] * 2
    layers = [*model.encoder, *model.decoder]
    dropout = [layer.dropout.p for layer in layers if isinstance(layer, NonBottleneck1d)]
    assert dropout == [0.03] * 5 + [0.3] * 8 + [0.0] * 4
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)} == {1e-3}
    assert next(reversed(model.state_dict())) == "classifier.bias"


def test_heads_exist_in_training_only_and_add_what_they_should() -> None:
    plain, model = erfnet(7), erfnet(7, aux_head=True)
    assert _parameters(model) - _parameters(plain) == 128 * 7 + 7
    model = erfnet(7, aux_head=True, boundary_head=True)
    image = torch.rand(2, 3, 64, 96)
    shapes = {name: tuple(value.shape) for name, value in model.train().outputs(image).items()}
    assert shapes == {
        "logits": (2, 7, 64, 96),
        "features": (2, 16, 32, 48),
        "aux": (2, 7, 8, 12),
        "boundary": (2, 1, 32, 48),
    }
    assert set(model.eval().outputs(image)) == {"logits", "features"}


def test_odd_sizes_stay_aligned() -> None:
    """Logits are cropped, never resampled: away from the border an odd image gives what its padded version gives."""

    def block(channels: int, dilation: int, dropout: float) -> nn.Module:
        return nn.Identity()  # keeps the field of view small, so that the border's influence ends

    model = ERFNet(5, encoder_block=block, decoder_block=block).eval()
    image = torch.rand(1, 3, 61, 91)
    with torch.no_grad():
        odd = model.outputs(image)["logits"]
        padded = model(nn.functional.pad(image, (0, 5, 0, 3)))
    assert odd.shape == (1, 5, 61, 91)
    torch.testing.assert_close(odd[..., :40, :64], padded[..., :40, :64])


def test_blocks_and_upsampling_can_be_replaced() -> None:
    def block(channels: int, dilation: int, dropout: float) -> nn.Module:
        return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)

    def up(in_channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.Upsample(scale_factor=2))

    model = ERFNet(3, encoder_block=block, decoder_block=block, up=up)
    assert not any(isinstance(module, (NonBottleneck1d, Up)) for module in model.modules())
    assert model(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)
