"""Cheap convolutions laid over networks: against the same thing written in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import shake
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.models import build_model
from litheseg.nn.efficient import Efficient, choose_layers, make_efficient
from litheseg.nn.grouping import ChannelShuffle, channel_shuffle

IMAGE = torch.randn(2, 3, 17, 19, dtype=torch.float64)


class _Net(nn.Module):
    """Image -> 8 -> `layer` (8 to 12) -> 16 -> logits, with names, roles and a head for training."""

    training_only = ("extra",)
    roles: Mapping[str, tuple[str, ...]] = {"body": ("stem", "middle", "last"), "nothing": ("no_such.*",)}

    def __init__(self, **others: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 12, 3, **others)
        self.last = nn.Conv2d(12, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)
        self.extra = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(F.relu(self.middle(self.stem(x))))))


def _made(where: str, network: nn.Module | None = None, **efficient: Any) -> nn.Module:
    return make_efficient(network or _Net(padding=1), Efficient(where=where, **efficient)).double().eval()


def _grouped(network: nn.Module) -> list[str]:
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]


def _by_hand(net: nn.Module, middle: nn.Module, x: Tensor, shuffle: int = 1) -> Tensor:
    """The network with another layer in the middle, and its channels dealt out by explicit indices behind it."""
    y = F.relu(middle(net.stem(x)))
    size = y.shape[1] // shuffle
    y = F.relu(_conv(net.last)(y[:, [group * size + index for index in range(size) for group in range(shuffle)]]))
    return net.head(y)


def _conv(layer: nn.Module) -> nn.Module:
    return layer.conv if isinstance(layer, nn.Sequential) else layer


GEOMETRIES: list[dict[str, Any]] = [
    {"padding": 1},
    {"padding": (4, 2), "dilation": (4, 2), "bias": False},
    {"padding": 1, "stride": (2, 1)},
    {"padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_grouped(geometry: dict[str, Any], shuffle: bool) -> None:
    net = _made("middle|last", _Net(**geometry), groups=4, shuffle=shuffle)
    plain = nn.Conv2d(8, 12, 3, groups=4, **geometry).double()
    assert plain.load_state_dict(net.middle.state_dict())
    assert _conv(net.last).groups == 4
    assert [layer.groups for layer in net.modules() if isinstance(layer, ChannelShuffle)] == [4] * shuffle
    wanted = _by_hand(net, plain, IMAGE, 4 if shuffle else 1)
    torch.testing.assert_close(net(IMAGE), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_separable(geometry: dict[str, Any]) -> None:
    net = shake(_made("middle", _Net(**geometry), kind="separable"))
    others = {name: value for name, value in geometry.items() if name != "bias"}
    depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False, **others)
    pointwise = nn.Conv2d(8, 12, 1, bias=geometry.get("bias", True))
    plain = nn.Sequential(depthwise, nn.BatchNorm2d(8), nn.ReLU(), pointwise).double().eval()
    plain.load_state_dict(net.middle.state_dict())
    torch.testing.assert_close(net(IMAGE), _by_hand(net, plain, IMAGE), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_factorised(geometry: dict[str, Any]) -> None:
    net = _made("middle", _Net(**geometry), kind="factorised")
    first, _, second = net.middle

    def middle(x: Tensor) -> Tensor:
        """One pair of columns and rows: zeros, reflections and strides of each direction, by hand."""
        (ph, pw), (dh, dw) = (_pair(geometry.get(name, 1)) for name in ("padding", "dilation"))
        sh, sw = _pair(geometry.get("stride", 1))
        mode = geometry.get("padding_mode", "constant")
        y = F.conv2d(F.pad(x, (0, 0, ph, ph), mode), first.weight, first.bias, (sh, 1), dilation=(dh, 1))
        return F.conv2d(F.pad(y.relu(), (pw, pw, 0, 0), mode), second.weight, second.bias, (1, sw), dilation=(1, dw))

    assert (first.weight.shape, second.weight.shape) == ((12, 8, 3, 1), (12, 12, 1, 3))
    assert (first.bias is None) == (second.bias is None) == ("bias" in geometry)
    assert net(IMAGE).shape == _Net(**geometry).double()(IMAGE).shape
    torch.testing.assert_close(net(IMAGE), _by_hand(net, middle, IMAGE), rtol=1e-12, atol=1e-12)


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def test_depthwise_where_no_groups_are_named() -> None:
    net = _made("body", groups=0)
    assert [(name, net.get_submodule(name).groups) for name in _grouped(net)] == [("middle", 4), ("last.conv", 4)]


def test_nothing_to_do_changes_nothing() -> None:
    net = _Net(padding=1)
    before = {name: (type(layer), id(layer)) for name, layer in net.named_modules()}
    assert make_efficient(net, Efficient()) is net
    assert before == {name: (type(layer), id(layer)) for name, layer in net.named_modules()}


def test_new_layers_take_place_mode_and_type() -> None:
    net = make_efficient(_Net(padding=1).double().eval(), Efficient(kind="separable", where="middle"))
    assert not any(layer.training for layer in net.modules())
    assert {value.dtype for value in net.parameters()} == {torch.float64}


# --- choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("all", ["stem", "middle", "last", "head"]),
        ("body", ["stem", "middle", "last"]),
        ("3x3", ["stem", "middle"]),
        ("1x1,body", ["last"]),
        ("head|middle", ["middle", "head"]),
        ("*d*,all", ["middle", "head"]),
        (" stem | 1x1 , body ", ["stem", "last"]),
    ],
)
def test_choice(where: str, names: list[str]) -> None:
    assert choose_layers(_Net(), where) == names


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("all", ["middle", "last"]),  # not what reads the image, gives the logits, or only trains
        ("body", ["middle", "last"]),
        ("1x1", ["last"]),
        ("head", ["head"]),  # by name: anything
        ("head|body", ["middle", "last", "head"]),  # the name frees only the layer that it names
        ("*,1x1", ["last", "head"]),
    ],
)
def test_what_roles_leave_out_and_names_do_not(where: str, names: list[str]) -> None:
    assert _grouped(_made(where, groups=2, shuffle=False)) == names


def test_roles_leave_out_strided_and_grouped_layers() -> None:
    assert _grouped(_made("all", _Net(padding=1, stride=2), groups=2, shuffle=False)) == ["last"]
    assert _grouped(_made("m*", _Net(padding=1, stride=2), groups=2, shuffle=False)) == ["middle"]
    already = _made("all", _Net(padding=1, groups=4), groups=2, shuffle=False)
    assert (already.middle.groups, already.last.groups) == (4, 2)


@pytest.mark.parametrize(("kind", "names"), [("separable", ["0", "2"]), ("factorised", ["0"])])
def test_kernels_that_are_flat_already_stay(kind: Any, names: list[str]) -> None:
    body = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.ReLU()
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 1), body, nn.Conv2d(4, 2, 1))
    make_efficient(net, Efficient(kind=kind))
    assert [name for name, layer in net[1].named_children() if isinstance(layer, nn.Sequential)] == names


@pytest.mark.parametrize(
    ("efficient", "message"),
    [
        (
            Efficient(groups=3, where="middle"),
            r"layer 'middle': 3 groups do not divide its 8 input and 12 .*; 2, 4 would",
        ),
        (Efficient(groups=2, where="stem"), r"layer 'stem': 2 groups .* 3 input and 8 .*; no number of groups would"),
        (
            Efficient(groups=2, where="boddy"),
            r"'boddy' matches no convolution.*'body'.*knows all, body.*1x1, 3x3.*'stem'",
        ),
        (Efficient(groups=2, where="all,5x5"), r"'5x5' matches no convolution.*1x1, 3x3"),
        (Efficient(groups=2, where="extra"), r"'extra' matches no convolution"),
        (Efficient(groups=2, where="nothing"), r"'nothing' matches no convolution"),
        (Efficient(groups=2, where="head,3x3"), r"no convolution fulfils all conditions of 'head,3x3'"),
        (Efficient(groups=2, where="3x3,1x1"), r"no convolution fulfils all conditions"),
        (Efficient(kind="separable", where="body,1x1"), r"leaves no layer that can be made separable"),
        (Efficient(groups=-2), r"efficient\.groups -2 is negative"),
        (Efficient(kind="factorised", where="middle"), r"layer 'middle': padding 'same' cannot be factorised"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_the_network_left_alone(efficient: Efficient, message: str) -> None:
    net = _Net(padding="same")
    before = list(net.state_dict())
    with pytest.raises(ModelError, match=message):
        make_efficient(net, efficient)
    assert list(net.state_dict()) == before


def test_one_layer_that_does_not_fit_leaves_all_as_they_were() -> None:
    net = _Net(padding=1)
    net.head = nn.Conv2d(16, 5, 1)
    with pytest.raises(ModelError, match="layer 'head': 4 groups"):
        make_efficient(net, Efficient(groups=4, where="last|head"))
    assert _grouped(net) == []


def test_only_strided_layers_leave_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 2, 1))
    with pytest.raises(ModelError, match=r"'all' leaves no layer that can be made grouped.*strided"):
        make_efficient(net, Efficient(groups=2))


# --- shuffles --------------------------------------------------------------------------------------------------------


class _Streams(nn.Module):
    """Reads `first`'s output in the way that `kind` says; all layers from 8 to 8 channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(16 if kind == "concatenated" else 8, 2, 1)
        self.first, self.second, self.third = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.depthwise, self.norm, self.dropout = (
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.Dropout(0.5),
        )
        self.fully = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm(self.first(x)))
        ways = {
            "alone": lambda: self.second(y),
            "depthwise": lambda: self.second(F.relu(self.depthwise(y))),
            "residual": lambda: x + self.second(y),
            "stream": lambda: self.second(x + y),
            "two": lambda: self.second(y) + self.third(y),
            "around": lambda: self.second(y + self.depthwise(y)),
            "itself": lambda: y + self.second(y),
            "concatenated": lambda: torch.cat([self.second(y), y], 1),
            "linear": lambda: x * self.fully(y.mean((2, 3)))[:, :, None, None],
        }
        return self.head(ways[self.kind]())


