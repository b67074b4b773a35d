"""Gradual convolutions against masks built entry by entry, and against plain dense and grouped layers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from litheseg.errors import ModelError
from litheseg.models import build_model
from litheseg.nn import extract, slim
from litheseg.nn.efficient import Efficient, make_efficient
from litheseg.nn.grouping import ChannelShuffle, GradualConv2d, convert, densify, fade, gradual_layers

# in, out, kernel, stages, further arguments of nn.Conv2d
GEOMETRIES: list[tuple[int, int, Any, tuple[int, ...], dict[str, Any]]] = [
    (8, 8, 1, (2,), {}),
    (8, 12, 1, (4,), {"bias": False}),
    (12, 6, 3, (3,), {"padding": 1}),
    (8, 16, (3, 1), (4,), {"padding": (2, 0), "dilation": (2, 1), "stride": (1, 2)}),
    (16, 8, 3, (8,), {"padding": 2, "dilation": 2, "stride": 2}),
    (8, 8, 3, (8,), {"padding": 1}),  # depthwise
    (4, 8, 3, (4,), {"padding": 1}),  # a channel multiplier
    (8, 4, 3, (2,), {"padding": 1, "padding_mode": "reflect"}),
    (8, 8, 5, (2,), {"padding": "same", "padding_mode": "circular", "dilation": 1}),
    (8, 8, 3, (4,), {"padding": "same", "dilation": 2}),
]


def _mask(out_channels: int, in_channels: int, stages: tuple[int, ...], stage: int, alpha: float) -> np.ndarray:
    """Out x in: what every connection is multiplied by, one at a time."""
    mask = np.empty((out_channels, in_channels))
    for row in range(out_channels):
        for column in range(in_channels):
            cut = next(
                (i for i, g in enumerate(stages) if row // (out_channels // g) != column // (in_channels // g)), None
            )
            mask[row, column] = 1.0 if cut is None or cut > stage else alpha if cut == stage else 0.0
    return mask


def _whole_numbers(*shape: int) -> Tensor:
    """In float64 sums of their products are exact, in whatever order a kernel adds them."""
    return torch.randint(-9, 10, shape).double()


def _layer(geometry: tuple[Any, ...]) -> GradualConv2d:
    in_channels, out_channels, kernel, stages, others = geometry
    layer = GradualConv2d(in_channels, out_channels, kernel, stages=stages, **others).double()
    for parameter in layer.parameters():
        parameter.data = _whole_numbers(*parameter.shape)
    return layer


def _plain(geometry: tuple[Any, ...], layer: GradualConv2d, weight: Tensor, groups: int = 1) -> nn.Conv2d:
    in_channels, out_channels, kernel, _, others = geometry
    plain = nn.Conv2d(in_channels, out_channels, kernel, groups=groups, **others).double()
    plain.load_state_dict({"weight": weight} | ({} if layer.bias is None else {"bias": layer.bias.data}))
    return plain


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_output_is_that_of_the_masked_weight(geometry: tuple[Any, ...]) -> None:
    layer, x = _layer(geometry), _whole_numbers(2, geometry[0], 9, 11)
    assert torch.equal(layer(x), _plain(geometry, layer, layer.weight.data)(x))  # alpha is 1: plain and dense
    for alpha in (1.0, 0.75, 0.25, 0.0):
        layer.grouping.fade(0, alpha)
        mask = torch.from_numpy(_mask(geometry[1], geometry[0], geometry[3], 0, alpha))
        wanted = _plain(geometry, layer, layer.weight.data * mask[:, :, None, None])(x)
        assert torch.equal(layer(x), wanted)
        assert torch.equal(layer.to_plain()(x), wanted)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_faded_layer_is_the_grouped_one(geometry: tuple[Any, ...]) -> None:
    """The grouped weight is gathered by hand; the difference is zero."""
    layer, x, groups = _layer(geometry), _whole_numbers(2, geometry[0], 9, 11), geometry[3][-1]
    layer.grouping.fade(0, 0.0)
    assert layer.grouping.done
    rows, columns = geometry[1] // groups, geometry[0] // groups
    weight = torch.stack(
        [
            torch.stack([layer.weight.data[row, (row // rows) * columns + column] for column in range(columns)])
            for row in range(geometry[1])
        ]
    )
    wanted = _plain(geometry, layer, weight, groups)
    net = nn.Sequential(layer)
    assert torch.equal(net(x), wanted(x))
    convert(net)
    assert type(net[0]) is nn.Conv2d
    assert {name: tuple(value.shape) for name, value in net[0].state_dict().items()} == {
        name: tuple(value.shape) for name, value in wanted.state_dict().items()
    }
    assert net[0].groups == groups
    assert torch.equal(net(x), wanted(x))


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stages"), [(16, 24, (2, 4, 8)), (8, 8, (2, 8)), (12, 12, (12,))]
)
def test_stages_fade_one_after_the_other(in_channels: int, out_channels: int, stages: tuple[int, ...]) -> None:
    layer = _layer((in_channels, out_channels, 1, stages, {}))
    x = _whole_numbers(1, in_channels, 3, 3)
    for stage in range(len(stages)):
        for alpha in (1.0, 0.5, 0.0):
            layer.grouping.fade(stage, alpha)
            mask = _mask(out_channels, in_channels, stages, stage, alpha)
            wanted = np.einsum("oi,nihw->nohw", layer.weight.data.numpy()[:, :, 0, 0] * mask, x.numpy())
            assert np.array_equal(layer(x).detach().numpy(), wanted + layer.bias.detach().numpy()[None, :, None, None])
            assert layer.grouping.done == (alpha == 0.0 and stage == len(stages) - 1)
    assert layer.to_grouped().groups == layer.grouping.groups == stages[-1]


def test_entries_that_fade_and_that_are_kept() -> None:
    layer = _layer((8, 8, 3, (2, 4), {}))
    for stage in (0, 1):
        layer.grouping.fade(stage, 0.5)
        mask = _mask(8, 8, (2, 4), stage, 0.5)
        assert torch.equal(layer.grouping.fading(layer.weight), layer.weight[torch.from_numpy(mask == 0.5)])
        assert torch.equal(layer.grouping.kept(layer.weight), layer.weight[torch.from_numpy(mask == 1.0)])


@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.0])
def test_gradients_are_those_of_the_masked_weight(alpha: float) -> None:
    layer = _layer((8, 12, 3, (4,), {"padding": 1}))
    layer.grouping.fade(0, alpha)
    x = _whole_numbers(2, 8, 5, 5)
    weight, bias = (value.detach().clone().requires_grad_() for value in (layer.weight, layer.bias))
    mask = torch.from_numpy(_mask(12, 8, (4,), 0, alpha))[:, :, None, None]
    F.conv2d(x, weight * mask, bias, padding=1).pow(2).sum().backward()
    layer(x).pow(2).sum().backward()
    assert torch.equal(layer.weight.grad, weight.grad)
    assert torch.equal(layer.bias.grad, bias.grad)


def test_state_dict_is_that_of_the_dense_layer() -> None:
    layer = GradualConv2d(8, 4, 3, stages=(2,))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    dense = nn.Conv2d(8, 4, 3)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(layer(x), dense(x))


def test_mask_follows_type_and_copy() -> None:
    layer = GradualConv2d(8, 8, 1, stages=(4,))
    layer.grouping.fade(0, 0.5)
    other = copy.deepcopy(layer).double()
    assert other(torch.randn(1, 8, 2, 2).double()).dtype == torch.float64
    other.grouping.fade(0, 0.0)
    assert (layer.grouping.alpha, layer.grouping.done, other.grouping.done) == (0.5, False, True)
    assert layer.grouping.mask.min() == 0.5
    half = copy.deepcopy(layer).bfloat16()
    assert half(torch.randn(1, 8, 2, 2).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("stages", [(3,), (2, 3), (4, 2), (16,), (0,)])
def test_stages_that_do_not_fit_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"8 input and 8 output channels.*2 -> 4 -> 8"):
        GradualConv2d(8, 8, 1, stages=stages)


# --- networks --------------------------------------------------------------------------------------------------------


def _target() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 32, 1, groups=8, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        ChannelShuffle(8),
        nn.Conv2d(32, 16, 3, padding=1, groups=4),
        nn.Conv2d(16, 2, 1),
    )


def _all(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]


def test_densify_replaces_grouped_layers_only() -> None:
    net = _target().eval()
    bias = net[5].bias.detach().clone()
    densify(net, _all(net), stages=(2, 4))
    assert [type(layer) for layer in net if isinstance(layer, nn.Conv2d)] == [
        nn.Conv2d,
        GradualConv2d,
        GradualConv2d,
        nn.Conv2d,
    ]
    assert {name: mask.stages for name, (_, mask) in gradual_layers(net).items()} == {"1": (2, 4, 8), "5": (2, 4, 4)}
    assert net[1].weight.shape == (32, 16, 1, 1)
    assert net[1].bias is None
    assert torch.equal(net[5].bias, bias)
    assert not any(layer.training for layer in net.modules())


def test_densify_chooses_by_name() -> None:
    net = _target()
    densify(net, ["0", "5"])
    assert list(gradual_layers(net)) == ["5"]
    assert net[5].grouping.stages == (4,)
    with pytest.raises(ModelError, match=r"none of the chosen layers.*erfnet-dg4"):
        densify(net, ["0", "6"])


@pytest.mark.parametrize("stages", [(0,), (-2,), (4, 2)])
def test_densify_refuses_stages_that_lead_nowhere(stages: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"2 -> 4 -> 8"):
        densify(nn.Sequential(nn.Conv2d(16, 16, 1, groups=8)), ["0"], stages)


@pytest.mark.parametrize("groups", [2, 8])
def test_dense_weights_have_the_spread_of_more_inputs(groups: int) -> None:
    """A layer with g times the inputs needs 1 / sqrt(g) of the spread for outputs of the same size."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 64, 3, groups=groups))
    spread = float(net[0].weight.detach().std())
    densify(net, ["0"])
    count = net[0].weight.numel()
    error = spread / groups**0.5 / (2 * count) ** 0.5  # of a sample's standard deviation
    assert abs(float(net[0].weight.detach().std()) - spread / groups**0.5) < 5 * error
    assert abs(float(net[0].weight.detach().mean())) < 5 * spread / (groups * count) ** 0.5


