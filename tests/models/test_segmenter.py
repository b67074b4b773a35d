"""The segmenter: backbones and decoders, and pretrained weights from a package, a hub, or none."""

from __future__ import annotations

import hashlib
import http.server
import math
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import warm
from PIL import Image
from torch import nn

from litheseg.errors import ModelError
from litheseg.models import build_model
from litheseg.models.encoders import PACKAGES, pretrained_weights
from litheseg.models.segmenter import BACKBONES, DECODERS, segmenter

CNNS = sorted(set(BACKBONES) - {"vit_small_patch14_dinov2"})


@pytest.mark.parametrize("encoder", CNNS)
def test_any_backbone_gives_logits_at_stride_4(encoder: str) -> None:
    with torch.device("meta"):
        model = segmenter(5, encoder=encoder, pretrained="none", aux_head=True, boundary_head=True)
    outputs = model.train().outputs(torch.empty(2, 3, 64, 96, device="meta"))
    assert outputs["logits"].shape == (2, 5, 16, 24)
    assert outputs["boundary"].shape == (2, 1, 16, 24)
    assert outputs["aux"].shape[:2] == (2, 5)
    assert model(torch.empty(2, 3, 65, 97, device="meta")).shape == (2, 5, 65, 97)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_learns(decoder: str) -> None:
    torch.manual_seed(0)
    model = segmenter(5, encoder="mobilenetv4_conv_small", decoder=decoder, channels=32, pretrained="none").train()
    outputs = model.outputs(torch.rand(2, 3, 64, 96))
    assert outputs["logits"].shape[-2:] == ((8, 12) if decoder == "lraspp" else (16, 24))
    outputs["logits"].square().mean().backward()
    unused = [name for name, value in model.named_parameters() if value.grad is None]
    assert unused == []


@pytest.mark.parametrize("num_classes", [2, 40])
@pytest.mark.parametrize("model", ["segmenter", "ddrnet", "deeplabv3plus"])
def test_a_network_does_not_begin_sure_of_wrong_classes(model: str, num_classes: int) -> None:
    torch.manual_seed(0)
    network = build_model(model, num_classes=num_classes, **({} if model == "ddrnet" else {"pretrained": "none"}))
    loss = F.cross_entropy(network.train()(torch.rand(2, 3, 64, 64)), torch.randint(num_classes, (2, 64, 64)))
    assert loss < math.log(num_classes) + 0.6


@pytest.mark.parametrize("model", ["segmenter", "deeplabv3plus"])
def test_a_network_knows_whether_its_encoder_brought_weights(model: str) -> None:
    chosen = {"encoder": "efficientnet_lite0", "channels": 32}
    assert build_model(model, num_classes=3, pretrained="auto", **chosen).pretrained_encoder is True
    assert build_model(model, num_classes=3, pretrained="none", **chosen).pretrained_encoder is False


def test_one_image_is_a_batch() -> None:
    network = segmenter(5, encoder="mobilenetv4_conv_small", channels=32, pretrained="none").train()
    assert network(torch.rand(1, 3, 64, 96)).isfinite().all()


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_a_vision_transformer_takes_any_size_and_resizes_its_positions(encoder: str) -> None:
    torch.manual_seed(0)
    model = segmenter(5, encoder=encoder, pretrained="none", channels=32).eval()
    with torch.no_grad():
        for size in ((64, 96), (50, 130), (8, 8)):
            assert model(torch.rand(1, 3, *size)).shape == (1, 5, *size)


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ModelError, match="Did you mean 'efficientnet_lite0'"):
        segmenter(5, encoder="efficientnet_lite00")
    with pytest.raises(ModelError, match=r"at strides|no feature maps"):
        segmenter(5, encoder="levit_128", pretrained="none")
    with pytest.raises(ModelError, match="Did you mean 'swiftnet'"):
        segmenter(5, decoder="swiftnett")
    with pytest.raises(ModelError, match="choose auto or none"):
        segmenter(5, pretrained="yes")  # type: ignore[arg-type]


# --- pretrained weights ----------------------------------------------------------------------------------------------

KNOWN = {"coffee": {967, 968}, "chelsea": set(range(281, 287)), "rocket": {657, 744}, "camera": {872}}
"""What is on scikit-image's photographs, as classes of ImageNet: espresso or cup, a cat, a missile, a tripod."""


