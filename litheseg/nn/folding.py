"""Re-parameterisable blocks of timm, folded: branches that only training needs become one convolution.

timm folds its blocks itself. After slimming it would read sizes from them that are those of the whole network, so they
are first set to those of the block's own layers.

Papers: Vasu et al., "MobileOne", CVPR 2023; Vasu et al., "FastViT", ICCV 2023; Wang et al., "RepViT", CVPR 2024;
Ding et al., "RepVGG", CVPR 2021.

Usage:
    >>> fold_blocks(extracted)  # in place
"""

from __future__ import annotations

from typing import Any

import timm.models.byobnet
import timm.models.fastvit
import timm.models.repvit
import torch
from torch import nn

__all__ = ["fold_blocks"]

_REPARAMETERISED = (
    timm.models.byobnet.MobileOneBlock,
    timm.models.byobnet.RepVggBlock,
    timm.models.fastvit.MobileOneBlock,
    timm.models.fastvit.ReparamLargeKernelConv,
    timm.models.fastvit.RepMixer,
)
_FUSED = (timm.models.repvit.ConvNorm, timm.models.repvit.RepVggDw)


@torch.no_grad()
def fold_blocks(module: nn.Module) -> nn.Module:
    """Fold timm's blocks, in place; the function stays, to float rounding.

    Args:
        module: in evaluation mode, with no elastic layer.
    """
    for name, child in list(module.named_children()):
        weight = next(child.parameters(), torch.empty(0))
        dtype, learns = weight.dtype, weight.requires_grad
        if isinstance(child, _FUSED):
            folded: Any = child.double().fuse()
            module.set_submodule(name, folded.to(dtype).requires_grad_(learns))
        elif isinstance(child, _REPARAMETERISED):
            _reparameterise(child.double())
            child.to(dtype).requires_grad_(learns)
        else:
            fold_blocks(child)
    return module


def _reparameterise(block: Any) -> None:
    for part in block.modules():
        if isinstance(part, _REPARAMETERISED):
            _set_sizes(part)
    block.reparameterize()
    if hasattr(block, "id_tensor"):
        del block.id_tensor  # the identity as a convolution, which is now part of the weights


def _set_sizes(block: Any) -> None:
    """Set what timm wrote down of a block's channels to those that its branches have now."""
    branches = {name: layer for name, layer in block.named_modules() if not name.startswith(("se.", "attn."))}
    convolutions = [layer for layer in branches.values() if isinstance(layer, nn.Conv2d)]
    if convolutions:
        first = convolutions[0]
        sizes = {"in_chs": first.in_channels, "out_chs": first.out_channels, "groups": first.groups}
    else:  # nothing but a batch norm, channel by channel
        sizes = dict.fromkeys(("in_chs", "out_chs", "groups"), block.identity.num_features)
    for name, size in (sizes | {"dim": sizes["in_chs"]}).items():
        if hasattr(block, name):
            setattr(block, name, size)
