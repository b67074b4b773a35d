"""Attention that runs with fewer heads: timm's attention modules, written so that no size stands in their code.

timm's own reshape to a number of heads that was fixed when they were built. Those here take their places with the same
children and parameters under the same names, and derive all sizes from tensors. Between the projections stands a layer
of its own, the *heads*, which channels pass as they pass a grouped convolution: a narrower one has fewer heads of the
same size, or, where there are too few for the narrowest width, as many heads that are smaller.

Papers: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Wang et al., "PVT v2", CVM 2022 (keys and values
from a reduced map); Maaz et al., "EdgeNeXt", ECCV Workshops 2022 (attention among channels); Cai et al.,
"EfficientViT", ICCV 2023 (linear attention). That heads are what goes: Haberer et al., "HydraViT", NeurIPS 2024.

Usage:
    >>> vit = adopt_attention(timm.create_model("vit_tiny_patch16_224"))  # computes what it did
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import timm.layers
import timm.models.edgenext
import timm.models.efficientvit_mit
import timm.models.fastvit
import timm.models.pvt_v2
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.nn.surgery import replace_layer
from litheseg.nn.width import Channels, WidthDial

__all__ = [
    "CovarianceHeads",
    "CrossCovarianceAttention",
    "Heads",
    "LinearAttention",
    "LinearHeads",
    "ReducedAttention",
    "SlimHeads",
    "SoftmaxHeads",
    "TokenAttention",
    "adopt_attention",
]

Network = TypeVar("Network", bound=nn.Module)


class Heads(nn.Module):
    """Base of what happens between the projections of attention, head by head; it has no parameters.

    Args:
        heads: their number.
        parts: of how many equal parts the channels of each input consist (query, key, value), each holding all heads;
            inputs beyond these have one entry for each head.
        dropout: of the attention weights while training, in [0, 1].
    """

    def __init__(self, heads: int, parts: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.parts, self.dropout = heads, parts, dropout

    def forward(self, *inputs: Tensor) -> Tensor:
        """Projections -> what the last projection reads."""
        return self.attend(self.heads, *inputs)

    def attend(self, heads: int, *inputs: Tensor) -> Tensor:
        """`forward` with a given number of heads."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The number of heads."""
        return f"heads={self.heads}"


class SoftmaxHeads(Heads):
    """Scaled dot products, of queries, keys and values side by side, or of queries, and keys beside values."""

    def attend(self, heads: int, *inputs: Tensor) -> Tensor:
        """N x L x 3C, or N x L x C and N x M x 2C -> N x L x C."""
        pairs = zip(inputs, self.parts, strict=True)
        split = [x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0) for x, parts in pairs]
        query, key, value = (part for parts in split for part in parts)
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2).flatten(2)


class CovarianceHeads(Heads):
    """Attention among the channels of each head, at a temperature for each head."""

    def attend(self, heads: int, *inputs: Tensor) -> Tensor:
        """N x L x 3C and heads x 1 x 1 -> N x L x C."""
        packed, temperature = inputs
        query, key, value = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 4, 1).unbind(0)
        likeness = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        weights = F.dropout((likeness * temperature).softmax(dim=-1), self.dropout, self.training)
        return (weights @ value).permute(0, 3, 1, 2).flatten(2)