def test_converting_too_early_is_refused() -> None:
    net = _target()
    densify(net, _all(net), stages=(2,))
    for stage, alpha, said in ((0, 0.0, "stage 1 of 2"), (1, 0.25, r"alpha is 0\.25 in stage 2 of 2")):
        fade(net, stage, alpha)
        with pytest.raises(ModelError, match=f"layer '1' cannot be converted to 8 groups.*{said}"):
            convert(net)
    assert len(gradual_layers(net)) == 2


def test_converted_network_is_the_target() -> None:
    """Names, order, shapes, groups, operations; and the function of the faded network to the last bit."""
    target = _target()
    net = copy.deepcopy(target)
    densify(net, _all(net), stages=(2,))
    for value in net.state_dict().values():
        value.copy_(_whole_numbers(*value.shape).abs() + 1)
    net.double().eval()
    fade(net, 1, 0.0)
    x = _whole_numbers(2, 3, 6, 6)
    before = net(x)
    assert convert(net) is net
    assert torch.equal(net(x), before)
    assert [(name, type(layer)) for name, layer in net.named_modules()] == [
        (name, type(layer)) for name, layer in target.named_modules()
    ]
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (net, target)]
    assert shapes[0] == shapes[1]
    assert [layer.groups for layer in net if isinstance(layer, nn.Conv2d)] == [1, 8, 4, 1]
    target.double().eval().load_state_dict(net.state_dict())
    assert torch.equal(target(x), before)


