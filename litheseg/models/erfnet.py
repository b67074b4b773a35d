"""ERFNet: an encoder-decoder of factorised residual blocks, whose logits come out at the size of the image.

Every 3x3 convolution of a residual block is a 3x1 and a 1x3; the deeper blocks are dilated. The blocks and the
upsampling are arguments of `ERFNet`, so that a cheaper variant is a call and not a subclass: D has separable blocks, D*
a light decoder as well, and DG2*, DG4* and DG8* are D* with grouped and shuffled 1x1 convolutions in the encoder.
Layers are defined in the order in which they run, so that weights published elsewhere can be loaded by order.

The network's own stride is 1: for sizes that 8 does not divide, its feature maps cover the image up to the next
multiple and the surplus is cropped from the logits, so that pixels stay aligned.

Papers: Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-time Semantic Segmentation", IEEE T-ITS
2018 (Table I: the layers; Fig. 2c: the block); Vallurupalli et al., "Efficient Semantic Segmentation using Gradual
Grouping", CVPR Workshops 2018 (the family).

Usage:
    >>> logits = erfnet(num_classes=19)(torch.rand(1, 3, 512, 1024))
    >>> light = erfnet_dg4_star(num_classes=19)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.models.base import SegmentationModel, resize
from litheseg.nn.efficient import Efficient, make_efficient

__all__ = [
    "BilinearUp",
    "Block",
    "Down",
    "ERFNet",
    "LightUp",
    "NonBottleneck1d",
    "Separable",
    "Up",
    "Upsampler",
    "erfnet",
    "erfnet_d",
    "erfnet_d_star",
    "erfnet_dg2_star",
    "erfnet_dg4_star",
    "erfnet_dg8_star",
]

# The authors' value: with PyTorch's 1e-5 their weights give other outputs.
_EPS = 1e-3


Block: TypeAlias = Callable[[int, int, float], nn.Module]
"""Builds a residual block from its channels, the dilation of its second half, and its dropout."""

Upsampler: TypeAlias = Callable[[int, int], nn.Module]
"""Builds what doubles height and width, from its input and output channels."""


class Down(nn.Module):
    """Halves the size: a strided 3x3 convolution beside a max-pool, concatenated, then BN and ReLU.

    Args:
        in_channels: channels of the input, which the pool passes on.
        out_channels: channels of the output; the convolution makes the `out_channels - in_channels` others.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        # The padded convolution rounds odd sizes up, so the pool must as well.
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x ceil(H / 2) x ceil(W / 2)."""
        return F.relu(self.norm(torch.cat((self.conv(x), self.pool(x)), dim=1)))


class NonBottleneck1d(nn.Module):
    """The factorised residual block (Fig. 2c): 3x1, 1x3, BN, then the same dilated, dropout and the input added.

    Args:
        channels: of input and output.
        dilation: of the second pair.
        dropout: probability in [0, 1) that a channel of the residual is dropped.
    """

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm1 = nn.BatchNorm2d(channels, eps=_EPS)
        self.conv3 = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1))
        self.conv4 = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation))
        self.norm2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x C x H x W."""
        y = F.relu(self.norm1(self.conv2(F.relu(self.conv1(x)))))
        y = self.norm2(self.conv4(F.relu(self.conv3(y))))
        return F.relu(self.dropout(y) + x)


