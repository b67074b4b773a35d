"""What every segmentation network here has in common: one method to implement, one tensor to return.

A model is plain PyTorch and knows nothing of widths: `litheseg.nn.slim` makes it elastic from the outside. It knows
nothing of losses either: `outputs` returns whatever a loss may ask for, `forward` what a user wants.

Usage:
    >>> model = ddrnet(num_classes=11)
    >>> model(torch.rand(1, 3, 360, 480)).shape
    torch.Size([1, 11, 360, 480])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SegmentationModel", "resize"]


def resize(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear resampling of N x C x h x w to N x C x `size` (pixel centres aligned, not corners)."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


class SegmentationModel(nn.Module, ABC):
    """Base of all architectures.

    Attributes:
        num_classes: K, the channels of the logits.
        training_only: names of the children that only a loss needs; `extract` drops them.
        encoder_ends: names of the modules whose outputs the encoder hands to the decoder.
        roles: what parts of the network are called, as patterns of module names (``*`` is any text).
    """

    training_only: tuple[str, ...] = ()
    encoder_ends: tuple[str, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """Everything a loss may ask for.

        Args:
            image: N x 3 x H x W, float, normalised.

        Returns:
            ``logits`` (N x K x h x w, at the network's own stride), ``features`` (N x C x h x w, what the classifier
            sees; C scales with the width) and, in training mode and where the head exists, ``aux`` (N x K x h x w, deep
            supervision) and ``boundary`` (N x 1 x h x w, logit of "this is a semantic border").
        """

    def forward(self, image: Tensor) -> Tensor:
        """Logits N x K x H x W at the size of `image` (N x 3 x H x W)."""
        return resize(self.outputs(image)["logits"], image.shape[-2:])
