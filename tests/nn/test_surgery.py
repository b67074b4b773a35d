from __future__ import annotations

import pytest
import torch
from torch import nn

from litheseg.errors import ModelError
from litheseg.models import build_model
from litheseg.nn import extract, slim
from litheseg.nn.efficient import Efficient
from litheseg.nn.surgery import densified, grouped_layers, to_dense


def layers() -> list[nn.Conv2d]:
    return [
        nn.Conv2d(8, 12, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=(2, 1), groups=8, bias=False),
        nn.Conv2d(8, 16, 1, stride=2, groups=2),
        nn.Conv2d(6, 9, 5, padding="same", groups=3),
    ]


@pytest.mark.parametrize("layer", layers(), ids=str)
def test_the_dense_layer_is_the_grouped_one_exactly(layer: nn.Conv2d) -> None:
    """Integers in float64: sums are exact in any order, so the difference is 0 and not merely small."""
    layer = layer.double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-9, 10, parameter.shape))
    dense = to_dense(layer)
    image = torch.randint(-9, 10, (2, layer.in_channels, 11, 13)).double()
    assert dense.groups == 1
    assert (dense(image) - layer(image)).abs().max() == 0


@pytest.mark.parametrize("layer", layers(), ids=str)
def test_the_dense_weight_is_block_diagonal(layer: nn.Conv2d) -> None:
    weight = to_dense(layer).weight
    rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    for place in torch.cartesian_prod(torch.arange(weight.shape[2]), torch.arange(weight.shape[3])):
        blocks = [part[:, :, place[0], place[1]] for part in layer.weight.split(rows)]
        assert torch.equal(weight[:, :, place[0], place[1]], torch.block_diag(*blocks))
    assert weight.count_nonzero() <= layer.weight.numel() and columns * layer.groups == weight.shape[1]


def network(width: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("ddrnet", num_classes=5, base=8, efficient=Efficient(groups=2, where="encoder,3x3"))
    return extract(slim(model, (1.0, 0.5)), width)


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_a_network_with_dense_layers_computes_the_same(width: float) -> None:
    module = network(width).double()
    names = list(grouped_layers(module))
    chosen = names[::2]
    dense = densified(module, chosen)
    assert set(grouped_layers(dense)) == set(names) - set(chosen)
    assert set(grouped_layers(module)) == set(names), "the module itself stays as it was"
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(dense(image), module(image), rtol=0, atol=1e-12)
    assert densified(module, []) is module


def test_a_name_that_is_not_grouped() -> None:
    with pytest.raises(ModelError, match=r"'classifier' is no grouped convolution .* it has: stem"):
        densified(network(), ["classifier"])
