"""Classifiers that know nothing of widths become elastic: timm's, unchanged, by tracing. And what must be refused."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from contract import Used, image, same, shake
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.nn import available_widths, extract, set_width, slim

NAMES = (
    "densenet121",  # dense concatenation, part by part
    "efficientnet_lite0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "regnety_002",
    "resnet18",
    "resnet50",
    "wide_resnet50_2",
)
FEWER = {"wide_resnet50_2": {"layers": (2, 1, 1, 1)}}  # blocks; the whole has 69 million parameters
WIDTHS = (1.0, 0.5, 0.25)
SIZE = (64, 64)


@pytest.fixture(scope="module", params=NAMES)
def plain(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    # Shaken, so that no residual branch is silent, as zero-initialised ones are.
    return shake(timm.create_model(request.param, pretrained=False, **FEWER.get(request.param, {}))).eval()


@pytest.fixture(scope="module")
def elastic(plain: nn.Module) -> nn.Module:
    return slim(copy.deepcopy(plain), WIDTHS).eval()


@pytest.fixture(scope="module")
def trained(elastic: nn.Module) -> nn.Module:
    """With norms that differ from width to width."""
    return shake(copy.deepcopy(elastic))


@pytest.mark.usefixtures("_no_grad")
class TestClassifiers:
    @pytest.fixture
    def _no_grad(self):
        with torch.no_grad():
            yield

    def test_full_width_is_the_original(self, plain: nn.Module, elastic: nn.Module) -> None:
        set_width(elastic, 1.0)
        assert available_widths(elastic) == WIDTHS
        assert torch.equal(elastic(image(SIZE)), plain(image(SIZE)))
        assert torch.equal(extract(elastic, 1.0)(image(SIZE)), plain(image(SIZE)))

    def test_plain_weights_load_before_and_after(self, plain: nn.Module, elastic: nn.Module) -> None:
        other = shake(copy.deepcopy(plain))
        for parameter in other.parameters():
            parameter.mul_(1.25)
        after = copy.deepcopy(elastic)
        after.load_state_dict(other.state_dict())
        before = slim(other, WIDTHS).eval()
        for width in WIDTHS:
            set_width(after, width)
            set_width(before, width)
            assert torch.equal(after(image(SIZE)), before(image(SIZE)))

    @pytest.mark.parametrize("width", WIDTHS)
    def test_slice_equals_extraction(self, trained: nn.Module, width: float) -> None:
        """Outputs, and parameters as counted from the shapes of the operands that the slice computes with."""
        set_width(trained, width)
        with Used() as used:
            sliced = trained(image(SIZE))
        small = extract(trained, width)
        assert sliced.shape == (2, 1000)
        same(small(image(SIZE)), sliced)
        assert sum(parameter.numel() for parameter in small.parameters()) == used.parameters
        assert not any(hasattr(module, "dial") for module in small.modules())


def test_convolutions_shrink_and_depthwise_stay_depthwise() -> None:
    elastic = slim(timm.create_model("mobilenetv2_100"), WIDTHS)
    wide, small = extract(elastic, 1.0), extract(elastic, 0.25)
    pairs = [(conv, small.get_submodule(name)) for name, conv in wide.named_modules() if isinstance(conv, nn.Conv2d)]
    depthwise = [(a, b) for a, b in pairs if a.groups > 1]
    assert depthwise
    assert all(b.groups == b.in_channels == b.out_channels < a.groups for a, b in depthwise)
    assert all(b.out_channels < a.out_channels for a, b in pairs if a.out_channels > 32)
    assert small.conv_stem.in_channels == 3


class _Net(nn.Module):
    def __init__(self, mix: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mix = mix
        self.head = nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.stem(x)))


class _Fixed(nn.Module):
    """Mixes channels and pixels by a size written into the code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.channels, 2 * x.shape[2], x.shape[3])


class _FixedOnce(_Fixed):
    """The same count of channels as its input, but written down: it breaks at narrow widths only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.channels, *x.shape[2:])


class _Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :8]


class _Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(x, 2)


@pytest.mark.parametrize(
    ("mix", "channels"), [(_Fixed(8), 8), (_FixedOnce(16), 16), (_Half(), 8), (_Pixels(), 4)], ids=str
)
def test_what_cannot_shrink_is_refused_by_name(mix: nn.Module, channels: int) -> None:
    model = _Net(mix, channels)
    assert model(image(SIZE)).shape[1] == 5
    with pytest.raises(ModelError, match="'mix'"):
        slim(model, WIDTHS)
    assert [type(child) for child in model.children()] == [nn.Conv2d, type(mix), nn.Conv2d]  # left as it was


def test_slimming_twice_is_refused() -> None:
    model = slim(timm.create_model("mobilenetv3_small_100"), WIDTHS)
    with pytest.raises(ModelError, match="elastic already"):
        slim(model, WIDTHS)
