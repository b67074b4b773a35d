"""DeepLabV3+: true output strides, the paper's channel counts, encoder weights from files, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from litheseg.errors import ModelError
from litheseg.models.deeplabv3plus import ENCODERS, deeplabv3plus


def _meta(**arguments: object) -> nn.Module:
    """A model without memory: shapes only."""
    with torch.device("meta"):
        return deeplabv3plus(5, **arguments).to("meta")  # type: ignore[arg-type]


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_output_stride_is_true(encoder: str, output_stride: int) -> None:
    model = _meta(encoder=encoder, output_stride=output_stride).eval()
    maps = model.encoder(torch.empty(1, 3, 128, 192, device="meta"))
    assert maps[-1].shape[-2:] == (128 // output_stride, 192 // output_stride)
    assert maps[model._low].shape[-2:] == (32, 48)
    strided = [m for m in model.encoder.modules() if getattr(m, "stride", 1) in (2, (2, 2))]
    dilated = [m for m in model.encoder.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1]
    assert strided and dilated
    assert model(torch.empty(1, 3, 65, 97, device="meta")).shape == (1, 5, 65, 97)


@pytest.mark.parametrize(("output_stride", "rates"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
def test_channels_and_rates_are_the_papers(output_stride: int, rates: list[int]) -> None:
    model = _meta(encoder="resnet18", output_stride=output_stride)
    assert [branch[0].dilation[0] for branch in model.aspp.dilated] == rates
    assert model.aspp.merge[0].weight.shape == (256, 5 * 256, 1, 1)
    assert model.low_level[0].weight.shape == (48, 64, 1, 1)
    assert [block[0].weight.shape for block in model.decoder] == [(256, 304, 3, 3), (256, 256, 3, 3)]
    assert model.classifier.weight.shape == (5, 256, 1, 1)


@pytest.mark.parametrize(
    ("encoder", "giga_macs"), [("resnet101s", 58.90), ("wide_resnet50_2", 90.95), ("resnet18d", 17.17)]
)
def test_encoders_cost_what_mgd_says(encoder: str, giga_macs: float) -> None:
    """At 512 x 512 and output stride 16: its two teachers and its student."""
    model = _meta(encoder=encoder).eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.encoder(torch.empty(1, 3, 512, 512, device="meta"))
    assert flops.get_total_flops() / 2e9 == pytest.approx(giga_macs, abs=0.005)


def test_heads_exist_in_training_only() -> None:
    model = deeplabv3plus(5, encoder="mobilenetv3_small_100", aux_head=True, boundary_head=True)
    image = torch.rand(2, 3, 64, 96)
    shapes = {name: tuple(value.shape) for name, value in model.outputs(image).items()}
    assert shapes == {
        "logits": (2, 5, 16, 24),
        "features": (2, 256, 16, 24),
        "aux": (2, 5, 4, 6),
        "boundary": (2, 1, 16, 24),
    }
    assert set(model.eval().outputs(image)) == {"logits", "features"}


@pytest.mark.parametrize("encoder", ["mobilenetv3_small_100", "resnet18", "mobilenetv4_conv_small"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_encoder_starts_from_a_file(encoder: str, suffix: str, tmp_path: Path) -> None:
    classifier = timm.create_model(encoder)
    path = tmp_path / f"weights{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(classifier.state_dict(), path)
    model = deeplabv3plus(5, encoder=encoder, encoder_weights=path)
    state = classifier.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.encoder.state_dict().items())


def test_stage_names_that_timm_joins_are_found(tmp_path: Path) -> None:
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "weights.pth")
    model = deeplabv3plus(5, encoder="convnext_atto", encoder_weights=tmp_path / "weights.pth")
    assert any(key.startswith("stages_0") for key in model.encoder.state_dict())


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As another library may call them, and without the counters that old files lack."""
    names = (key for key in state if not key.endswith("num_batches_tracked"))
    return {f"_layer{index}.{key.rpartition('.')[2]}": state[key] for index, key in enumerate(names)}


@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "resnet18d"])
def test_weights_under_other_names_are_matched_by_order(encoder: str, tmp_path: Path) -> None:
    classifier = timm.create_model(encoder)
    state = classifier.state_dict()
    torch.save(_renamed(state), tmp_path / "weights.pth")
    model = deeplabv3plus(5, encoder=encoder, encoder_weights=tmp_path / "weights.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.encoder.state_dict().items())


def test_weights_under_other_names_must_fit_one_by_one(tmp_path: Path) -> None:
    state = _renamed(timm.create_model("resnet18").state_dict())
    torch.save(state, tmp_path / "r18.pth")
    with pytest.raises(ModelError, match=r"r18.pth: '.*' (has shape|is missing).*same encoder"):
        deeplabv3plus(5, encoder="resnet50", encoder_weights=tmp_path / "r18.pth")
    safetensors.torch.save_file(state, tmp_path / "r18.safetensors")  # its order is that of its names
    with pytest.raises(ModelError, match=r"'conv1.weight' is missing"):
        deeplabv3plus(5, encoder="resnet18", encoder_weights=tmp_path / "r18.safetensors")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ModelError, match=r"r18.pth: '.*is needed.*same encoder"):
        deeplabv3plus(5, encoder="resnet50", encoder_weights=tmp_path / "r18.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ModelError, match=f"{name}: not a readable state dict"):
            deeplabv3plus(5, encoder_weights=tmp_path / name)
    with pytest.raises(ModelError, match=r"absent\.pth"):
        deeplabv3plus(5, encoder_weights=tmp_path / "absent.pth")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ModelError, match="weights-only"):
        deeplabv3plus(5, encoder_weights=tmp_path / "module.pth")


def test_encoders_that_cannot_serve_are_refused() -> None:
    with pytest.raises(ModelError, match="Did you mean 'resnet18'"):
        deeplabv3plus(5, encoder="resnet-18")
    with pytest.raises(ModelError, match="Choose from: efficientnet_lite0"):
        deeplabv3plus(5, encoder="?")
    for encoder in ("vit_tiny_patch16_224", "densenet121", "vgg11", "hrnet_w18"):
        with pytest.raises(ModelError, match=f"'{encoder}'.*use one of"):
            deeplabv3plus(5, encoder=encoder)
    with pytest.raises(ModelError, match="16 or 8"):
        deeplabv3plus(5, output_stride=32)


def test_pretrained_without_a_network_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"no pretrained weights of encoder 'resnet18'.*encoder_weights"):
        deeplabv3plus(5, pretrained="auto")
