"""slim, extract and recalibrate on small networks whose right answer is known."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from litheseg.errors import ModelError, WidthError
from litheseg.models import build_model
from litheseg.nn import add_width, available_widths, extract, get_width, recalibrate, set_width, slim
from litheseg.nn.layers import SlimConv2d

WIDTHS = (1.0, 0.5, 0.25)


class _Residual(nn.Module):
    """Two branches are added, then concatenated with the image: ties, parts and a fixed part in one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(3, 32, 1)
        self.norm = nn.BatchNorm2d(32)
        self.mix = nn.Conv2d(35, 16, 1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x) + self.b(x)))
        return self.head(F.relu(self.mix(torch.cat([y, x], 1))))


def _by_hand(net: _Residual, x: Tensor, kept: int, mixed: int) -> Tensor:
    """The residual network at `kept` and `mixed` channels, with plain functions and sliced weights."""
    y = F.conv2d(x, net.a.weight[:kept], net.a.bias[:kept], padding=1) + F.conv2d(
        x, net.b.weight[:kept], net.b.bias[:kept]
    )
    n = net.norm
    y = F.relu(F.batch_norm(y, n.running_mean[:kept], n.running_var[:kept], n.weight[:kept], n.bias[:kept]))
    columns = torch.cat([net.mix.weight[:mixed, :kept], net.mix.weight[:mixed, 32:]], 1)
    y = F.relu(F.conv2d(torch.cat([y, x], 1), columns, net.mix.bias[:mixed]))
    return F.conv2d(y, net.head.weight[:, :mixed], net.head.bias)


@pytest.mark.parametrize(("width", "kept", "mixed"), [(1.0, 32, 16), (0.5, 16, 8), (0.25, 8, 8)])
def test_every_width_is_the_hand_sliced_network(width: float, kept: int, mixed: int) -> None:
    net = _Residual().eval()
    net.norm.running_mean.normal_()
    original = copy.deepcopy(net)
    slim(net, WIDTHS)
    set_width(net, width)
    x = torch.randn(2, 3, 8, 8)
    wanted = _by_hand(original, x, kept, mixed)
    torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extract(net, width)(x), wanted, rtol=1e-5, atol=1e-5)
    assert wanted.shape[1] == 5


class _Attention(nn.Module):
    """A network that cannot shrink: its heads have a fixed number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), BatchNormAct2d(16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        tokens = y.flatten(2).mT
        return self.head(self.attention(tokens, tokens, tokens)[0].mT.unflatten(2, y.shape[2:]))


def test_width_1_alone_takes_any_network() -> None:
    with pytest.raises(ModelError, match=r"attention.*cannot be slimmed"):
        slim(_Attention(), WIDTHS)
    net = _Attention()
    net(torch.rand(4, 3, 16, 16))  # statistics
    original, x = copy.deepcopy(net).eval(), torch.randn(2, 3, 16, 16)
    slim(net, (1.0,)).eval()
    assert available_widths(net) == (1.0,)
    torch.testing.assert_close(net(x), original(x), rtol=0, atol=0)
    torch.testing.assert_close(extract(net)(x), original(x), rtol=0, atol=0)
    other = _Attention()
    slim(other, (1.0,)).load_state_dict(original.state_dict())
    torch.testing.assert_close(other.eval()(x), original(x), rtol=0, atol=0)
    batches = [torch.randn(4, 3, 16, 16) + 2 for _ in range(2)]
    recalibrate(net, batches, (1.0,))
    pixels = torch.cat([original.stem[0](batch) for batch in batches])
    torch.testing.assert_close(net.stem[1].current.running_mean, pixels.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_extracting_leaves_the_model_as_it_was() -> None:
    net = slim(_Residual(), WIDTHS).train()
    before = copy.deepcopy(net.state_dict())
    extract(net, 0.25)
    assert get_width(net) == 1.0
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_extraction_is_plain_and_independent() -> None:
    net = slim(_Residual(), WIDTHS)
    small = extract(net, 0.5)
    assert {type(layer) for layer in small.modules()} == {_Residual, nn.Conv2d, nn.BatchNorm2d}
    assert not hasattr(small, "width_dial")
    nn.init.zeros_(small.a.weight)
    assert net.a.weight.abs().max() > 0


def test_gradients_reach_only_the_slice() -> None:
    net = slim(_Residual(), WIDTHS)
    set_width(net, 0.25)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    gradient = net.a.weight.grad
    assert gradient[:8].abs().sum() > 0
    assert gradient[8:].abs().sum() == 0


def test_unknown_width_and_plain_model() -> None:
    net = slim(_Residual(), WIDTHS)
    with pytest.raises(WidthError, match=r"available: 1, 0\.5, 0\.25"):
        set_width(net, 0.7)
    with pytest.raises(WidthError, match="plain model"):
        set_width(_Residual(), 0.5)
    set_width(_Residual(), 1.0)


def test_slimming_twice_is_refused() -> None:
    with pytest.raises(ModelError, match="elastic already"):
        slim(slim(_Residual(), WIDTHS), WIDTHS)


def test_random_state_is_left_alone() -> None:
    net = _Residual()
    torch.manual_seed(3)
    slim(net, WIDTHS)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


class _Shared(nn.Module):
    """One layer is used on two tensors, which therefore shrink together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
        self.shared, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.shared(self.a(x)), self.shared(self.b(x))], 1))


