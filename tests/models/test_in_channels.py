"""Networks for images of one to many channels: all architectures and widths, and pretrained weights by timm's rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from litheseg.cost.counting import count, layer_table
from litheseg.errors import ModelError
from litheseg.models import build_model
from litheseg.models.segmenter import segmenter
from litheseg.nn import extract, set_width, slim

SMALL: dict[str, dict[str, Any]] = {
    "ddrnet": {"base": 8, "head_channels": 8},
    "deeplabv3plus": {"encoder": "resnet18", "channels": 16},
    "erfnet": {},
    "erfnet-dg2*": {},
    "segmenter": {"encoder": "mobilenetv4_conv_small", "pretrained": "none", "channels": 16},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 5])
@torch.no_grad()
def test_every_architecture_at_every_width(name: str, channels: int) -> None:
    torch.manual_seed(0)
    widths = (1.0,) if "dg" in name else (1.0, 0.5)
    elastic = slim(build_model(name, 4, in_channels=channels, **SMALL[name]), widths).eval()
    image = torch.rand(1, channels, 64, 96)
    for width in widths:
        set_width(elastic, width)
        plain = extract(elastic, width)
        first = next(layer for layer in plain.modules() if isinstance(layer, nn.Conv2d))
        assert first.in_channels == channels
        torch.testing.assert_close(plain(image), elastic(image), rtol=1e-4, atol=1e-4)
        with FlopCounterMode(display=False) as flops:
            plain(image)
        assert count(plain, (64, 96)).macs == flops.get_total_flops() // 2
        assert sum(row.macs for row in layer_table(plain, (64, 96))) == flops.get_total_flops() // 2


@pytest.mark.parametrize("encoder", ["mobilenetv4_conv_small", "fastvit_t8", "resnet18d"])
@pytest.mark.parametrize("channels", [1, 4, 5])
@torch.no_grad()
def test_pretrained_weights_are_adapted_as_timm_does(encoder: str, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "rgb.safetensors"
    safetensors.torch.save_file(timm.create_model(encoder).state_dict(), file)
    overlay = {"file": str(file)}
    how: dict[str, Any] = {"in_chans": channels, "features_only": True, "pretrained_cfg_overlay": overlay}
    expected = timm.create_model(encoder, pretrained=True, **how).eval()
    found = segmenter(3, encoder=encoder, encoder_weights=file, in_channels=channels).eval()
    image = torch.rand(1, channels, 64, 64)
    for ours, theirs in zip(found.encoder(image), expected(image), strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_equal_channels_give_what_grey_gives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "rgb.safetensors"
    safetensors.torch.save_file(timm.create_model("mobilenetv4_conv_small").state_dict(), file)
    how: dict[str, Any] = {"encoder": "mobilenetv4_conv_small", "encoder_weights": file}
    grey = torch.rand(1, 1, 64, 64)
    expected = segmenter(3, **how).eval().encoder(grey.expand(-1, 3, -1, -1))[-1]
    for channels in (1, 6):
        found = segmenter(3, in_channels=channels, **how).eval().encoder(grey.expand(-1, channels, -1, -1))[-1]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_erfnet_passes_on_15_channels_at_most() -> None:
    build_model("erfnet", 3, in_channels=15)
    with pytest.raises(ModelError, match="15 channels at most, not 16; use segmenter or ddrnet"):
        build_model("erfnet", 3, in_channels=16)
