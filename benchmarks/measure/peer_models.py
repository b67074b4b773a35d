"""Light networks of other libraries, trained and timed beside ours: what an engineer would otherwise reach for.

Each is its library's own network, from random weights, behind the interface that the trainer wants: it is padded to
the multiple that it needs and its logits are cropped back. Importing this module registers them in
`litheseg.models.MODELS`, so that the runner of the benchmarks trains them by the same protocols as everything else.

Usage:
    >>> import peer_models
    >>> model = build_model("peer-lraspp", num_classes=11)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from litheseg.errors import ModelError
from litheseg.models import MODELS, SegmentationModel

__all__ = ["PEERS", "Peer", "build_peer"]

_MULTIPLE = 32  # of height and width, which every encoder here halves five times


class Peer(SegmentationModel):
    """A network of another library.

    Args:
        network: N x 3 x H x W -> N x K x H x W, or a dict of it as torchvision's are, for H and W that 32 divides.
        num_classes: K.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__(num_classes)
        self.network = network

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """``logits`` at the image's size, which stand in for ``features`` as well."""
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))
        logits = self.network(padded)
        logits = logits["out"] if isinstance(logits, dict) else logits
        logits = logits[:, :, :height, :width]
        return {"logits": logits, "features": logits}


def _lraspp(num_classes: int) -> nn.Module:
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)


def _smp(build: Callable[..., nn.Module], encoder: str, num_classes: int) -> nn.Module:
    return build(encoder_name=encoder, encoder_weights=None, classes=num_classes)


PEERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "peer-lraspp": ("LR-ASPP, MobileNetV3-L (torchvision)", _lraspp),
    "peer-fpn-mobilenet": ("FPN, MobileNetV2 (smp)", partial(_smp, smp.FPN, "mobilenet_v2")),
    "peer-deeplab-mobilenet": ("DeepLabV3+, MobileNetV2 (smp)", partial(_smp, smp.DeepLabV3Plus, "mobilenet_v2")),
    "peer-unet-mobilenet": ("Unet, MobileNetV2 (smp)", partial(_smp, smp.Unet, "mobilenet_v2")),
    "peer-fpn-resnet18": ("FPN, ResNet-18 (smp)", partial(_smp, smp.FPN, "resnet18")),
    "peer-segformer-b0": ("SegFormer, MiT-B0 (smp)", partial(_smp, smp.Segformer, "mit_b0")),
}
"""name -> what it is, and how the library's own network is built for K classes."""


def build_peer(name: str, num_classes: int, *, aux_head: bool = False, boundary_head: bool = False) -> Peer:
    """A registered peer with random weights.

    Raises:
        ModelError: a head is wanted; they are of these libraries, and have none.
    """
    if aux_head or boundary_head:
        raise ModelError(f"{name} has no auxiliary and no boundary head; train it without them")
    return Peer(PEERS[name][1](num_classes), num_classes)


MODELS.update({name: partial(build_peer, name) for name in PEERS})
