"""Relabelling: the function stays, the blocks gain, and small problems are solved as well as by trying everything."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import shake
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.models import build_model
from litheseg.nn import add_width, available_widths, set_width, slim
from litheseg.nn.assignment import Relabelling, find_relabelling
from litheseg.nn.efficient import Efficient, make_efficient
from litheseg.nn.grouping import ChannelShuffle, GradualConv2d, densify, fade, gradual_layers
from litheseg.nn.layers import ChannelLayerNorm
from litheseg.nn.tracing import run_example

CHANNELS = 16


def _gradual(inputs: int = CHANNELS, outputs: int = CHANNELS, kernel: int = 1, groups: int = 4) -> GradualConv2d:
    return GradualConv2d(inputs, outputs, kernel, padding=kernel // 2, stages=(2, groups) if groups == 4 else (groups,))


class _Net(nn.Module):
    """A stem, a body with gradual layers in it, a head."""

    def __init__(self, *body: nn.Module, out: int = CHANNELS) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.body = nn.Sequential(*body)
        self.head = nn.Conv2d(out, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


class _Sum(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(branch(x) for branch in self.branches)


class _Concatenation(_Sum):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(branch(x) for branch in self.branches)], 1)


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(CHANNELS, 8), nn.Linear(8, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()[:, :, None, None]


class _Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.layer(x)))


class _Unused(nn.Sequential):
    """Has a layer that is never run."""

    def __init__(self) -> None:
        super().__init__(_gradual())
        self.spare = _gradual()

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)


def _tied_weights() -> nn.Module:
    first, second, third = _gradual(), _gradual(), _gradual()
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second, _gradual(), nn.ReLU(), third)


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: _Net(_gradual(outputs=32), nn.BatchNorm2d(32), nn.ReLU(), _gradual(32, kernel=3)),
    "residual": lambda: _Net(_Sum(_gradual(kernel=3)), _Sum(nn.Sequential(_gradual(), nn.ReLU(), _gradual()))),
    "concatenation": lambda: _Net(_Concatenation(_gradual(outputs=8), _gradual()), _gradual(40), out=CHANNELS),
    "concatenated twice": lambda: _Net(_Concatenation(nn.Identity(), nn.ReLU()), _gradual(48, 8), out=8),
    "shuffle": lambda: _Net(_gradual(), nn.BatchNorm2d(CHANNELS), ChannelShuffle(4), _gradual(), _Sum(_gradual())),
    "pair shuffle": lambda: _Net(_gradual(groups=2), ChannelShuffle(2), nn.ReLU(), _Sum(_gradual(groups=2))),
    "shuffled concatenation": lambda: _Net(_Concatenation(_gradual()), ChannelShuffle(4), _gradual(32)),
    "shuffled and added": lambda: _Net(_gradual(), _Sum(ChannelShuffle(2)), _gradual(), nn.ReLU(), _gradual()),
    "depthwise": lambda: _Net(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS), nn.ReLU(), _gradual(), nn.BatchNorm2d(CHANNELS)
    ),
    "to depthwise": lambda: _Net(_gradual(kernel=3, groups=CHANNELS), nn.BatchNorm2d(CHANNELS), nn.ReLU(), _gradual()),
    "gate": lambda: _Net(_gradual(), nn.ReLU(), _Gate(), _gradual()),
    "transposed": lambda: _Net(_gradual(), nn.ConvTranspose2d(CHANNELS, 24, 2, stride=2), _gradual(24)),
    "fused norm": lambda: _Net(_gradual(), BatchNormAct2d(CHANNELS), _gradual()),
    "layer norm": lambda: _Net(_gradual(), ChannelLayerNorm(CHANNELS), nn.ReLU(), _gradual()),
    "group norm": lambda: _Net(_gradual(), nn.GroupNorm(2, CHANNELS), nn.ReLU(), _gradual()),
    "instance norm": lambda: _Net(_gradual(), nn.GroupNorm(CHANNELS, CHANNELS), nn.ReLU(), _gradual()),
    "plain groups": lambda: _Net(_gradual(), nn.Conv2d(CHANNELS, CHANNELS, 3, groups=2), nn.ReLU(), _gradual()),
    "plain transposed groups": lambda: _Net(_gradual(), nn.ConvTranspose2d(CHANNELS, 8, 2, groups=2), _gradual(8)),
    "multiplier": lambda: _Net(_gradual(), nn.Conv2d(CHANNELS, 32, 3, groups=CHANNELS), _gradual(32)),
    "shared": lambda: _Net(_Twice(_gradual()), nn.BatchNorm2d(CHANNELS), _gradual(kernel=3)),
    "shared weights": lambda: _Net(_tied_weights()),
    "unused": lambda: _Net(_Unused(), nn.ReLU()),
}
# Those that can be slimmed as well: no refusal of `set_group_rules` applies.
ELASTIC = (
    *("chain", "residual", "pair shuffle", "depthwise", "to depthwise"),
    *("gate", "fused norm", "layer norm", "shared"),
)


def _prepare(net: nn.Module, seed: int = 0) -> nn.Module:
    """Norms and weights that a mix-up would show."""
    torch.manual_seed(seed)
    for layer, _ in gradual_layers(net).values():
        layer.weight.data.normal_(std=0.1).mul_(torch.randn_like(layer.weight).exp())  # type: ignore
    for layer in net.modules():
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_()
    return shake(net).eval()


def _results(net: nn.Module) -> list[Tensor]:
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    with torch.no_grad():
        for width in available_widths(net):
            set_width(net, width)
            found += run_example(net, image)
    set_width(net, 1.0)
    return found


def _objective(net: nn.Module) -> float:
    """Written out: of every layer's squared weight, what each stage leaves, averaged over the stages."""
    total = 0.0
    for layer, mask in gradual_layers(net).values():
        energy = (layer.weight * mask.mask).detach().double().square().sum((2, 3))  # type: ignore[operator]
        for groups in mask.stages:
            pairs = zip(energy.chunk(groups, 0), range(groups), strict=True)
            inside = sum(float(rows.chunk(groups, 1)[index].sum()) for rows, index in pairs)
            total += inside / float(energy.sum()) / len(mask.stages)
    return total


