"""ERFNet and its efficient family against the published tables: parameters, MACs, order, shapes, alignment."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from contract import shake
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from litheseg.cost import count
from litheseg.models import build_model
from litheseg.models.erfnet import BilinearUp, Down, ERFNet, LightUp, NonBottleneck1d, Separable, Up, erfnet
from litheseg.nn.efficient import Efficient, make_efficient
from litheseg.nn.grouping import ChannelShuffle


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


# --- the efficient family --------------------------------------------------------------------------------------------

FAMILY = {  # 20 outputs, 512 x 1024
    "erfnet": (2_064_256, 26_612_727_808),
    "erfnet-d": (578_304, 9_504_161_792),
    "erfnet-d*": (421_056, 5_494_407_168),
    "erfnet-dg2*": (269_504, 3_749_576_704),
    "erfnet-dg4*": (193_728, 2_877_161_472),
    "erfnet-dg8*": (155_840, 2_440_953_856),
}


@pytest.mark.parametrize("name", FAMILY)
def test_family_totals_equal_the_published(name: str) -> None:
    model = build_model(name, 20)
    assert (_parameters(model), _macs(model, 3, 512, 1024)) == FAMILY[name]


def test_bilinear_upsampling_costs_what_the_light_one_does() -> None:
    light, bilinear = build_model("erfnet-dg4*", 20), build_model("erfnet-dg4*", 20, up="bilinear")
    assert any(isinstance(layer, BilinearUp) for layer in bilinear.decoder)
    assert not any(isinstance(layer, LightUp) for layer in bilinear.decoder)
    image = torch.rand(2, 3, 64, 96)
    assert light(image).shape == bilinear(image).shape == (2, 20, 64, 96)
    assert (_parameters(bilinear), _macs(bilinear, 3, 512, 1024)) == FAMILY["erfnet-dg4*"]


@pytest.mark.parametrize(
    ("channels", "groups", "parameters"),
    [
        *((64, groups, number) for groups, number in ((1, 10_112), (2, 6_016), (4, 3_968))),
        *((128, groups, number) for groups, number in ((1, 36_608), (2, 20_224), (4, 12_032))),
        (16, 1, 992),
    ],
)
def test_separable_blocks_equal_the_table(channels: int, groups: int, parameters: int) -> None:
    head = nn.Sequential(nn.Conv2d(3, channels, 1), Separable(channels, 2), nn.Conv2d(channels, 2, 1))
    block = make_efficient(head, Efficient(groups=groups, where="1.conv*,1x1"))[1]
    assert _parameters(block) == parameters


@pytest.mark.parametrize("up", [LightUp, BilinearUp])
def test_light_upsampling_equals_the_table(up: type[nn.Module]) -> None:
    assert [_parameters(up(128, 64)), _parameters(up(64, 16))] == [8_384, 1_072]
    assert up(8, 4)(torch.rand(2, 8, 5, 7)).shape == (2, 4, 10, 14)


@pytest.mark.parametrize(
    ("name", "inside", "up"),
    [
        ("erfnet-d", "NonBottleneck1d", "Up"),
        ("erfnet-d*", "Separable", "LightUp"),
        ("erfnet-dg4*", "Separable", "LightUp"),
    ],
)
def test_family_keeps_the_order_of_layers(name: str, inside: str, up: str) -> None:
    model = build_model(name, 20)
    encoder = [type(layer).__name__ for layer in model.encoder]
    assert encoder == ["Down", "Down", *["Separable"] * 5, "Down", *["Separable"] * 8]
    assert [type(layer).__name__ for layer in model.decoder] == [up, inside, inside, up, inside, inside]
    blocks = [layer for layer in model.encoder if isinstance(layer, Separable)]
    assert [block.conv3[-1].dilation if name == "erfnet-dg4*" else block.conv3.dilation for block in blocks] == [
        (dilation, dilation) for dilation in [1] * 5 + [2, 4, 8, 16] * 2
    ]
    assert [block.dropout.p for block in blocks] == [0.03] * 5 + [0.3] * 8
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_encoder_is_grouped_and_shuffled_and_the_decoder_is_not(groups: int) -> None:
    model = build_model(f"erfnet-dg{groups}*", 20)
    pointwise = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    assert [layer.groups for layer in pointwise] == [groups] * 26 + [1] * 8
    assert [layer.groups for layer in model.modules() if isinstance(layer, ChannelShuffle)] == [groups] * 13
    assert not any(isinstance(layer, ChannelShuffle) for layer in model.decoder.modules())


def _block_by_hand(weights: list[Tensor], norms: list[nn.BatchNorm2d], x: Tensor, groups: int, dilation: int) -> Tensor:
    """Separable block with grouped 1x1s; the shuffle stands behind the first 1x1's ReLU. Channel by channel."""
    channels = x.shape[1]
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = zip(weights[::2], weights[1::2], strict=True)

    def norm(index: int, y: Tensor) -> Tensor:
        n = norms[index]
        return F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, eps=1e-3)

    y = norm(0, F.conv2d(x, w1, b1, padding=1, groups=channels)).relu()
    y = norm(1, F.conv2d(y, w2, b2, groups=groups)).relu()
    size = channels // groups
    y = y[:, [group * size + index for index in range(size) for group in range(groups)]]
    y = norm(2, F.conv2d(y, w3, b3, padding=dilation, dilation=dilation, groups=channels)).relu()
    return (norm(3, F.conv2d(y, w4, b4, groups=groups)) + x).relu()


