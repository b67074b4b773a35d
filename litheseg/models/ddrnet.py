"""DDRNet-23-slim: a two-branch network for real-time segmentation, and the default of this project.

A context branch goes down to stride 64 while a detail branch stays at stride 8; they exchange features twice (bilateral
fusion) and meet after a pyramid of pooled contexts (DAPPM). Optionally its 3x3 convolutions are re-parameterisable: in
training a 3x3, a 1x1 and an identity path run side by side, at extraction they fold into one 3x3 convolution.

`base` is the channel unit; every other channel count is a multiple of it.

Papers: Hong, Pan et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road
Scenes", arXiv 2101.06085; Ding et al., "RepVGG", CVPR 2021 (the fold).

Usage:
    >>> logits = DDRNet(num_classes=19)(torch.rand(1, 3, 512, 1024))
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from litheseg.errors import ModelError
from litheseg.models.base import SegmentationModel, initialise, resize

__all__ = ["DAPPM", "DDRNet", "RepConv"]


class RepConv(nn.Module):
    """3x3 convolution + BN that trains as three parallel paths and folds to one (RepVGG, Sec. 3.2-3.3).

    Args:
        in_channels: channels of the input; the identity path exists where it equals `out_channels` and `stride` is 1.
        out_channels: channels of the output.
        stride: of all paths.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.dense = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.dense_norm = nn.BatchNorm2d(out_channels)
        self.point = nn.Conv2d(in_channels, out_channels, 1, stride, 0, bias=False)
        self.point_norm = nn.BatchNorm2d(out_channels)
        has_identity = in_channels == out_channels and stride == 1
        self.identity_norm = nn.BatchNorm2d(out_channels) if has_identity else None

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x ceil(H / stride) x ceil(W / stride)."""
        y = self.dense_norm(self.dense(x)) + self.point_norm(self.point(x))
        return y if self.identity_norm is None else y + self.identity_norm(x)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """The one convolution (with bias) that computes the same function in evaluation mode."""
        groups = math.gcd(self.dense.groups, self.point.groups)
        dense, point = _in_groups(self.dense, groups), F.pad(_in_groups(self.point, groups), (1, 1, 1, 1))
        paths = [(dense, self.dense_norm), (point, self.point_norm)]
        if self.identity_norm is not None:
            paths.append((torch.nn.init.dirac_(torch.zeros_like(dense), groups), self.identity_norm))
        fused = [_fused(weight, norm) for weight, norm in paths]
        conv = nn.Conv2d(self.dense.in_channels, len(dense), 3, self.stride, 1, groups=groups).to(dense)
        assert conv.bias is not None
        conv.weight.copy_(sum(weight for weight, _ in fused))  # type: ignore[arg-type]
        conv.bias.copy_(sum(bias for _, bias in fused))  # type: ignore[arg-type]
        return conv.train(self.training)


def _in_groups(conv: nn.Conv2d, groups: int) -> Tensor:
    """The weight with which a layer of fewer `groups` (a divisor of the layer's own) computes the same."""
    share, (rows, columns) = conv.groups // groups, conv.weight.shape[:2]
    row = torch.arange(rows, device=conv.weight.device) * conv.groups // rows % share
    column = torch.arange(share * columns, device=conv.weight.device) // columns
    return conv.weight.repeat(1, share, 1, 1) * (row[:, None] == column)[:, :, None, None]


def _fused(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a bias-free convolution followed by `norm` in evaluation mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    return fuse_conv_bn_weights(weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _conv3x3(in_channels: int, out_channels: int, stride: int, rep: bool) -> nn.Module:
    if rep:
        return RepConv(in_channels, out_channels, stride)
    return _conv_norm(in_channels, out_channels, 3, stride)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the closing ReLU is optional (the fusions want the sum before it)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, relu: bool = True, rep: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride, rep)
        self.conv2 = _conv3x3(channels, channels, 1, rep)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else _conv_norm(in_channels, channels, 1, stride)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 (doubling the channels) and a projected shortcut, without the closing ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, rep: bool) -> None:
        super().__init__()
        self.conv1 = _conv_norm(in_channels, channels, 1)
        self.conv2 = _conv3x3(channels, channels, stride, rep)
        self.conv3 = _conv_norm(channels, 2 * channels, 1)
        self.shortcut = _conv_norm(in_channels, 2 * channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.conv3(y) + self.shortcut(x)


def _stage(in_channels: int, channels: int, stride: int, blocks: int, *, rep: bool) -> nn.Sequential:
    """Basic blocks, the first strided, the last without its closing ReLU."""
    stage = nn.Sequential()
    for index in range(blocks):
        inside, step = (channels, 1) if index else (in_channels, stride)
        stage.append(_BasicBlock(inside, channels, step, relu=index < blocks - 1, rep=rep))
    return stage


class _Fusion(nn.Module):
    """Bilateral fusion (Sec. 3.2): detail goes down by strided 3x3s, context comes up by 1x1 and bilinear."""

    def __init__(self, detail: int, context: int, down_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.up = _conv_norm(context, detail, 1)
        steps: list[nn.Module] = []
        for source, target in zip((detail, *down_channels), down_channels, strict=False):
            steps += [_conv_norm(source, target, 3, 2), nn.ReLU()]
        self.down = nn.Sequential(*steps[:-1])

    def forward(self, detail: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        fused_context = context + self.down(F.relu(detail))
        fused_detail = detail + resize(self.up(F.relu(context)), detail.shape[-2:])
        return fused_detail, fused_context


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling (Sec. 3.3): contexts of growing size, each refined with the one before it.

    Args:
        in_channels: of the input.
        channels: of each context.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(k, k // 2, k // 2, count_include_pad=False) for k in (5, 9, 17)]
        scales = [nn.Identity(), *pools, nn.AdaptiveAvgPool2d(1)]
        self.pools = nn.ModuleList(scales)
        self.reduce = nn.ModuleList(_norm_relu_conv(in_channels, channels, 1) for _ in scales)
        self.refine = nn.ModuleList(_norm_relu_conv(channels, channels, 3) for _ in scales[1:])
        self.merge = _norm_relu_conv(channels * len(scales), out_channels, 1)
        self.shortcut = _norm_relu_conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x H x W."""
        scales = [self.reduce[0](x)]
        for pool, reduce, refine in zip(self.pools[1:], self.reduce[1:], self.refine, strict=True):
            context = resize(reduce(pool(x)), x.shape[-2:])
            scales.append(refine(context + scales[-1]))
        return self.merge(torch.cat(scales, dim=1)) + self.shortcut(x)


def _norm_relu_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), conv)


def _head(in_channels: int, channels: int, out_channels: int) -> nn.ModuleDict:
    """The segmentation head in two parts: what the classifier sees, and the classifier."""
    features = nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )
    return nn.ModuleDict({"features": features, "classifier": nn.Conv2d(channels, out_channels, 1)})


class DDRNet(SegmentationModel):
    """DDRNet-23-slim (5.7 M parameters at `base` 32), from scratch.

    Args:
        num_classes: K.
        base: channels of the stem; 32 is the paper's "slim", 64 its full DDRNet-23.
        head_channels: channels that the classifier sees.
        aux_head: deep supervision on the detail branch after the first fusion (training only).
        boundary_head: a binary border head beside the classifier (training only).
        rep_blocks: re-parameterisable 3x3 convolutions, folded at extraction.
        blocks: residual blocks of each stage; 2 is the paper's.
        in_channels: of the image.

    Raises:
        ModelError: no blocks.
    """

    training_only = ("aux_head", "boundary_head")
    encoder_ends = ("detail5", "pyramid")
    roles: Mapping[str, tuple[str, ...]] = {
        "encoder": ("stem.*", "context*", "detail*", "fusion*", "pyramid.*"),
        "decoder": ("head.*",),
        "context": ("context*",),
        "detail": ("detail*",),
        "pyramid": ("pyramid.*",),
    }

    def __init__(
        self,
        num_classes: int,
        *,
        base: int = 32,
        head_channels: int = 64,
        aux_head: bool = True,
        boundary_head: bool = False,
        rep_blocks: bool = False,
        blocks: int = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if blocks < 1:
            raise ModelError(f"blocks {blocks}: a stage of DDRNet needs at least 1")
        detail = 2 * base
        self.stem = nn.Sequential(
            *(_conv_norm(in_channels, base, 3, 2), nn.ReLU(), _conv_norm(base, base, 3, 2), nn.ReLU()),
            *(_stage(base, base, 1, blocks, rep=rep_blocks), nn.ReLU()),
            *(_stage(base, detail, 2, blocks, rep=rep_blocks), nn.ReLU()),
        )
        self.context3 = _stage(detail, 4 * base, 2, blocks, rep=rep_blocks)
        self.context4 = _stage(4 * base, 8 * base, 2, blocks, rep=rep_blocks)
        self.context5 = _Bottleneck(8 * base, 8 * base, 2, rep=rep_blocks)
        self.detail3 = _stage(detail, detail, 1, blocks, rep=rep_blocks)
        self.detail4 = _stage(detail, detail, 1, blocks, rep=rep_blocks)
        self.detail5 = _Bottleneck(detail, detail, rep=rep_blocks)
        self.fusion3 = _Fusion(detail, 4 * base, (4 * base,))
        self.fusion4 = _Fusion(detail, 8 * base, (4 * base, 8 * base))
        self.pyramid = DAPPM(16 * base, 4 * base, 4 * base)
        self.head = _head(4 * base, head_channels, num_classes)
        self.aux_head = _head(detail, head_channels, num_classes) if aux_head else None
        self.boundary_head = _head(4 * base, head_channels, 1) if boundary_head else None
        initialise(self)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """See `SegmentationModel.outputs`; logits at stride 8."""
        x = self.stem(image)
        detail, context = self.fusion3(self.detail3(x), self.context3(x))
        early_detail = detail
        detail, context = self.fusion4(self.detail4(F.relu(detail)), self.context4(F.relu(context)))
        detail = self.detail5(F.relu(detail))
        context = self.pyramid(self.context5(F.relu(context)))
        fused = detail + resize(context, detail.shape[-2:])
        features = self.head["features"](fused)
        result = {"logits": self.head["classifier"](features), "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head["classifier"](self.aux_head["features"](early_detail))
        if self.training and self.boundary_head is not None:
            result["boundary"] = self.boundary_head["classifier"](self.boundary_head["features"](fused))
        return result