def test_costs_of_the_converted_network() -> None:
    """193,728 parameters and 2.877 G operations are the published ERFNet-DG4*'s; dense, D*'s."""
    model = build_model("erfnet-dg4*", 20)
    densify(model, _all(model), stages=(2,))
    gradual = [name for name in gradual_layers(model) if not name.startswith("decoder")]

    def cost() -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(model).to("meta").eval()(torch.empty(1, 3, 512, 1024, device="meta"))
        return sum(value.numel() for value in model.parameters()), counter.get_total_flops() // 2

    pointwise = [name for name in gradual if model.get_submodule(name).kernel_size == (1, 1)]
    assert len(pointwise) == 26
    fade(model, 1, 0.0)
    convert(model)
    assert cost() == (193_728, 2_877_161_472)


def test_fading_a_group_of_layers_of_any_model() -> None:
    """Densified where it is grouped by `make_efficient`: dense while it trains, D* again in its costs."""
    model = build_model("erfnet-d*", 20)
    make_efficient(model, Efficient(groups=8, where="stage3,1x1"))
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups == 8]
    assert len(names) == 16
    densify(model, names)
    assert sum(value.numel() for value in model.parameters()) == 421_056


@pytest.mark.parametrize("widths", [None, (1.0,), (1.0, 0.5)])
def test_extraction_of_a_gradual_network_is_plain(widths: tuple[float, ...] | None) -> None:
    """Masked and dense on the way, grouped at the end."""
    net = _target()
    net[1], net[4] = nn.Conv2d(16, 32, 1, groups=4), nn.Identity()  # what narrower widths allow
    densify(net, _all(net))
    if widths:
        slim(net, widths)
    net.double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for alpha, groups in ((0.5, [1, 1, 1, 1]), (0.0, [1, 4, 4, 1])):
        fade(net, 0, alpha)
        small = extract(net, 1.0)
        convolutions = [layer for layer in small if isinstance(layer, nn.Conv2d)]
        assert [type(layer) for layer in convolutions] == [nn.Conv2d] * 4
        assert [layer.groups for layer in convolutions] == groups
        with torch.no_grad():
            torch.testing.assert_close(small(x), net(x), rtol=1e-12, atol=1e-12)
