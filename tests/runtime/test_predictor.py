from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from registry import registered
from tiny_colours import GREEN, colour_bundle, dominant, picture, truth
from torch import Tensor, nn

import litheseg.runtime.predictor as room
from litheseg.deploy import torch_engine
from litheseg.errors import BundleError, DataError, LithesegError, WidthError
from litheseg.models import bundle as bundles
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.runtime.predictor import Predictor

_registered = registered(dominant=dominant)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    colour_bundle(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return load_bundle(path)


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_mask_has_the_images_own_size_and_the_right_classes(path: Path, width: float) -> None:
    mask = Predictor(path, width=width)(picture())
    assert mask.dtype == np.uint8 and mask.shape == (24, 40)
    assert np.array_equal(mask, truth())


@pytest.mark.parametrize("size", ["training", None, (5, 7)])
@pytest.mark.parametrize("shape", [(1, 1), (24, 40), (3, 50), (37, 11)])
def test_any_size(bundle: Bundle, size: object, shape: tuple[int, int]) -> None:
    assert Predictor(bundle, size=size)(np.full((*shape, 3), GREEN, np.uint8)).tolist() == np.ones(shape).tolist()


def test_every_kind_of_image_gives_the_same_mask(bundle: Bundle, tmp_path: Path) -> None:
    pixels, predictor = picture(), Predictor(bundle)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    rgba = np.dstack([pixels, np.full((24, 40), 255, np.uint8)])
    kinds = [
        *(file, str(file), Image.open(file), Image.fromarray(pixels), Image.fromarray(pixels).quantize()),
        *(rgba, Image.fromarray(rgba), chw, chw[None], chw.float() / 255, chw.double()[None] / 255),
        pixels[:, ::-1][:, ::-1],
    ]
    for image in kinds:
        assert np.array_equal(predictor(image), truth())


def test_alpha_is_laid_over_black_in_every_kind(bundle: Bundle, tmp_path: Path) -> None:
    rgba = np.dstack([picture(), np.full((24, 40), 100, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = room.to_rgb(tmp_path / "a.png")
    assert expected.max() == 100
    for image in (rgba, Image.fromarray(rgba), torch.from_numpy(rgba).permute(2, 0, 1)):
        assert np.array_equal(room.to_rgb(image), expected)


def test_grey_in_every_kind(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    expected = np.repeat(grey[:, :, None], 3, 2)
    for image in (grey, grey[:, :, None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(room.to_rgb(image), expected)


@pytest.mark.parametrize("lazy", [True, False])
def test_exif_orientation_is_applied(bundle: Bundle, tmp_path: Path, lazy: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture())).save(tmp_path / "a.png", exif=exif)
    image = tmp_path / "a.png" if lazy else Image.open(tmp_path / "a.png")
    assert np.array_equal(Predictor(bundle)(image), truth())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "array of float64; convert it to uint8"),
        (np.zeros((4, 4, 5), np.uint8), "array of shape"),
        (np.zeros((0, 4, 3), np.uint8), "array of shape"),
        (np.zeros(4, np.uint8), "array of shape"),
        (torch.zeros(2, 3, 4, 4), "one image as C x H x W"),
        (torch.zeros(5, 4, 3), "one image as C x H x W"),
        (torch.full((3, 4, 4), 2.0), r"outside \[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), r"outside \[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64; convert it to uint8"),
        (Image.new("F", (4, 4)), "floating-point"),
        (Image.new("I;16", (4, 4)), "16-bit"),
        ("nothing.png", "nothing.png does not exist"),
        (b"bytes", "cannot label a bytes"),
    ],
)
def test_images_of_another_kind(bundle: Bundle, image: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Predictor(bundle)(image)  # type: ignore[arg-type]


def test_normalisation_and_resize_are_the_bundles_own(bundle: Bundle) -> None:
    seen: list[Tensor] = []
    predictor = Predictor(bundle)
    predictor.module().features.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    predictor(np.full((3, 5, 3), 255, np.uint8))
    assert seen[0].shape == (1, 3, 8, 16)
    torch.testing.assert_close(seen[0], torch.full((1, 3, 8, 16), 2.0))


def test_a_model_trained_on_crops_takes_whole_images_at_their_own_size(bundle: Bundle) -> None:
    crops = Bundle(replace(bundle.header, resizes=False), bundle.state_dict)
    assert (Predictor(crops).size, Predictor(bundle).size) == (None, (8, 16))


def test_widths_are_extracted_when_first_used_and_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    extracted: list[float] = []
    real = bundles.extract

    def counted(module: nn.Module, width: float) -> nn.Module:
        extracted.append(width)
        return real(module, width)

    monkeypatch.setattr(bundles, "extract", counted)
    predictor = Predictor(bundle)
    assert (predictor.width, predictor.widths, extracted) == (1.0, (1.0, 0.5), [1.0])
    for width in (0.5, 1.0, 0.5):
        predictor.set_width(width)
        predictor(picture())
    assert extracted == [1.0, 0.5]
    assert predictor.module(0.5).features.out_channels == 8
    assert predictor.module(1.0).features.out_channels == 16
    predictor.prepare()
    assert extracted == [1.0, 0.5]


def test_one_call_may_have_a_width_of_its_own(bundle: Bundle) -> None:
    predictor = Predictor(bundle)
    predictor(picture(), width=0.5)
    assert predictor.width == 1.0


def test_unavailable_widths_name_the_available_ones(bundle: Bundle) -> None:
    predictor = Predictor(bundle)
    for act in (
        lambda: predictor.set_width(0.3),
        lambda: predictor(picture(), width=0.3),
        lambda: predictor.module(0.3),
        lambda: Predictor(bundle, width=0.3),
    ):
        with pytest.raises(WidthError, match=r"no width 0\.3; available: 1, 0\.5"):
            act()
    assert predictor.width == 1.0


def test_threads_share_a_predictor(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    extracted: list[float] = []
    real = bundles.extract
    monkeypatch.setattr(bundles, "extract", lambda module, width: extracted.append(width) or real(module, width))
    predictor, start = Predictor(bundle), threading.Barrier(4)

    def work(index: int) -> bool:
        start.wait()
        masks = []
        for turn in range(5):
            predictor.set_width((1.0, 0.5)[(index + turn) % 2])
            masks.append(predictor(picture()))
        return all(np.array_equal(mask, truth()) for mask in masks)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert sorted(extracted) == [0.5, 1.0]


def test_large_masks_are_compared_class_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, 6, 7)
    expected = torch_engine._labels(logits, (31, 45))
    monkeypatch.setattr(torch_engine, "_MAX_LOGITS", 1)
    assert torch.equal(torch_engine._labels(logits, (31, 45)), expected)


def test_channels_last_changes_nothing(bundle: Bundle) -> None:
    assert np.array_equal(Predictor(bundle, channels_last=True)(picture()), truth())


def test_modules_can_be_exported_later(bundle: Bundle) -> None:
    predictor = Predictor(bundle)
    predictor(picture())
    assert not any(tensor.is_inference() for tensor in predictor.module().state_dict().values())


def test_wrong_device_size_and_file(bundle: Bundle, tmp_path: Path) -> None:
    for device in ("toaster", "cuda:99"):
        with pytest.raises(LithesegError, match=f"device '{device}' cannot be used here"):
            Predictor(bundle, device=device)
    for size in ("large", (0, 4), (1, 2, 3), 5):
        with pytest.raises(LithesegError, match="size"):
            Predictor(bundle, size=size)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="cannot read"):
        Predictor(tmp_path / "nothing.safetensors")