@pytest.mark.parametrize("encoder", PACKAGES)
def test_weights_of_a_package_classify_photographs(encoder: str) -> None:
    pytest.importorskip(PACKAGES[encoder][0])
    data = pytest.importorskip("skimage.data")
    model = timm.create_model(encoder).eval()
    model.load_state_dict(pretrained_weights(encoder), strict=True)
    for name, classes in KNOWN.items():
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        side = min(photo.size)
        left, top = ((extent - side) // 2 for extent in photo.size)
        photo = photo.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            assert int(model(pixels).argmax()) in classes, f"{encoder} on {name}"


def test_the_encoder_starts_from_the_package() -> None:
    pytest.importorskip(PACKAGES["efficientnet_lite0"][0])
    model = segmenter(5)
    expected = pretrained_weights("efficientnet_lite0")
    assert torch.equal(model.encoder.conv_stem.weight, expected["conv_stem.weight"])
    stem = next(layer for layer in model.encoder.modules() if isinstance(layer, nn.BatchNorm2d))
    assert torch.equal(stem.running_var, expected["bn1.running_var"])


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "repvit_m0_9"])
def test_weights_are_found_by_their_names_in_the_classifier(encoder: str, tmp_path: Path) -> None:
    """A .safetensors file keeps no order: a transformer's feature network wraps it, others are cut into stages."""
    state = timm.create_model(encoder).state_dict()
    safetensors.torch.save_file(state, tmp_path / "classifier.safetensors")
    model = segmenter(5, encoder=encoder, encoder_weights=tmp_path / "classifier.safetensors")
    encoded = model.encoder.features.model if encoder.startswith("vit") else model.encoder
    for name, value in encoded.state_dict().items():
        own = {key.replace(".", "_"): stored for key, stored in state.items()}[name.replace(".", "_")]
        assert torch.equal(value, own), name


class _Hub(http.server.BaseHTTPRequestHandler):
    """A Hugging Face hub of one file."""

    content = b""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()
        self.wfile.write(self.content)

    def _answer(self) -> None:
        if not self.path.endswith("/model.safetensors"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


STARTS = """
import os, sys
again = ("huggingface_hub", "litheseg", "timm")  # the hub's library reads its settings once, when it is imported
for name in [name for name in sys.modules if name.partition(".")[0] in again]:
    del sys.modules[name]
from litheseg.models.segmenter import segmenter
for line in sys.stdin:
    if not os.fork():
        try:
            encoder = segmenter(5, encoder="mobilenetv4_conv_small", channels=32).encoder
            print(float(encoder.conv_stem.weight.sum()), end="", flush=True)
        except Exception as error:
            print(error, end="", flush=True)
        os._exit(0)
    os.wait()
    print(flush=True)
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What new processes say that build a segmenter: before there is a hub, with one, and once it is gone again."""
    torch.manual_seed(5)
    state = timm.create_model("mobilenetv4_conv_small").state_dict()
    content = safetensors.torch.save({name: value.contiguous() for name, value in state.items()})
    handler = type("Hub", (_Hub,), {"content": content})
    environment = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("hub")), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False) as server:
        server.server_bind()
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        with warm.start(["-c", STARTS], env=environment, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None

            def answer() -> str:
                print(file=process.stdin, flush=True)
                return str(process.stdout.readline().strip())

            answers = [answer()]
            server.server_activate()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            answers.append(answer())
            server.shutdown()
            server.server_close()
            answers.append(answer())
            process.stdin.close()
            assert process.wait() == 0, process.stderr.read()
    return answers


def test_without_a_network_the_three_remedies_are_named(started: list[str]) -> None:
    message = started[0]
    assert "no pretrained weights of encoder 'mobilenetv4_conv_small'" in message
    assert "go online" in message and "encoder_weights" in message and "pretrained=none" in message


def test_weights_come_from_a_hub_and_then_from_its_cache(started: list[str]) -> None:
    torch.manual_seed(5)
    expected = float(timm.create_model("mobilenetv4_conv_small").conv_stem.weight.sum().detach())
    assert [float(answer) for answer in started[1:]] == pytest.approx([expected, expected])