class LinearHeads(Heads):
    """Attention without softmax, whose cost is linear in the pixels; each head holds its query, key and value.

    Args:
        heads: their number.
        kernel: applied to queries and keys.
        eps: added to the denominator.
    """

    def __init__(self, heads: int, kernel: nn.Module, eps: float) -> None:
        super().__init__(heads, ())
        self.kernel, self.eps = kernel, eps

    def attend(self, heads: int, *inputs: Tensor) -> Tensor:
        """N x 3C x H x W -> N x C x H x W."""
        [x] = inputs
        query, key, value = x.flatten(2).unflatten(1, (heads, -1)).transpose(-1, -2).chunk(3, dim=-1)
        query, key, value = self.kernel(query), self.kernel(key), F.pad(value, (0, 1), value=1.0)
        if x.device.type == "meta":
            result = self._product(query, key, value)
        else:
            with torch.autocast(x.device.type, enabled=False):  # the sums leave the range of half precision
                result = self._product(*(part.to(_at_least_float32(x)) for part in (query, key, value)))
        return result.to(x.dtype).transpose(-1, -2).flatten(1, 2).unflatten(-1, x.shape[-2:])

    def _product(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sums = query @ (key.transpose(-1, -2) @ value)
        return sums[..., :-1] / (sums[..., -1:] + self.eps)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class SlimHeads(nn.Module):
    """Elastic `Heads`.

    Args:
        core: the plain ones.
        dial: the model's dial.
        outputs: how their output shrinks; of several parts, each has as many heads.
    """

    def __init__(self, core: Heads, dial: WidthDial, *, outputs: Channels) -> None:
        super().__init__()
        self.core, self.dial, self.outputs = core, dial, outputs

    @property
    def heads(self) -> int:
        """Heads at the current width."""
        parts = self.outputs.parts
        return len(parts) * Channels(parts[:1]).groups(self.core.heads // len(parts), self.dial.width)

    def forward(self, *inputs: Tensor) -> Tensor:
        """As of `core`, with fewer channels."""
        return self.core.attend(self.heads, *inputs)

    def to_plain(self) -> Heads:
        """The plain heads of the current width."""
        plain = copy.deepcopy(self.core)
        plain.heads = self.heads
        return plain


class TokenAttention(nn.Module):
    """Self-attention among tokens, or among the pixels of a map."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.qkv = layer.qkv
        self.core = SoftmaxHeads(layer.num_heads, (3,), layer.attn_drop.p)
        self.proj, self.proj_drop = layer.proj, layer.proj_drop

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """N x L x C or N x C x H x W -> the same shape; there are no masks in networks that give features."""
        assert attn_mask is None and not is_causal
        size = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        tokens = self.proj_drop(self.proj(self.core(self.qkv(tokens))))
        return tokens.transpose(1, 2).unflatten(2, size) if x.ndim == 4 else tokens


class ReducedAttention(nn.Module):
    """Attention to a reduced map (PVT v2)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.q, self.kv = layer.q, layer.kv
        self.core = SoftmaxHeads(layer.num_heads, (1, 2), layer.attn_drop.p)
        self.proj, self.proj_drop = layer.proj, layer.proj_drop
        self.pool, self.sr, self.norm, self.act = layer.pool, layer.sr, layer.norm, layer.act

    def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        """N x HW x C, of a map of H x W -> the same shape."""
        query = self.q(x)
        if self.sr is not None:
            maps = x.transpose(1, 2).unflatten(2, tuple(feat_size))
            reduced = self.sr(maps if self.pool is None else self.pool(maps))
            x = self.norm(reduced.flatten(2).transpose(1, 2))
            x = x if self.act is None else self.act(x)
        return self.proj_drop(self.proj(self.core(query, self.kv(x))))


class CrossCovarianceAttention(nn.Module):
    """Attention among channels (EdgeNeXt)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.temperature, self.qkv = layer.temperature, layer.qkv
        self.core = CovarianceHeads(layer.num_heads, (3,), layer.attn_drop.p)
        self.proj, self.proj_drop = layer.proj, layer.proj_drop

    def forward(self, x: Tensor) -> Tensor:
        """N x L x C -> the same shape."""
        return self.proj_drop(self.proj(self.core(self.qkv(x), self.temperature)))


class LinearAttention(nn.Module):
    """Linear attention over several scales (EfficientViT)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.qkv, self.aggreg, self.proj = layer.qkv, layer.aggreg, layer.proj
        heads = layer.qkv.conv.out_channels // (3 * layer.dim)
        self.core = LinearHeads(heads * (1 + len(layer.aggreg)), layer.kernel_func, layer.eps)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same shape."""
        packed = self.qkv(x)
        return self.proj(self.core(torch.cat([packed, *(scale(packed) for scale in self.aggreg)], dim=1)))


def _plain_tokens(layer: Any) -> bool:
    """Whether it has no norms within heads and no gate, which would have to shrink with them."""
    extras = [getattr(layer, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    return all(extra is None or isinstance(extra, nn.Identity) for extra in extras)


_ELASTIC: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    timm.layers.Attention: TokenAttention,
    timm.models.edgenext.CrossCovarianceAttn: CrossCovarianceAttention,
    timm.models.efficientvit_mit.LiteMLA: LinearAttention,
    timm.models.fastvit.Attention: TokenAttention,
    timm.models.pvt_v2.Attention: ReducedAttention,
}


def adopt_attention(module: Network) -> Network:
    """Replace, in place, timm's attention by modules that compute the same with any number of heads; returns `module`.

    Weights keep their names. Attention of other kinds, or with norms within heads, stays as it is.
    """
    for name, layer in list(module.named_modules()):
        build = _ELASTIC.get(type(layer))
        if build is not None and name and (build is not TokenAttention or _plain_tokens(layer)):
            replace_layer(module, name, build(layer))
    return module