@pytest.mark.parametrize(("groups", "index", "dilation"), [(2, 3, 1), (4, 3, 1), (4, 11, 16), (8, 9, 4)])
def test_shuffle_stands_behind_the_first_pointwise_relu(groups: int, index: int, dilation: int) -> None:
    torch.manual_seed(0)
    block = shake(build_model(f"erfnet-dg{groups}*", 20)).double().eval().encoder[index]
    convolutions = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d)]
    weights = [value for layer in convolutions for value in (layer.weight, layer.bias)]
    x = torch.randn(2, len(norms[0].weight), 9, 11, dtype=torch.float64)
    with torch.no_grad():
        wanted = _block_by_hand(weights, norms, x, groups, dilation)
        torch.testing.assert_close(block(x), wanted, rtol=1e-12, atol=1e-12)


def test_grouped_encoder_of_d_star_is_dg_star() -> None:
    """Whoever groups the encoder by hand gets the published network: modules, names and function."""
    made = make_efficient(build_model("erfnet-d*", 7), Efficient(groups=4, where="encoder,1x1")).eval()
    named = shake(build_model("erfnet-dg4*", 7)).eval()
    kinds = [[(name, type(module)) for name, module in model.named_modules()] for model in (made, named)]
    assert kinds[0] == kinds[1]
    made.load_state_dict(named.state_dict())
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(made(image), named(image))


def test_grouping_by_role_alone_chooses_the_same_layers() -> None:
    """The other layers of the encoder are depthwise, strided, or read the image."""
    made = make_efficient(build_model("erfnet-d*", 20), Efficient(groups=4, where="encoder"))
    assert (_parameters(made), _macs(made, 3, 512, 1024)) == FAMILY["erfnet-dg4*"]
    named = build_model("erfnet-dg4*", 20)
    assert [name for name, _ in made.named_modules()] == [name for name, _ in named.named_modules()]


def test_heads_do_not_change_the_network_they_hang_on() -> None:
    plain, headed = (build_model("erfnet-dg2*", 7, aux_head=heads, boundary_head=heads) for heads in (False, True))
    names = [name for name in headed.state_dict() if not name.startswith(headed.training_only)]
    assert names == list(plain.state_dict())


def test_light_upsampling_writes_one_pixel_in_four() -> None:
    up = LightUp(8, 4)
    with torch.no_grad():
        x = torch.randn(2, 8, 5, 7)
        raw = up.conv(x)
        written = torch.einsum("nihw,io->nohw", x, up.conv.weight[:, :, 0, 0]) + up.conv.bias.view(1, -1, 1, 1)
    wanted = up.conv.bias.detach().view(1, -1, 1, 1).expand(2, 4, 10, 14).clone()
    wanted[:, :, ::2, ::2] = written
    torch.testing.assert_close(raw, wanted, rtol=1e-5, atol=1e-6)