def _check(net: nn.Module) -> Relabelling:
    """Relabel: the function of every width is the same, and the blocks hold more."""
    net.double()
    before, objective = _results(net), _objective(net)
    relabelling = find_relabelling(net)
    relabelling.apply(net)
    for now, then in zip(_results(net), before, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-9, atol=1e-9 * float(then.abs().max()))
    assert _objective(net) > objective + 1e-3
    return relabelling


@pytest.mark.parametrize("name", NETS)
def test_the_function_stays(name: str) -> None:
    torch.manual_seed(0)
    net = _prepare(NETS[name]())
    relabelling = _check(net)
    again = find_relabelling(net)
    assert again.kept_before == pytest.approx(relabelling.kept_after)


@pytest.mark.parametrize("name", ELASTIC)
def test_the_function_of_every_width_stays(name: str) -> None:
    torch.manual_seed(0)
    net = _prepare(NETS[name]())
    slim(net, (1.0, 0.5), divisor=4)
    _check(shake(net).eval())


def test_the_function_of_widths_that_were_added_stays() -> None:
    """Groups go as a whole: the one kept at a width that is added stays apart from those that go."""
    torch.manual_seed(0)
    net = _prepare(_Net(_gradual(groups=8), nn.BatchNorm2d(CHANNELS), nn.ReLU(), _gradual(groups=8)))
    slim(net, (1.0, 0.25), divisor=4)
    shake(net).eval()
    add_width(net, 0.625)
    _check(net)


