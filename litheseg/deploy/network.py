"""The network as it is deployed: raw pixels in, logits or labels out, nothing left that only training needs.

It does not know files or runtimes; every format writes what this module makes.

Usage:
    >>> network = Deployed(bundle.plain(0.5), header.mean, header.std)
    >>> logits = network(pixels)  # uint8 1 x H x W x 3 -> float32 1 x K x h x w
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from litheseg.models.base import SegmentationModel, resize

__all__ = ["Deployed"]


class Deployed(nn.Module):
    """A plain network behind its normalisation.

    Args:
        network: image 1 x 3 x H x W, normalised -> logits; a `SegmentationModel` gives them at its own stride.
        mean: per RGB channel, of images in [0, 1].
        std: likewise, > 0.
        layout: of the input: "NHWC" or "NCHW".
        output: "logits", or "labels": the largest of the bilinearly upsampled logits at every pixel.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        layout: str = "NHWC",
        output: str = "logits",
    ) -> None:
        super().__init__()
        self.network, self.layout, self.output = network, layout, output
        centre, spread = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
        self.register_buffer("gain", (1 / (255 * spread)).float())
        self.register_buffer("offset", (-centre / spread).float())

    def forward(self, image: Tensor) -> Tensor:
        """uint8 1 x H x W x 3 (or 1 x 3 x H x W) -> float32 1 x K x h x w, or uint8 1 x H x W."""
        pixels = image.permute(0, 3, 1, 2) if self.layout == "NHWC" else image
        ready = pixels.float() * self.gain + self.offset
        if isinstance(self.network, SegmentationModel):
            logits = cast(SegmentationModel, self.network).outputs(ready)["logits"]
        else:
            logits = self.network(ready)
        if self.output == "logits":
            return logits.float()
        return resize(logits.float(), ready.shape[-2:]).argmax(1).to(torch.uint8)