@pytest.mark.parametrize(
    ("kind", "shuffled"),
    [
        ("alone", ["second.shuffle"]),
        ("depthwise", ["depthwise.shuffle"]),
        ("residual", ["second.shuffle"]),
        ("stream", []),
        ("two", []),
        ("around", []),
        ("itself", []),
        ("concatenated", []),
        ("linear", []),
    ],
)
def test_shuffles_stand_where_only_one_layer_reads(kind: str, shuffled: list[str]) -> None:
    net = make_efficient(_Streams(kind), Efficient(groups=4, where="first|second|third"))
    assert [name for name, layer in net.named_modules() if isinstance(layer, ChannelShuffle)] == shuffled
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 2, 8, 8)


def test_no_shuffle_before_a_dense_layer() -> None:
    net = make_efficient(_Streams("alone"), Efficient(groups=4, where="first"))
    assert not any(isinstance(layer, ChannelShuffle) for layer in net.modules())


def test_shuffle_deals_channels_out() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(ChannelShuffle(3)(x), nn.ChannelShuffle(3)(x))
    assert torch.equal(channel_shuffle(channel_shuffle(x, 3), 4), x)


# --- models ----------------------------------------------------------------------------------------------------------

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("ddrnet", {"base": 8, "head_channels": 16}),
    ("deeplabv3plus", {"encoder": "resnet18", "channels": 16}),
    ("deeplabv3plus", {"encoder": "mobilenetv2_100", "channels": 16}),
]


