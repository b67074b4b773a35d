"""Light networks of other libraries, trained and timed beside ours: what an engineer would otherwise reach for.

Each is its library's own network behind the interface that the trainer wants; if it needs sizes that some number
divides, it is padded to such and its logits are cropped back. Those on EfficientNet-Lite0 can begin with the very
weights that our encoders begin with. Importing this module registers all in `litheseg.models.MODELS`, so that the
runner of the benchmarks trains them by the same protocols as everything else.

Usage:
    >>> import peer_models
    >>> model = build_model("peer-fpn-lite0", num_classes=11, pretrained="auto")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from litheseg.errors import ModelError
from litheseg.models import MODELS, SegmentationModel
from litheseg.models.encoders import start_encoder

try:
    import segmentation_models_pytorch as smp
except ModuleNotFoundError as error:
    raise SystemExit(
        "the peers are networks of segmentation_models_pytorch, which is not installed here: pip install "
        "segmentation-models-pytorch"
    ) from error

__all__ = ["PEERS", "Peer", "PeerEntry", "build_peer"]


class Peer(SegmentationModel):
    """A network of another library.

    Args:
        network: N x 3 x H x W -> N x K x H x W, or a dict of it as torchvision's are.
        num_classes: K.
        multiple: what must divide H and W.
    """

    roles: Mapping[str, tuple[str, ...]] = {"encoder": ("network.encoder.*",)}  # as ours, the rest learns faster

    def __init__(self, network: nn.Module, num_classes: int, multiple: int) -> None:
        super().__init__(num_classes)
        self.network, self.multiple = network, multiple

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """``logits`` at the image's size, which stand in for ``features`` as well."""
        height, width = image.shape[-2:]
        logits = self.network(F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple)))
        logits = logits["out"] if isinstance(logits, dict) else logits
        logits = logits[:, :, :height, :width]
        return {"logits": logits, "features": logits}


@dataclass(frozen=True)
class PeerEntry:
    """One peer.

    Attributes:
        title: what it is.
        build: the library's own network for K classes, from random weights.
        multiple: what must divide the size of its images.
        encoder: timm's name of its encoder, if it can begin with weights of that.
    """

    title: str
    build: Callable[[int], nn.Module]
    multiple: int = 32
    encoder: str | None = None


def _lraspp(num_classes: int) -> nn.Module:
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)


def _smp(build: Callable[..., nn.Module], encoder: str, num_classes: int) -> nn.Module:
    return build(encoder_name=encoder, encoder_weights=None, classes=num_classes)


def _lite0(title: str, build: Callable[..., nn.Module], multiple: int = 32) -> PeerEntry:
    name = "efficientnet_lite0"
    return PeerEntry(f"{title}, EfficientNet-Lite0 (smp)", partial(_smp, build, f"tu-{name}"), multiple, name)


PEERS = {
    "peer-fpn-lite0": _lite0("FPN", smp.FPN),
    "peer-deeplab-lite0": _lite0("DeepLabV3+", smp.DeepLabV3Plus, 16),
    "peer-unet-lite0": _lite0("Unet", smp.Unet),
    "peer-lraspp": PeerEntry("LR-ASPP, MobileNetV3-L (torchvision)", _lraspp, 1),
    "peer-fpn-mobilenet": PeerEntry("FPN, MobileNetV2 (smp)", partial(_smp, smp.FPN, "mobilenet_v2")),
}
"""By name in `MODELS`."""


def build_peer(
    name: str,
    num_classes: int,
    *,
    pretrained: Literal["auto", "none"] = "none",
    aux_head: bool = False,
    boundary_head: bool = False,
) -> Peer:
    """A registered peer, from random weights or on a pretrained encoder.

    Raises:
        ModelError: pretrained weights are wanted and there are none, or a head is, which these libraries do not have.
    """
    entry = PEERS[name]
    if aux_head or boundary_head:
        raise ModelError(f"{name} has no auxiliary and no boundary head; train it without them")
    if pretrained != "none" and entry.encoder is None:
        raise ModelError(f"{name} is trained from nothing here; take pretrained: none")
    network = entry.build(num_classes)
    peer = Peer(network, num_classes, entry.multiple)
    if entry.encoder is not None:
        peer.pretrained_encoder = start_encoder(network.encoder.model, entry.encoder, pretrained, None)
    return peer


MODELS.update({name: partial(build_peer, name) for name in PEERS})
