"""Narrower grouped networks against networks put together by hand from lists of channels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import shake
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.models import build_model
from litheseg.nn import add_width, extract, set_width, slim
from litheseg.nn.efficient import Efficient, make_efficient
from litheseg.nn.grouping import ChannelShuffle, convert, densify, fade, gradual_layers

IMAGE = torch.randint(-4, 5, (2, 3, 9, 11)).double()


def _grouped(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]


def _whole_numbers(model: nn.Module) -> nn.Module:
    """Float64 sums of their products are exact, so that equality does not depend on the order of adding."""
    for value in model.double().parameters():
        value.data = torch.randint(-4, 5, value.shape).double()
    return model.eval()


def _slim(net: nn.Module, widths: tuple[float, ...], divisor: int = 8) -> nn.Module:
    return slim(copy.deepcopy(net).float(), widths, divisor=divisor).double().eval()


def _select(conv: nn.Conv2d, rows: list[int], columns: list[int], groups: int, mask: Tensor | None = None) -> nn.Conv2d:
    """The plain convolution of the listed output and input channels; `conv` may be dense or grouped."""
    size, out_size = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    dense = torch.zeros(conv.out_channels, conv.in_channels, *conv.kernel_size, dtype=torch.float64)
    for row in range(conv.out_channels):
        first = row // out_size * size
        dense[row, first : first + size] = conv.weight.data[row]
    if mask is not None:
        dense = dense * mask[:, :, None, None]
    small = dense[rows][:, columns]
    count, out_count = len(columns) // groups, len(rows) // groups
    weight = torch.cat([small[out_count * g : out_count * (g + 1), count * g : count * (g + 1)] for g in range(groups)])
    plain = nn.Conv2d(len(columns), len(rows), conv.kernel_size, padding=conv.padding, groups=groups).double()
    plain.load_state_dict({"weight": weight, "bias": conv.bias.data[rows]})
    return plain


def _first_of_each(size: int, runs: int, kept: int) -> list[int]:
    """The first `kept` channels of each of `runs` equal runs."""
    return [run * (size // runs) + index for run in range(runs) for index in range(kept // runs)]


def _equal_at(model: nn.Module, width: float, wanted: Tensor) -> None:
    set_width(model, width)
    assert torch.equal(model(IMAGE), wanted)
    assert torch.equal(extract(model, width)(IMAGE), wanted)


# --- whole groups ----------------------------------------------------------------------------------------------------


def _chain(groups: int) -> nn.Sequential:
    """3 -> 16 -> 32 -> 24 -> 2, two grouped layers in between."""
    layers = [
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 32, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(32, 24, 1, groups=groups),
        nn.Conv2d(24, 2, 1),
    ]
    return _whole_numbers(nn.Sequential(*layers))


@pytest.mark.parametrize(("width", "groups"), [(1.0, 4), (0.75, 3), (0.5, 2), (0.25, 1)])
def test_whole_groups_are_dropped(width: float, groups: int) -> None:
    net = _chain(4)
    a, b, c = (list(range(size * groups)) for size in (4, 8, 6))
    y = F.relu(_select(net[1], b, a, groups)(_select(net[0], a, [0, 1, 2], 1)(IMAGE)))
    wanted = _select(net[4], [0, 1], c, 1)(_select(net[3], c, b, groups)(y))
    elastic = _slim(net, (1.0, 0.75, 0.5, 0.25))
    _equal_at(elastic, width, wanted)
    assert extract(elastic, width)[1].groups == groups


@pytest.mark.parametrize(("width", "kept"), [(1.0, (16, 32, 24)), (0.5, (8, 16, 12)), (0.25, (4, 8, 6))])
def test_the_same_part_of_each_group_is_kept_where_groups_are_few(width: float, kept: tuple[int, int, int]) -> None:
    """Two groups cannot become a quarter of one."""
    net = _chain(2)
    a, b, c = (_first_of_each(size, 2, count) for size, count in zip((16, 32, 24), kept, strict=True))
    y = F.relu(_select(net[1], b, a, 2)(_select(net[0], a, [0, 1, 2], 1)(IMAGE)))
    wanted = _select(net[4], [0, 1], c, 1)(_select(net[3], c, b, 2)(y))
    elastic = _slim(net, (1.0, 0.5, 0.25), divisor=1)
    _equal_at(elastic, width, wanted)
    assert extract(elastic, width)[1].groups == 2


def test_parts_of_groups_are_multiples_of_the_divisor() -> None:
    elastic = _slim(_chain(2), (1.0, 0.3))
    small = extract(elastic, 0.3)
    assert [layer.out_channels for layer in small if isinstance(layer, nn.Conv2d)] == [8, 8, 8, 2]


@pytest.mark.parametrize("width", [1.0, 0.4, 0.25])
def test_channel_multiplier_keeps_input_and_output_in_step(width: float) -> None:
    """Each of 32 inputs makes two outputs: 0.4 of 32 are 13, not the 16 that the divisor would make of it."""
    net = _whole_numbers(nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 3, groups=32), nn.Conv2d(64, 2, 1)))
    kept = {1.0: 32, 0.4: 13, 0.25: 8}[width]
    a, b = list(range(kept)), list(range(2 * kept))
    wanted = _select(net[2], [0, 1], b, 1)(_select(net[1], b, a, kept)(_select(net[0], a, [0, 1, 2], 1)(IMAGE)))
    _equal_at(_slim(net, (1.0, 0.4, 0.25)), width, wanted)


@pytest.mark.parametrize(("width", "groups"), [(1.0, (4, 8)), (0.5, (2, 4)), (0.25, (1, 2))])
def test_layers_of_different_groups_drop_the_same_channels(width: float, groups: tuple[int, int]) -> None:
    layers = [nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1, groups=4), nn.Conv2d(24, 48, 1, groups=8), nn.Conv2d(48, 2, 1)]
    net = _whole_numbers(nn.Sequential(*layers))
    a, b = list(range(int(24 * width))), list(range(int(48 * width)))
    y = _select(net[1], a, a, groups[0])(_select(net[0], a, [0, 1, 2], 1)(IMAGE))
    wanted = _select(net[3], [0, 1], b, 1)(_select(net[2], b, a, groups[1])(y))
    _equal_at(_slim(net, (1.0, 0.5, 0.25)), width, wanted)


class _Residual(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 16, 1), middle, nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(y + self.middle(y))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("width", [1.0, 0.5, 0.25])
def test_grouped_layer_added_to_its_own_input(groups: int, width: float) -> None:
    """Its two sides are the same channels, and it is no depthwise layer for that."""
    net = _whole_numbers(_Residual(nn.Conv2d(16, 16, 3, padding=1, groups=groups)))
    kept = int(16 * width)
    channels = list(range(kept)) if groups == 4 else _first_of_each(16, 2, kept)
    now = int(4 * width) if groups == 4 else 2
    y = _select(net.stem, channels, [0, 1, 2], 1)(IMAGE)
    y = y + _select(net.middle, channels, channels, now)(y)
    elastic = _slim(net, (1.0, 0.5, 0.25), divisor=1)
    _equal_at(elastic, width, _select(net.head, [0, 1], channels, 1)(y))


@pytest.mark.parametrize(
    ("groups", "width", "kept"), [(4, 0.5, 16), (4, 0.4, 16), (2, 0.5, 16), (2, 0.25, 8), (1, 0.25, 8)]
)
def test_norms_over_groups(groups: int, width: float, kept: int) -> None:
    """Whole groups, or the same part of each: what is normalised together stays together."""
    net = _whole_numbers(nn.Sequential(nn.Conv2d(3, 32, 1), nn.GroupNorm(groups, 32), nn.Conv2d(32, 2, 1)))
    whole = groups == 4
    channels = list(range(kept)) if whole else _first_of_each(32, groups, kept)
    y = _select(net[0], channels, [0, 1, 2], 1)(IMAGE)
    now = kept // 8 if whole else groups
    y = F.group_norm(y, now, net[1].weight.data[channels], net[1].bias.data[channels])
    elastic = _slim(net, (1.0, 0.5, 0.4) if width == 0.4 else (1.0, 0.5, 0.25))
    set_width(elastic, width)
    for small in (elastic, extract(elastic, width)):
        torch.testing.assert_close(small(IMAGE), _select(net[2], [0, 1], channels, 1)(y), rtol=1e-12, atol=1e-12)


# --- shuffles --------------------------------------------------------------------------------------------------------


def _shuffled(groups: int, channels: int) -> nn.Sequential:
    """Grouped, shuffle, depthwise, grouped: the middle of a block of the efficient family."""
    layers = [
        nn.Conv2d(3, channels, 1),
        nn.Conv2d(channels, channels, 1, groups=groups),
        nn.ReLU(),
        ChannelShuffle(groups),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, channels, 1, groups=groups),
        nn.Conv2d(channels, 2, 1),
    ]
    return _whole_numbers(nn.Sequential(*layers))


@pytest.mark.parametrize(
    ("groups", "channels", "kept"),
    [
        (2, 32, {1.0: 32, 0.6: 20, 0.5: 16, 0.3: 8, 0.25: 8}),  # steps of 2 x 2
        (4, 64, {1.0: 64, 0.6: 32, 0.5: 32, 0.4: 32, 0.3: 16, 0.25: 16}),  # steps of 4 x 4
        (3, 36, {1.0: 36, 0.5: 18, 0.25: 9}),
    ],
)
def test_shuffle_passes_the_same_part_of_every_block(groups: int, channels: int, kept: dict[float, int]) -> None:
    """Before the shuffle groups x groups runs shrink alike, behind it and elsewhere one run for each group."""
    net = _shuffled(groups, channels)
    elastic = _slim(net, tuple(kept), divisor=1)
    order = [group * channels // groups + index for index in range(channels // groups) for group in range(groups)]
    for width, count in kept.items():
        before, after = _first_of_each(channels, groups**2, count), _first_of_each(channels, groups, count)
        assert [order[index] for index in after] == [
            before[group * count // groups + index] for index in range(count // groups) for group in range(groups)
        ]  # dealing out the kept channels gives the kept ones of those dealt out, in order
        own = {index: extract(elastic, width)[index].out_channels for index in (0, 1, 5)}
        assert own[1] == count
        first, last = (_first_of_each(channels, groups, own[index]) for index in (0, 5))
        y = F.relu(_select(net[1], before, first, groups)(_select(net[0], first, [0, 1, 2], 1)(IMAGE)))
        y = y[:, [group * count // groups + index for index in range(count // groups) for group in range(groups)]]
        y = _select(net[4], after, after, count)(y)
        _equal_at(elastic, width, _select(net[6], [0, 1], last, 1)(_select(net[5], last, after, groups)(y)))


@pytest.mark.parametrize("divisor", [1, 4, 8])
@pytest.mark.parametrize("groups", [2, 4])
def test_any_width_in_between_fits(groups: int, divisor: int) -> None:
    """Whatever the width, both sides of every layer agree on their channels."""
    elastic = _slim(_shuffled(groups, 64), (1.0, 0.25), divisor)
    for step in range(26, 100, 7):
        add_width(elastic, step / 100)
        set_width(elastic, step / 100)
        assert torch.equal(elastic(IMAGE), extract(elastic, step / 100)(IMAGE))


def test_two_shuffles_in_a_row() -> None:
    """Shuffles of 2 and of 4 between grouped layers: 8 runs before the first, 4 x 4 before the second."""
    net = _whole_numbers(
        nn.Sequential(
            nn.Conv2d(3, 64, 1),
            nn.Conv2d(64, 64, 1, groups=2),
            ChannelShuffle(2),
            nn.Conv2d(64, 64, 1, groups=4),
            ChannelShuffle(4),
            nn.Conv2d(64, 64, 1, groups=4),
            nn.Conv2d(64, 2, 1),
        )
    )
    elastic = _slim(net, (1.0, 0.5, 0.25), divisor=1)
    for width, kept in ((0.5, 32), (0.25, 16)):
        set_width(elastic, width)
        small = extract(elastic, width)
        assert torch.equal(elastic(IMAGE), small(IMAGE))
        assert [layer.groups for layer in small if isinstance(layer, nn.Conv2d)] == [1, 2, 4, 4, 1]
        assert small[3].weight.shape == (kept, kept // 4, 1, 1)


# --- on the way to groups --------------------------------------------------------------------------------------------


def _mask(out_channels: int, in_channels: int, groups: int, alpha: float) -> Tensor:
    rows, columns = out_channels // groups, in_channels // groups
    return torch.tensor(
        [[1.0 if i // rows == j // columns else alpha for j in range(in_channels)] for i in range(out_channels)]
    ).double()


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("groups", "widths"), [(4, (1.0, 0.5, 0.25)), (2, (1.0, 0.5, 0.25))])
def test_fading_layers_shrink_like_their_target(groups: int, widths: tuple[float, ...], alpha: float) -> None:
    """Both rules, by hand: dense weights, masked, of the channels that the grouped target keeps."""
    net = _chain(groups)
    densify(net, _grouped(net))
    net = _whole_numbers(net)
    elastic = _slim(net, widths, divisor=1)
    fade(elastic, 0, alpha)
    sizes = (16, 32, 24)
    masks = [_mask(32, 16, groups, alpha), _mask(24, 32, groups, alpha)]
    for width in widths:
        a, b, c = (
            list(range(int(size * width))) if groups == 4 else _first_of_each(size, 2, int(size * width))
            for size in sizes
        )
        y = F.relu(_select(net[1], b, a, 1, masks[0])(_select(net[0], a, [0, 1, 2], 1)(IMAGE)))
        wanted = _select(net[4], [0, 1], c, 1)(_select(net[3], c, b, 1, masks[1])(y))
        _equal_at(elastic, width, wanted)


MODELS: list[tuple[str, dict[str, Any], str]] = [
    ("ddrnet", {"base": 16, "head_channels": 32}, "3x3"),
    ("ddrnet", {"base": 16, "head_channels": 32, "rep_blocks": True}, "3x3"),
    ("deeplabv3plus", {"encoder": "mobilenetv2_100", "channels": 32}, "encoder"),
]


@pytest.mark.parametrize(("name", "arguments", "where"), MODELS, ids=str)
def test_models_are_the_same_at_every_width_before_and_after_conversion(
    name: str, arguments: dict[str, Any], where: str
) -> None:
    """Fading: the extraction is the slice. Converted: the elastic network is the slimmed target, width by width."""
    torch.manual_seed(0)
    target = make_efficient(build_model(name, 5, **arguments), Efficient(groups=4, shuffle=False, where=where))
    net = copy.deepcopy(target)
    densify(net, _grouped_only(net))
    net = shake(slim(net, (1.0, 0.5), divisor=4)).double().eval()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    faded: list[Tensor] = []
    with torch.no_grad():
        for alpha in (0.3, 0.0):
            fade(net, 0, alpha)
            for width in (1.0, 0.5):
                set_width(net, width)
                faded.append(net(image))
                _close(extract(net, width)(image), faded[-1])
        convert(net)
        assert not gradual_layers(net)
        built = slim(target, (1.0, 0.5), divisor=4).double().eval()
        built.load_state_dict(net.state_dict())
        for width, before in zip((1.0, 0.5), faded[2:], strict=True):
            for model in (net, built):
                set_width(model, width)
                assert torch.equal(model(image), before)
            _close(extract(net, width)(image), before)


def _grouped_only(model: nn.Module) -> list[str]:
    """Grouped, but not depthwise."""
    return [
        name for name in _grouped(model) if model.get_submodule(name).groups < model.get_submodule(name).in_channels
    ]


def _close(actual: Tensor, expected: Tensor) -> None:
    """Float64: only the order of adding may differ."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "widths", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1, groups=4), nn.Conv2d(24, 24, 1, groups=6)),
            (1.0, 0.25),
            r"layer '1' cannot be slimmed to width 0\.25.*4 groups.*12 of its 24 .*narrowest width is 0\.5;",
        ),
        (
            _shuffled(4, 32),
            (1.0, 0.25),
            r"layer '1' cannot be slimmed to width 0\.25.*16 equal blocks.*narrowest width is 0\.5;",
        ),
        (
            _shuffled(4, 24),
            (1.0, 0.5),
            r"layer '1' cannot be slimmed: its 24 channels .* cut in 16 equal blocks.*fewer groups",
        ),
        (_Residual(ChannelShuffle(4)), (1.0, 0.5), r"layer 'middle' cannot be slimmed.*no cut fits both.*no shuffle"),
    ],
    ids=["groups", "narrow", "blocks", "loop"],
)
def test_what_cannot_shrink_exactly_is_refused(net: nn.Module, widths: tuple[float, ...], message: str) -> None:
    net = nn.Sequential(*net, nn.Conv2d(24, 2, 1)) if len(net._modules) == 3 and isinstance(net, nn.Sequential) else net
    before = list(net.state_dict())
    with pytest.raises(ModelError, match=message):
        slim(net.float(), widths)
    assert list(net.state_dict()) == before


def test_groups_across_a_concatenation_are_refused() -> None:
    """ERFNet's stages begin with a concatenation, on which groups lie: it is for width 1."""
    said = r"layer 'encoder\.2\.conv2' .*concatenation of 48 \+ 13 \+ 3 .*width 1 only"
    with pytest.raises(ModelError, match=said):
        slim(build_model("erfnet-dg4*", 5), (1.0, 0.5))
    slim(build_model("erfnet-dg4*", 5), (1.0,))


def test_separable_blocks_shrink() -> None:
    torch.manual_seed(0)
    net = shake(slim(build_model("erfnet-d*", 5), (1.0, 0.5, 0.25))).double().eval()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for width in (1.0, 0.5, 0.25):
            set_width(net, width)
            _close(extract(net, width)(image), net(image))