@pytest.mark.parametrize(
    ("name", "arguments", "efficient", "widths"),
    [
        ("ddrnet", {"base": 8, "head_channels": 16}, Efficient(groups=4), ()),
        ("ddrnet", {"base": 8, "head_channels": 16}, Efficient(groups=4, shuffle=False, where="context"), (1.0, 0.5)),
        ("deeplabv3plus", {"channels": 16}, Efficient(groups=4, shuffle=False, where="encoder"), (1.0, 0.5)),
        ("erfnet-dg4*", {}, Efficient(), ()),
    ],
)
def test_whole_models(name: str, arguments: dict[str, object], efficient: Efficient, widths: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    model = make_efficient(build_model(name, 5, **arguments), efficient)
    densify(model, [key for key, layer in model.named_modules() if isinstance(layer, nn.Conv2d)])
    model = _prepare(model)
    if widths:
        slim(model, widths)
    _check(shake(model).eval())


@pytest.mark.parametrize(("stage", "alpha"), [(0, 0.3), (1, 1.0), (1, 0.25)])
def test_the_function_stays_while_layers_fade(stage: int, alpha: float) -> None:
    torch.manual_seed(0)
    net = _prepare(NETS["shuffle"]())
    fade(net, stage, alpha)
    _check(net)


def test_later_stages_stay_within_the_blocks_of_earlier_ones() -> None:
    net = _prepare(NETS["chain"]())
    fade(net, 1, 1.0)
    for outputs, _ in find_relabelling(net).sources.values():
        assert torch.equal(outputs * 2 // len(outputs), torch.arange(len(outputs)) * 2 // len(outputs))


# --- how good it is --------------------------------------------------------------------------------------------------


class _Bare(nn.Module):
    """Six channels that a gradual layer reads, makes, or both; nothing else may move."""

    def __init__(self, kind: str, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 6, 1)
        self.first, self.second = (GradualConv2d(6, 6, 1, stages=stages) for _ in range(2))
        self.shuffle = ChannelShuffle(3)
        self.head = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "output":
            return self.head(self.first(torch.cat([x, x], 1)))
        if self.kind == "input":
            return self.first(self.stem(x))
        if self.kind == "both":
            y = self.stem(x)
            return self.head(y + self.first(y))
        return self.second(self.shuffle(self.first(torch.cat([x, x], 1))))


def _level(stages: tuple[int, ...]) -> Tensor:
    """6 x 6: in what share of the stages two channels are connected."""
    place = torch.arange(6)
    same = [(place * groups // 6)[:, None] == (place * groups // 6)[None] for groups in stages]
    return torch.stack(same).double().mean(0)


@pytest.mark.parametrize("stages", [(2,), (3,), (2, 6)])
@pytest.mark.parametrize("kind", ["output", "input", "both", "shuffle"])
def test_nothing_is_better_than_the_best_of_all_orders(kind: str, stages: tuple[int, ...]) -> None:
    net = _prepare(_Bare(kind, stages), seed=3)
    energies = [layer.weight.detach().double()[:, :, 0, 0].square() for layer in (net.first, net.second)]  # type: ignore
    first, second = (energy / energy.sum() for energy in energies)
    level, dealt = _level(stages), torch.arange(6).reshape(3, 2).T.flatten()

    def value(order: Tensor) -> float:
        rows = order if kind != "input" else torch.arange(6)
        columns = order if kind in ("input", "both") else torch.arange(6)
        total = (first[rows][:, columns] * level).sum()
        if kind == "shuffle":  # the channel that is dealt to a place is that of the first layer
            total += (second[:, torch.argsort(dealt)][:, order][:, dealt] * level).sum()
        return float(total)

    best = max(value(torch.tensor(order)) for order in itertools.permutations(range(6)))
    if kind != "shuffle":
        del net.second
    assert _objective(net) == pytest.approx(value(torch.arange(6)))
    find_relabelling(net).apply(net)
    assert _objective(net) == pytest.approx(best, rel=1e-6)


def _blocks(channels: int, groups: int) -> Tensor:
    """A weight that is grouped."""
    side = torch.ones(channels // groups, channels // groups)
    return (torch.randn(channels, channels) * torch.block_diag(*[side] * groups))[:, :, None, None]


@pytest.mark.parametrize(
    ("channels", "groups", "shuffle"), [(32, 2, 2), (32, 4, 4), (64, 8, 8), (32, 8, 1), (32, 32, 1)]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_hidden_grouped_network_is_found(seed: int, channels: int, groups: int, shuffle: int) -> None:
    """Two residual blocks with a shuffle in the middle, grouped; then all channels are mixed up."""
    torch.manual_seed(seed)
    layers = [_gradual(channels, channels, groups=groups) for _ in range(4)]
    blocks = [nn.Sequential(first, ChannelShuffle(shuffle), last) for first, last in (layers[:2], layers[2:])]
    net = _Net(nn.Conv2d(CHANNELS, channels, 1), *(_Sum(block) for block in blocks), out=channels)
    outer = torch.randperm(channels)  # which channel of the grouped network is where
    dealt = torch.arange(channels).reshape(shuffle, -1).T.flatten()
    for block in blocks:
        inner = torch.randperm(channels)
        behind = torch.argsort(dealt)[inner[dealt]]
        block[0].weight.data = _blocks(channels, groups)[inner][:, outer]
        block[2].weight.data = _blocks(channels, groups)[outer][:, behind]
    found = find_relabelling(net)
    assert max(found.kept_before.values()) < 0.9
    assert list(found.kept_after.values()) == pytest.approx([1.0] * 4)


def test_every_layer_counts_alike() -> None:
    net = _prepare(NETS["chain"]())
    whole = find_relabelling(net)
    net.body[0].weight.data *= 1000
    scaled = find_relabelling(net)
    assert scaled.kept_after == pytest.approx(whole.kept_after, rel=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_never_worse_than_the_start(seed: int) -> None:
    net = _prepare(NETS["shuffle"](), seed)
    objectives = [_objective(net)]
    for _ in range(3):
        find_relabelling(net).apply(net)
        objectives.append(_objective(net))
    assert objectives[0] < objectives[1]
    assert all(after > before - 1e-6 for before, after in itertools.pairwise(objectives))


def test_the_same_weights_give_the_same_result() -> None:
    net = _prepare(NETS["residual"]())
    first, second = (find_relabelling(copy.deepcopy(net)) for _ in range(2))
    assert first.kept_after == second.kept_after
    for name, pair in first.sources.items():
        assert all(np.array_equal(a, b) for a, b in zip(pair, second.sources[name], strict=True))


# --- applying --------------------------------------------------------------------------------------------------------


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        loss = torch.zeros((), dtype=torch.float64)
        for width in available_widths(net):
            set_width(net, width)
            loss = loss + (net(x) - x.mean(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("elastic", [False, True])
def test_training_goes_on_as_if_nothing_had_happened(optimizer: type, warm: int, elastic: bool) -> None:
    net = _prepare(NETS["pair shuffle" if elastic else "shuffle"]())
    if elastic:
        slim(net, (1.0, 0.5), divisor=4)
    losses = []
    for relabel in (False, True):
        own = copy.deepcopy(net).double().train()
        arguments = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        updates = optimizer(own.parameters(), lr=1e-3, **arguments)
        start = _train(own, updates, range(warm))
        if relabel:
            find_relabelling(own).apply(own, updates)
        losses.append(start + _train(own, updates, range(warm, warm + 4)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_parameters_stay_the_same_objects_in_the_same_memory() -> None:
    net = _prepare(NETS["residual"]())
    net.to(memory_format=torch.channels_last)
    net(torch.rand(1, 3, 8, 8)).sum().backward()
    before = {name: (id(value), value.data_ptr(), value.stride()) for name, value in net.named_parameters()}
    pairs = {name: (value.detach() * value.grad).sum() for name, value in net.named_parameters()}
    find_relabelling(net).apply(net)
    assert {name: (id(value), value.data_ptr(), value.stride()) for name, value in net.named_parameters()} == before
    after = {name: (value.detach() * value.grad).sum() for name, value in net.named_parameters()}
    torch.testing.assert_close(after, pairs)


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_nothing_to_move_is_an_error_that_names_the_layer() -> None:
    net = nn.Sequential(GradualConv2d(3, 6, 1, stages=(3,)))
    with pytest.raises(ModelError, match=r"layer '0'.*the image.*an output.*contiguous"):
        find_relabelling(net)


def test_pieces_of_a_concatenation_within_single_groups_cannot_move() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), _Concatenation(nn.Conv2d(4, 4, 1)), GradualConv2d(8, 2, 1, stages=(2,)))
    with pytest.raises(ModelError, match=r"layer '2' \(what it reads.*concatenation.*--grouping.where"):
        find_relabelling(net)


def test_a_layer_that_cannot_move_stays_contiguous_beside_others_that_can() -> None:
    still, held = GradualConv2d(3, 3, 1, stages=(3,)), nn.Conv2d(3, 6, 1, groups=3)
    net = _prepare(nn.Sequential(still, held, nn.Conv2d(6, 8, 1), GradualConv2d(8, 2, 1, stages=(2,))))
    found = find_relabelling(net)
    assert found.kept_after["0"] == found.kept_before["0"]
    assert found.kept_after["3"] > found.kept_before["3"]
    assert set(found.sources) == {"2", "3"}


def test_what_has_faded_is_not_moved() -> None:
    net = _prepare(NETS["chain"]())
    fade(net, 1, 0.0)
    with pytest.raises(ModelError, match="single groups"):
        find_relabelling(net)


def test_a_network_that_does_not_fade_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    assert find_relabelling(net) == Relabelling({}, {}, {})