@pytest.mark.parametrize(("name", "arguments"), MODELS, ids=str)
def test_any_model_becomes_grouped(name: str, arguments: dict[str, Any]) -> None:
    """Every layer that could be is, each saves half of its weights, and nothing else changes."""
    torch.manual_seed(0)
    dense = build_model(name, 5, boundary_head=True, **arguments)
    net = make_efficient(copy.deepcopy(dense), Efficient(groups=2))
    grouped = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups == 2}
    assert len(grouped) > 20
    saved = sum(layer.weight.numel() for layer in grouped.values())
    sizes = [sum(value.numel() for value in model.parameters()) for model in (dense, net)]
    assert sizes[0] - sizes[1] == saved
    assert not any(layer.stride != (1, 1) or layer.in_channels == 3 for layer in grouped.values())
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)


@pytest.mark.parametrize(("name", "arguments"), MODELS[:1], ids=str)
@pytest.mark.parametrize("kind", ["separable", "factorised"])
def test_any_model_becomes_cheap(name: str, arguments: dict[str, Any], kind: Any) -> None:
    dense = build_model(name, 5, **arguments)
    net = make_efficient(copy.deepcopy(dense), Efficient(kind=kind, where="encoder,3x3"))
    assert sum(value.numel() for value in net.parameters()) < sum(value.numel() for value in dense.parameters())
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_training_heads_do_not_change_where_shuffles_stand() -> None:
    names = []
    for heads in (False, True):
        net = build_model("ddrnet", 5, base=8, head_channels=16, aux_head=heads, boundary_head=heads)
        make_efficient(net, Efficient(groups=2))
        names.append([name for name, layer in net.named_modules() if isinstance(layer, ChannelShuffle)])
    assert names[0] == names[1] != []


@pytest.mark.parametrize("where", ["all", "3x3", "1x1"])
def test_grouped_parallel_paths_fold(where: str) -> None:
    """Three parallel paths, each with groups of its own, are still one convolution."""
    torch.manual_seed(0)
    net = build_model("ddrnet", 5, base=8, head_channels=16, rep_blocks=True)
    net = shake(make_efficient(net, Efficient(groups=4, where=where))).double().eval()
    block = net.stem[4][1].conv1
    assert (block.dense.groups, block.point.groups) == {"all": (4, 4), "3x3": (4, 1), "1x1": (1, 4)}[where]
    folded, x = block.fold(), torch.randn(2, 8, 7, 9, dtype=torch.float64)
    assert folded.groups == (4 if where == "all" else 1)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), block(x), rtol=1e-12, atol=1e-12)


def test_shuffles_export() -> None:
    net = make_efficient(_Streams("depthwise"), Efficient(groups=4, where="first|second")).eval()
    x = torch.randn(1, 3, 8, 8)
    program = torch.export.export(net, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x))
