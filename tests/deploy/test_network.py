from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import TinyNet, build_tiny, noise, plain_labels, plain_logits, randomise, tiny_bundle
from torch import Tensor, nn

from litheseg.deploy.network import deployed, fold_batch_norms
from litheseg.models import MODELS, build_model
from litheseg.nn import extract, slim

SMALL = {"ddrnet": {"base": 8}, "deeplabv3plus": {"encoder": "mobilenetv2_100"}}


_registered = registered(tiny=build_tiny)


def _norms(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*((name, SMALL.get(name, {})) for name in MODELS), ("ddrnet", {"base": 8, "rep_blocks": True})],
)
def test_no_batch_norm_is_left_of_any_architecture(name: str, arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    plain = extract(randomise(slim(build_model(name, 5, **arguments), (1.0,))), 1.0)
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = plain.double()(image.double())
        unfolded = plain.float()(image)
        fold_batch_norms(plain)
        folded = plain(image)
    assert not _norms(plain)
    # Random statistics make some of these networks amplify: folding may add no more than 32 bits do anyway.
    tolerance = 4 * float((unfolded - expected).abs().max()) + 1e-5 * float(expected.abs().max())
    assert float((folded - expected).abs().max()) <= tolerance


def test_only_norms_that_nothing_can_swallow_remain_as_two_operations() -> None:
    network = randomise(TinyNet(3))
    factors = fold_batch_norms(network)
    assert set(factors) == {"stem.0", "down.0", "up.0"}
    assert type(network.get_submodule("sum_norm")).__name__ == "_ScaleShift"
    assert all(isinstance(network.get_submodule(name), nn.Identity) for name in ("stem.1", "down.1", "up.1"))


class _Awkward(nn.Module):
    """A convolution that is read twice, one that runs twice, and one whose output is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.run_twice, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.grouped, self.norm3 = nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4, affine=False)
        self.returned, self.norm4 = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.read_twice(x)
        first = self.norm1(first) + first.relu()
        second = self.norm2(self.run_twice(self.run_twice(first)))
        last = self.returned(self.norm3(self.grouped(second)))
        return torch.cat((last, self.norm4(last)), 1)


def test_a_convolution_that_others_read_keeps_its_weights() -> None:
    torch.manual_seed(0)
    network = randomise_all(_Awkward())
    image = torch.randn(1, 3, 7, 5)
    with torch.no_grad():
        expected = network(image)
        assert set(fold_batch_norms(network)) == {"grouped"}
        torch.testing.assert_close(network(image), expected, rtol=1e-5, atol=1e-5)
    assert not _norms(network)


def randomise_all(network: nn.Module) -> nn.Module:
    for norm in _norms(network):
        norm.running_mean.uniform_(-1, 1)  # type: ignore[operator, union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    return network.eval()


def test_norms_without_statistics_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert fold_batch_norms(network) == {} and len(_norms(network)) == 1


@pytest.mark.parametrize("width", [1.0, 0.5])
@pytest.mark.parametrize("size", [(24, 32), (65, 97), (1, 1)])
def test_raw_pixels_in_logits_out(tmp_path: Path, width: float, size: tuple[int, int]) -> None:
    bundle, image = tiny_bundle(tmp_path / "m.safetensors"), noise(*size)
    network = deployed(bundle, width)
    expected = plain_logits(bundle, width, image)
    result = network(torch.from_numpy(image)[None])
    assert result.dtype == torch.float32 and result.shape == (1, *expected.shape)
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-4, atol=1e-5)
    channels_first = deployed(bundle, width, layout="NCHW")(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    torch.testing.assert_close(channels_first, result)


def test_labels_are_those_of_upsampled_logits(tmp_path: Path) -> None:
    bundle, image = tiny_bundle(tmp_path / "m.safetensors"), noise(33, 47)
    labels = deployed(bundle, 1.0, output="labels")(torch.from_numpy(image)[None])
    assert labels.dtype == torch.uint8 and labels.shape == (1, 33, 47)
    assert np.array_equal(labels[0].numpy(), plain_labels(plain_logits(bundle, 1.0, image), (33, 47)))


def test_what_only_training_needs_is_gone(tmp_path: Path) -> None:
    network = deployed(tiny_bundle(tmp_path / "m.safetensors"), 0.5)
    assert not any("dropout" in type(module).__name__.lower() for module in network.modules())
    assert not any("aux_head" in name for name, _ in network.named_parameters())
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training
