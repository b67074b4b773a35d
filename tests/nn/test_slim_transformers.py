"""Elastic transformers and ConvNeXts against networks that plain PyTorch and timm compute from the kept channels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from contract import image
from timm.models.edgenext import CrossCovarianceAttn
from timm.models.efficientvit_mit import LiteMLA
from timm.models.fastvit import Attention as MapAttention
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.nn import extract, set_width, slim
from litheseg.nn.attention import adopt_attention

WIDTHS = (1.0, 0.5, 0.25)


def _random(model: nn.Module) -> nn.Module:
    """Every parameter counts: layer scales are no longer tiny, tokens and biases no longer zero."""
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        value.data = torch.randn_like(value) * (0.3 if value.ndim > 1 else 1.0) + (
            value.ndim == 1 and "bias" not in name
        )
    return model.double().eval()


def _elastic(plain: nn.Module, **options: Any) -> nn.Module:
    return slim(copy.deepcopy(plain).float(), WIDTHS, **options).double().eval()


def _equal_at(model: nn.Module, width: float, x: Tensor, wanted: Tensor) -> None:
    set_width(model, width)
    for network in (model, extract(model, width)):
        torch.testing.assert_close(network(x), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


def _rows(size: int, heads: int, kept: int, parts: int = 1) -> list[int]:
    """The first `kept` heads of `heads`, in each of `parts` equal parts of `size` channels."""
    part = size // parts
    return [index * part + channel for index in range(parts) for channel in range(part // heads * kept)]


# --- a plain timm network of the small size, with the kept weights copied into it ------------------------------------


def _vit(dim: int, heads: int) -> nn.Module:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": dim, "depth": 2, "num_heads": heads, "num_classes": 5}
    return timm.create_model("vit_small_patch14_dinov2", **options, dynamic_img_size=True)


@pytest.mark.parametrize(("width", "heads"), [(1.0, 4), (0.5, 2), (0.25, 1)])
def test_a_narrow_vit_is_timms_with_fewer_heads(width: float, heads: int) -> None:
    """Class token, positions, layer scales, norms, MLPs and packed projections keep their first channels, or heads."""
    wide, small = _random(_vit(64, 4)), _vit(16 * heads, heads).double().eval()
    state = {}
    for name, value in wide.state_dict().items():
        wanted = small.state_dict()[name].shape
        if ".qkv." in name:
            value = value[_rows(192, 4, heads, 3)]
        state[name] = value[tuple(slice(size) for size in wanted)]
    small.load_state_dict(state)
    model = _elastic(wide)
    for size in ((32, 32), (40, 24)):
        x = image(size).double()
        with torch.no_grad():
            _equal_at(model, width, x, small(x))


def _convnext(dims: tuple[int, ...], **options: Any) -> nn.Module:
    return timm.create_model("convnext_atto", dims=dims, depths=(1, 1, 2, 1), num_classes=5, **options)


@pytest.mark.parametrize("options", [{}, {"conv_mlp": False}, {"use_grn": True, "ls_init_value": None}], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_narrow_convnext_is_timms_with_fewer_channels(width: float, options: dict[str, Any]) -> None:
    """Layer scale, layer norm over the kept channels, first or last, and global response norm (V2)."""
    dims = (32, 32, 64, 64)
    wide = _random(_convnext(dims, **options))
    small = _convnext(tuple(int(dim * width) for dim in dims), **options).double().eval()
    shapes = {name: value.shape for name, value in small.state_dict().items()}
    small.load_state_dict(
        {name: value[tuple(slice(size) for size in shapes[name])] for name, value in wide.state_dict().items()}
    )
    x = image((64, 96)).double()
    with torch.no_grad():
        _equal_at(_elastic(wide), width, x, small(x))


def _pvt(dims: tuple[int, ...], heads: tuple[int, ...]) -> nn.Module:
    options = {"embed_dims": dims, "num_heads": heads, "depths": (1, 1, 1, 1), "mlp_ratios": (2, 2, 2, 2)}
    return timm.create_model("pvt_v2_b0", **options, num_classes=5)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_narrow_pvt_drops_heads_or_makes_them_smaller(width: float) -> None:
    """Stages of one and two heads keep them, each with its first channels; those of four drop whole heads."""
    dims, heads = (32, 32, 64, 64), (1, 2, 4, 4)
    wide = _random(_pvt(dims, heads))
    kept = (1, 2, int(4 * width), int(4 * width))
    small = _pvt(tuple(int(dim * width) for dim in dims), kept).double().eval()
    shapes, state = {name: value.shape for name, value in small.state_dict().items()}, {}
    for name, value in wide.state_dict().items():
        wanted = shapes[name]
        if ".attn.q." in name or ".attn.kv." in name or ".attn.proj.weight" in name:
            stage = int(name.split(".")[1])
            blocks = heads[stage] * (2 if ".kv." in name else 1) if stage < 2 else (2 if ".kv." in name else 1)
            along = 1 if ".proj." in name else 0
            pieces = value.unflatten(along, (blocks, -1))
            value = pieces.narrow(along + 1, 0, wanted[along] // blocks).flatten(along, along + 1)
        state[name] = value[tuple(slice(size) for size in wanted)]
    small.load_state_dict(state)
    x = image((64, 96)).double()
    with torch.no_grad():
        _equal_at(_elastic(wide, divisor=4), width, x, small(x))


# --- attention alone, computed by hand -------------------------------------------------------------------------------


class _Around(nn.Module):
    """A stem and a head, so that nothing about the layer in the middle is fixed."""

    def __init__(self, middle: nn.Module, channels: int, out: int, *, tokens: bool = False) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, channels, 4, 4), middle, nn.Conv2d(out, 2, 1)
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if not self.tokens:
            return self.head(self.middle(y))
        size = y.shape[2:]
        return self.head(self.middle(y.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, size))


def _ends(net: Any, x: Tensor, kept: int) -> Tensor:
    """The stem's output over its first channels."""
    return F.conv2d(x, net.stem.weight[:kept], net.stem.bias[:kept], 4)


