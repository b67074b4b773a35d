"""What every segmentation network has in common: its interface, and bilinear resampling.

A model is plain PyTorch: `litheseg.nn.slim` makes it elastic from the outside. `outputs` returns all tensors
that losses use, `forward` the logits at the image's size.

Usage:
    >>> model = DDRNet(num_classes=11)
    >>> model(torch.rand(1, 3, 360, 480)).shape
    torch.Size([1, 11, 360, 480])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SegmentationModel", "conv_head", "conv_norm", "initialise", "resample", "resize"]

_LOGITS = 0.3  # the size of the first logits, about


def resize(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear resampling of N x C x h x w to N x C x `size` (pixel centres aligned, not corners)."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def conv_norm(
    in_channels: int, out_channels: int, kernel: int = 1, *, dilation: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution that keeps the size, batch norm and, if wanted, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *([nn.ReLU()] if relu else []))


def conv_head(in_channels: int, channels: int, out_channels: int) -> nn.Sequential:
    """A small head: 3x3 `conv_norm` to `channels`, then a 1x1 convolution."""
    return nn.Sequential(conv_norm(in_channels, channels, 3), nn.Conv2d(channels, out_channels, 1))


def initialise(module: nn.Module) -> None:
    """Draw the weights of all convolutions anew: Kaiming's, for ReLU; smaller ones where logits come out.

    That is where there is a bias: batch norm follows all others. Kaiming's gave two classes logits of 7, sure of wrong
    ones, which a few hundred steps had to undo; see docs/decisions.md, "Training", for what else was tried.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.weight, std=_LOGITS * layer.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def resample(values: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """The numbers of `resize`, with a gradient that costs a third on a CPU.

    There the gradient of PyTorch's upsampling by 8 takes as long as that of a small network. Here upsampling is two
    matrix products, rows and columns; on other devices, and for shrinking, it is PyTorch's.

    Args:
        values: N x C x h x w, floating point.
        size: H and W of the result.
    """
    height, width = values.shape[-2:]
    grows = size[0] >= height and size[1] >= width
    if values.device.type != "cpu" or not values.requires_grad or not grows or (height, width) == tuple(size):
        return resize(values, size)
    with torch.autocast("cpu", enabled=False):
        rows, columns = (_matrix(*ends, values.dtype) for ends in zip((height, width), size, strict=True))
        return rows @ (values @ columns.T)


@lru_cache(maxsize=64)
def _matrix(samples: int, pixels: int, dtype: torch.dtype) -> Tensor:
    """Weights of the samples at each pixel of an axis, pixels x samples."""
    identity = torch.eye(samples, dtype=dtype)[None, None]
    return F.interpolate(identity, size=(pixels, samples), mode="bilinear", align_corners=False)[0, 0]


class SegmentationModel(nn.Module, ABC):
    """Base of all architectures.

    Attributes:
        num_classes: K, the channels of the logits.
        in_channels: of the image.
        training_only: names of the children that only a loss needs; `extract` drops them.
        encoder_ends: names of the modules whose outputs the encoder hands to the decoder.
        roles: parts of the network by name, as patterns of module names (``*`` is any text).
        pretrained_encoder: whether the encoder brought weights when the network was made.
    """

    training_only: tuple[str, ...] = ()
    encoder_ends: tuple[str, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = {}
    pretrained_encoder = False

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels

    @abstractmethod
    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """All tensors that losses use.

        Args:
            image: N x in_channels x H x W, float, normalised.

        Returns:
            ``logits`` (N x K x h x w, at the network's own stride), ``features`` (N x C x h x w, what the classifier
            sees; C scales with the width) and, in training mode and where the head exists, ``aux`` (N x K x h x w, deep
            supervision) and ``boundary`` (N x 1 x h x w, logit of "this is a semantic border").
        """

    def forward(self, image: Tensor) -> Tensor:
        """Logits N x K x H x W at the size of `image` (N x in_channels x H x W)."""
        return resize(self.outputs(image)["logits"], image.shape[-2:])