def test_shared_layer() -> None:
    net = slim(_Shared(), WIDTHS)
    set_width(net, 0.5)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(net(x), extract(net, 0.5)(x))
    assert net.head.inputs.count(0.5) == 16


class _Excitation(nn.Module):
    """Squeeze-and-excitation through linear layers and a flatten, over grouped channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Linear(64, 16), nn.Linear(16, 64)
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.stem(x))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3)))))
        return self.head(y * gate.sigmoid()[:, :, None, None])


def test_gates_and_groups() -> None:
    net = slim(_Excitation(), WIDTHS)
    x = torch.randn(2, 3, 6, 6)
    for width, groups in ((1.0, 4), (0.5, 2), (0.25, 1)):
        set_width(net, width)
        small = extract(net, width)
        assert small.grouped.groups == groups
        assert small.stem.out_channels == 8 * groups
        assert small.excite.out_features == small.head.in_channels == 16 * groups
        torch.testing.assert_close(net(x), small(x))


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
        self.scale = nn.Buffer(torch.ones(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x) * self.scale)


class _Split(_Constant):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head(torch.cat([y[:, 8:], y[:, :8]], 1))


class _Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16 * 64 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize("kind", [_Constant, _Split, _Merged])
def test_what_cannot_be_slimmed_names_the_layer(kind: type[nn.Module]) -> None:
    net = nn.Sequential(kind())
    with pytest.raises(ModelError, match=r"layer '0'.*cannot be slimmed"):
        slim(net, WIDTHS)
    assert not any(isinstance(layer, SlimConv2d) for layer in net.modules())


def test_mismatched_groups_are_refused() -> None:
    class Net(nn.Sequential):
        pass

    net = Net(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1, groups=4), nn.Conv2d(24, 24, 1, groups=3), nn.Conv2d(24, 2, 1))
    with pytest.raises(ModelError, match=r"layer '[12]' cannot be slimmed.*groups"):
        slim(net, (1.0, 0.5))


def test_recalibrated_statistics_are_the_mean_over_the_batches() -> None:
    net = slim(_Residual(), WIDTHS).eval()
    batches = [torch.randn(4, 3, 8, 8) * (1 + i) for i in range(3)]
    recalibrate(net, batches, [0.75])
    assert available_widths(net) == (1.0, 0.75, 0.5, 0.25)
    kept = 24
    with torch.no_grad():
        sums = [net.a.weight, net.b.weight]
        values = [
            F.conv2d(x, sums[0][:kept], net.a.bias[:kept], padding=1) + F.conv2d(x, sums[1][:kept], net.b.bias[:kept])
            for x in batches
        ]
    mean = torch.stack([value.mean((0, 2, 3)) for value in values]).mean(0)
    variance = torch.stack([value.var((0, 2, 3)) for value in values]).mean(0)
    norm = net.norm.calibrated["w0_75"]
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)
    assert get_width(net) == 1.0
    assert not net.training


def test_recalibration_leaves_the_trained_widths_alone() -> None:
    net = slim(_Residual(), WIDTHS)
    before = copy.deepcopy(net.state_dict())
    recalibrate(net, [torch.randn(4, 3, 8, 8)], [0.4])
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    x = torch.randn(1, 3, 8, 8)
    net.eval()
    set_width(net, 0.4)
    torch.testing.assert_close(net(x), extract(net, 0.4)(x))


@pytest.mark.parametrize("width", [0.1, 0.0, 1.5])
def test_width_outside_the_trained_range(width: float) -> None:
    with pytest.raises(WidthError):
        add_width(slim(_Residual(), (1.0, 0.25)), width)


def test_recalibration_without_images_is_refused() -> None:
    with pytest.raises(ModelError, match="at least one batch"):
        recalibrate(slim(_Residual(), WIDTHS), [], [0.75])


def test_folding_and_training_heads() -> None:
    """A re-parameterisable DDRNet extracts to one convolution per block, without its training heads, same function."""
    torch.manual_seed(0)
    net = slim(build_model("ddrnet", 5, base=8, rep_blocks=True, boundary_head=True), WIDTHS)
    x = torch.rand(4, 3, 64, 96)
    for width in WIDTHS:  # move the statistics away from their start
        set_width(net, width)
        for _ in range(3):
            net(x)
    net.double().eval()
    set_width(net, 0.5)
    small = extract(net, 0.5)
    names = {name for name, _ in small.named_parameters()}
    assert not any("identity" in name or "aux_head" in name or "boundary_head" in name for name in names)
    torch.testing.assert_close(small(x.double()), net(x.double()), rtol=1e-8, atol=1e-8)