@pytest.mark.parametrize(("width", "heads"), [(1.0, 4), (0.5, 2), (0.25, 1)])
def test_attention_among_channels_drops_whole_heads(width: float, heads: int) -> None:
    net = _random(_Around(CrossCovarianceAttn(32, num_heads=4, qkv_bias=True), 32, 32, tokens=True))
    x, kept = image((16, 20)).double(), 8 * heads
    attention: Any = net.middle
    rows = _rows(96, 4, heads, 3)
    with torch.no_grad():
        y = _ends(net, x, kept).flatten(2).transpose(1, 2)
        packed = y @ attention.qkv.weight[rows][:, :kept].T + attention.qkv.bias[rows]
        results = []
        for head in range(heads):
            query, key, value = (packed[..., part * kept + 8 * head :][..., :8].transpose(1, 2) for part in range(3))
            query, key = (side / side.norm(dim=-1, keepdim=True) for side in (query, key))
            results.append(torch.softmax(query @ key.transpose(1, 2) * attention.temperature[head], dim=-1) @ value)
        y = torch.cat(results, dim=1).transpose(1, 2)
        y = (y @ attention.proj.weight[:kept, :kept].T + attention.proj.bias[:kept]).transpose(1, 2)
        wanted = F.conv2d(y.unflatten(2, (4, 5)), net.head.weight[:, :kept], net.head.bias)
        model = _elastic(net)
        _equal_at(model, width, x, wanted)
    assert extract(model, width).middle.temperature.shape == (heads, 1, 1)


