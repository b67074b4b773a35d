"""Re-parameterisable blocks of timm, at every width: the extraction has one convolution, and computes the same."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from contract import image, shake
from timm.models.byobnet import ByoBlockCfg
from torch import nn

from litheseg.nn import extract, set_width, slim

BRANCHES = {"num_conv_branches": 2}
MOBILEONE = tuple(
    [
        ByoBlockCfg(type="one", d=1, c=channels // 2, gs=1, block_kwargs=BRANCHES, attn_layer="se"),
        ByoBlockCfg(type="one", d=1, c=channels, gs=0, block_kwargs={"kernel_size": 1, **BRANCHES}),
    ]
    for channels in (32, 64)
)
REPVGG = tuple(ByoBlockCfg(type="rep", d=2, c=channels, s=2, gs=0) for channels in (16, 32))
NETWORKS = {
    "mobileone_s0": {"blocks": MOBILEONE, "stem_chs": 16},
    "repvgg_a0": {"blocks": REPVGG, "stem_chs": 16},
    "repvit_m0_9": {"embed_dim": (16, 32, 64, 128), "depth": (2, 1, 1, 1)},
    "fastvit_t8": {"layers": (1, 1, 2, 1), "embed_dims": (16, 32, 64, 128)},
}


def _count(network: nn.Module, kind: type[nn.Module] = nn.Conv2d) -> int:
    return sum(isinstance(layer, kind) for layer in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_become_single_convolutions(name: str) -> None:
    """As many convolutions as timm's own folding of the plain network leaves, and no batch norm in the blocks."""
    torch.manual_seed(0)
    plain = shake(timm.create_model(name, features_only=True, out_indices=(0, 1, 2), **NETWORKS[name])).eval()
    folded = timm.utils.reparameterize_model(plain)
    model = shake(slim(copy.deepcopy(plain), (1.0, 0.5, 0.25))).double().eval()
    x = image((64, 96)).double()
    with torch.no_grad():
        for width in (1.0, 0.5, 0.25):
            set_width(model, width)
            small = extract(model, width)
            assert _count(small) == _count(folded) < _count(plain)
            assert _count(small, nn.BatchNorm2d) == _count(folded, nn.BatchNorm2d)
            for actual, expected in zip(small(x), model(x), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_folded_plain_network_is_timms() -> None:
    """Width 1 of the network with MobileOne's blocks, folded here and by timm."""
    torch.manual_seed(0)
    plain = shake(timm.create_model("mobileone_s0", **NETWORKS["mobileone_s0"])).eval()
    folded = timm.utils.reparameterize_model(plain)
    small = extract(slim(plain, (1.0,)), 1.0)
    assert {name: value.shape for name, value in small.state_dict().items()} == {
        name: value.shape for name, value in folded.state_dict().items()
    }
    with torch.no_grad():
        torch.testing.assert_close(small(image((64, 64))), folded(image((64, 64))), rtol=1e-4, atol=1e-4)