class Separable(nn.Module):
    """The residual block of the D family: depthwise 3x3 and 1x1, twice, each with BN; the second 3x3 is dilated.

    Args:
        channels: of input and output.
        dilation: of the second depthwise convolution.
        dropout: probability in [0, 1) that a channel of the residual is dropped.
    """

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.BatchNorm2d(channels, eps=_EPS)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        self.norm3 = nn.BatchNorm2d(channels, eps=_EPS)
        self.conv4 = nn.Conv2d(channels, channels, 1)
        self.norm4 = nn.BatchNorm2d(channels, eps=_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x C x H x W."""
        y = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        y = self.norm4(self.conv4(F.relu(self.norm3(self.conv3(y)))))
        return F.relu(self.dropout(y) + x)


class Up(nn.Module):
    """Doubles the size: a strided 3x3 transposed convolution, BN and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x 2H x 2W."""
        return F.relu(self.norm(self.conv(x)))


class LightUp(nn.Module):
    """The paper's light decoder: a strided 1x1 transposed convolution, BN and ReLU.

    It writes one output pixel in four; the other three hold the bias only.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 1, stride=2, output_padding=1)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x 2H x 2W."""
        return F.relu(self.norm(self.conv(x)))


class BilinearUp(nn.Module):
    """Ours, at the same cost: a 1x1 convolution, BN and ReLU at the small size, then bilinear."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """N x in x H x W -> N x out x 2H x 2W."""
        return resize(F.relu(self.norm(self.conv(x))), (2 * x.shape[-2], 2 * x.shape[-1]))


def _encoder(block: Block, in_channels: int) -> nn.Sequential:
    """In x H x W -> 128 x H/8 x W/8 (Table I, layers 1 to 16)."""
    return nn.Sequential(
        Down(in_channels, 16),
        Down(16, 64),
        *(block(64, 1, 0.03) for _ in range(5)),
        Down(64, 128),
        *(block(128, dilation, 0.3) for _ in range(2) for dilation in (2, 4, 8, 16)),
    )


def _decoder(block: Block, up: Upsampler) -> nn.Sequential:
    """128 x H/8 x W/8 -> 16 x H/2 x W/2 (Table I, layers 17 to 22)."""
    return nn.Sequential(
        up(128, 64),
        *(block(64, 1, 0.0) for _ in range(2)),
        up(64, 16),
        *(block(16, 1, 0.0) for _ in range(2)),
    )


def _boundary_head(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, eps=_EPS), nn.ReLU(), nn.Conv2d(channels, 1, 1))


class ERFNet(SegmentationModel):
    """The network; `erfnet` builds the paper's.

    Args:
        num_classes: K.
        aux_head: a 1x1 classifier on the encoder (training only); with it the encoder can be trained first (Sec. IV).
        boundary_head: a border head on the decoder's features (training only).
        encoder_block: builds the residual blocks of the encoder.
        decoder_block: builds those of the decoder.
        up: builds the two upsampling steps before the last, which is always a 2x2 transposed convolution.
        in_channels: of the image, at most 15: the first block passes them on among its 16.

    Raises:
        ModelError: an image of more channels.
    """

    training_only = ("aux_head", "boundary_head")
    encoder_ends = ("encoder",)
    roles: Mapping[str, tuple[str, ...]] = {
        "encoder": ("encoder.*",),
        "decoder": ("decoder.*", "classifier*"),
        "stage2": tuple(f"encoder.{index}.*" for index in range(1, 7)),
        "stage3": tuple(f"encoder.{index}.*" for index in range(7, 16)),
    }

    def __init__(
        self,
        num_classes: int,
        *,
        aux_head: bool = False,
        boundary_head: bool = False,
        encoder_block: Block = NonBottleneck1d,
        decoder_block: Block = NonBottleneck1d,
        up: Upsampler = Up,
        in_channels: int = 3,
    ) -> None:
        super().__init__(num_classes, in_channels)
        if in_channels > 15:
            raise ModelError(f"ERFNet takes images of 15 channels at most, not {in_channels}; use segmenter or ddrnet")
        self.encoder = _encoder(encoder_block, in_channels)
        self.aux_head = nn.Conv2d(128, num_classes, 1) if aux_head else None  # here in published weights, too
        self.decoder = _decoder(decoder_block, up)
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)
        self.boundary_head = _boundary_head(16) if boundary_head else None

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """See `SegmentationModel.outputs`; logits at stride 1, features and boundary at 2, aux at 8."""
        encoded = self.encoder(image)
        features = self.decoder(encoded)
        # Cropped, not resized: the pyramid rounds sizes up to a multiple of 8, its pixels remain the image's.
        logits = self.classifier(features)[:, :, : image.shape[-2], : image.shape[-1]]
        result = {"logits": logits, "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head(encoded)
        if self.training and self.boundary_head is not None:
            result["boundary"] = self.boundary_head(features)
        return result


def erfnet(num_classes: int, *, aux_head: bool = False, boundary_head: bool = False, in_channels: int = 3) -> ERFNet:
    """ERFNet as published (2.06 M parameters, 26.6 G MACs at 512 x 1024 with 19 classes), from scratch.

    Args:
        num_classes: K.
        aux_head: a 1x1 classifier on the encoder's output at stride 8 (training only).
        boundary_head: a binary border head on the decoder's features at stride 2 (training only).
        in_channels: of the image, at most 15.
    """
    return ERFNet(num_classes, aux_head=aux_head, boundary_head=boundary_head, in_channels=in_channels)


def erfnet_d(num_classes: int, *, aux_head: bool = False, boundary_head: bool = False, in_channels: int = 3) -> ERFNet:
    """ERFNet-D: separable blocks in the encoder, ERFNet's own decoder (2.8x fewer MACs); arguments as of erfnet."""
    return ERFNet(
        num_classes,
        encoder_block=Separable,
        aux_head=aux_head,
        boundary_head=boundary_head,
        in_channels=in_channels,
    )


def erfnet_d_star(
    num_classes: int,
    *,
    up: Literal["light", "bilinear"] = "light",
    aux_head: bool = False,
    boundary_head: bool = False,
    in_channels: int = 3,
) -> ERFNet:
    """ERFNet-D*: separable blocks everywhere and a light decoder (4.8x fewer MACs).

    Args:
        num_classes: K.
        up: of the decoder's two inner steps: the paper's strided 1x1 transposed convolution, or, at the same cost, a
            1x1 convolution and bilinear upsampling.
        aux_head: as of erfnet.
        boundary_head: as of erfnet.
        in_channels: as of erfnet.
    """
    upsampler: Upsampler = {"light": LightUp, "bilinear": BilinearUp}[up]
    return ERFNet(
        num_classes,
        encoder_block=Separable,
        decoder_block=Separable,
        up=upsampler,
        aux_head=aux_head,
        boundary_head=boundary_head,
        in_channels=in_channels,
    )


def _grouped(groups: int, saving: str) -> Callable[..., ERFNet]:
    """The factory of a DG variant."""

    def build(
        num_classes: int,
        *,
        up: Literal["light", "bilinear"] = "light",
        aux_head: bool = False,
        boundary_head: bool = False,
        in_channels: int = 3,
    ) -> ERFNet:
        heads = {"aux_head": aux_head, "boundary_head": boundary_head}
        model = erfnet_d_star(num_classes, up=up, in_channels=in_channels, **heads)
        return make_efficient(model, Efficient(groups=groups, where="encoder,1x1"))

    build.__doc__ = (
        f"ERFNet-DG{groups}*: D* with {groups} groups in the encoder's 1x1s, shuffled ({saving} fewer MACs); "
        "arguments as of erfnet-d*."
    )
    return build


erfnet_dg2_star = _grouped(2, "7.1x")
erfnet_dg4_star = _grouped(4, "9.2x")
erfnet_dg8_star = _grouped(8, "10.9x")