@pytest.mark.parametrize(("width", "heads"), [(1.0, 4), (0.5, 2), (0.25, 1)])
def test_linear_attention_drops_whole_heads_at_every_scale(width: float, heads: int) -> None:
    net = _random(_Around(LiteMLA(32, 32, dim=8, scales=(3,)), 32, 32))
    x, kept = image((16, 20)).double(), 8 * heads
    attention: Any = net.middle
    with torch.no_grad():
        y = _ends(net, x, kept)
        packed = F.conv2d(y, attention.qkv.conv.weight[: 3 * kept, :kept])
        depthwise, grouped = attention.aggreg[0]
        scaled = F.conv2d(packed, depthwise.weight[: 3 * kept], padding=1, groups=3 * kept)
        scaled = F.conv2d(scaled, grouped.weight[: 3 * kept], groups=3 * heads)
        results = []
        for source in (packed, scaled):
            for head in range(heads):
                query, key, value = source[:, 24 * head : 24 * head + 24].flatten(2).chunk(3, dim=1)
                likeness = query.relu().transpose(1, 2) @ key.relu()  # pixels x pixels: the product left to right
                results.append((likeness @ value.transpose(1, 2) / (likeness.sum(2, keepdim=True) + 1e-5)).mT)
        y = torch.cat(results, dim=1).unflatten(2, (4, 5))
        columns = [*range(kept), *range(32, 32 + kept)]
        y = F.conv2d(y, attention.proj.conv.weight[:kept][:, columns])
        norm = attention.proj.norm
        y = F.batch_norm(y, *(v[:kept] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)))
        _equal_at(_elastic(net), width, x, F.conv2d(y, net.head.weight[:, :kept], net.head.bias))


def test_width_that_leaves_no_head_is_refused_by_name() -> None:
    net = _Around(LiteMLA(32, 32, dim=16, scales=(3,)), 32, 32)
    with pytest.raises(ModelError, match=r"'middle\.core'.*width 0\.25.*2 heads.*narrowest width is 0\.5, use wider"):
        slim(net, WIDTHS)
    assert isinstance(net.middle, LiteMLA)  # left as it was


@pytest.mark.parametrize(
    ("attention", "tokens"),
    [
        (timm.layers.Attention(32, 4, qkv_bias=True), True),
        (MapAttention(32, head_dim=8), False),
        (CrossCovarianceAttn(32, 4), True),
        (LiteMLA(32, 32, dim=8), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_adopted_attention_is_timms(attention: nn.Module, tokens: bool) -> None:
    """Same names, same result, whole; with norms within its heads it is left to timm."""
    plain = _Around(attention, 32, 32, tokens=tokens).eval()
    adopted = adopt_attention(copy.deepcopy(plain))
    assert type(adopted.middle) is not type(plain.middle)
    assert list(adopted.state_dict()) == list(plain.state_dict())
    assert torch.equal(adopted(image((16, 24))), plain(image((16, 24))))
    normed = nn.Sequential(timm.layers.Attention(32, 4, qk_norm=True, norm_layer=nn.LayerNorm))
    assert isinstance(adopt_attention(normed)[0], timm.layers.Attention)


# --- channels in parts -----------------------------------------------------------------------------------------------


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * b.sigmoid()


@pytest.mark.parametrize("width", WIDTHS)
def test_chunks_keep_their_own_first_channels(width: float) -> None:
    net = _random(_Around(_Gate(), 32, 16))
    x, kept = image((16, 16)).double(), int(16 * width)
    rows = [*range(kept), *range(16, 16 + kept)]
    with torch.no_grad():
        a, b = F.conv2d(x, net.stem.weight[rows], net.stem.bias[rows], 4).split(kept, dim=1)
        wanted = F.conv2d(a * b.sigmoid(), net.head.weight[:, :kept], net.head.bias)
        _equal_at(_elastic(net, divisor=4), width, x, wanted)


def test_a_bare_parameter_keeps_its_name_and_loads_plain_weights() -> None:
    plain = _convnext((16, 16, 32, 32))
    model = slim(copy.deepcopy(plain), WIDTHS)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}
    model.load_state_dict(_random(plain).float().state_dict())
    set_width(model, 0.5)
    block = model.stages[0].blocks[0]
    assert torch.equal(block.gamma, plain.stages[0].blocks[0].gamma[:8])
    model(image((32, 32))).sum().backward()
    assert bool(block._parameters["gamma"].grad[:8].all()) and not block._parameters["gamma"].grad[8:].any()
    assert type(extract(model, 0.5).stages[0].blocks[0]) is type(plain.stages[0].blocks[0])
