"""Views: image and mask stay aligned, padding is ignored, colour means what torchvision means by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from litheseg.data.loading.transforms import Augment, apply_views, normalise
from litheseg.errors import DataError
from litheseg.masks.image_format import ImageFormat

UNIT = {"normalisation": ImageFormat(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))}
STILL = {"scale": (1.0, 1.0), "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
GEOMETRY = {key: 0.0 for key in ("brightness", "contrast", "saturation", "hue")}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 4, height: int = 20, width: int = 30) -> tuple[Tensor, Tensor]:
    image = torch.randint(0, 256, (count, 3, height, width), generator=generator(1), dtype=torch.uint8)
    return image, torch.randint(0, 11, (count, height, width), generator=generator(2), dtype=torch.uint8)


def view(image: Tensor, mask: Tensor, augment: Augment, crop: tuple[int, int], seed: int = 0, **colour: object):
    source = (image.shape[-2], image.shape[-1])
    parameters = augment.parameters(len(image), generator(seed), source=source, crop=crop)
    return apply_views(image, mask, parameters, crop=crop, **colour)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("crop", [(40, 60), (17, 90), (100, 25)])
def test_image_and_mask_stay_aligned(axis: int, crop: tuple[int, int]) -> None:
    """Each pixel and each label hold their own row (or column), so blending and choosing must agree to rounding."""
    ramp = torch.arange(40 if axis == 0 else 60, dtype=torch.uint8)
    plane = (ramp[:, None] if axis == 0 else ramp).expand(8, 40, 60).contiguous()
    image = plane[:, None].expand(8, 3, 40, 60)
    found, labels = view(image, plane, Augment(**GEOMETRY), crop, **UNIT)  # type: ignore[arg-type]
    inside = labels != 255
    assert 0.1 < inside.float().mean() <= 1
    error = (found * 255 - labels[:, None]).abs().amax(1)
    assert error[inside].max() <= 0.5 + 1e-3
    assert torch.equal(found[~inside[:, None].expand_as(found)].unique(), torch.zeros(int((~inside).any())))


def test_no_augmentation_copies_pixels() -> None:
    image, mask = batch()
    found, labels = view(image, mask, Augment.none(), (20, 30))
    torch.testing.assert_close(found, normalise(image), atol=1e-4, rtol=0)
    assert torch.equal(labels, mask.long())


def test_flip_is_exact_and_as_likely_as_asked() -> None:
    image, mask = batch()
    found, labels = view(image, mask, Augment(**STILL | {"flip": 1.0}), (20, 30))
    torch.testing.assert_close(found, normalise(image.flip(-1)), atol=1e-4, rtol=0)
    assert torch.equal(labels, mask.flip(-1).long())
    found, labels = view(image, mask, Augment(**STILL | {"flip_vertical": 1.0}), (20, 30))
    torch.testing.assert_close(found, normalise(image.flip(-2)), atol=1e-4, rtol=0)
    assert torch.equal(labels, mask.flip(-2).long())
    augment = Augment(flip=0.25, flip_vertical=0.5)
    parameters = augment.parameters(4000, generator(), source=(8, 8), crop=(8, 8))
    sideways, upside_down = parameters[:, 0] < 0, parameters[:, 2] < 0
    assert 0.22 < sideways.float().mean() < 0.28
    assert 0.45 < upside_down[sideways].float().mean() < 0.55  # whether or not it is mirrored sideways
    assert 0.47 < upside_down[~sideways].float().mean() < 0.53


def test_crops_at_scale_one_are_windows_of_the_image() -> None:
    image, mask = batch(8)
    _, labels = view(image, mask, Augment(**STILL), (7, 9))
    for label, whole in zip(labels, mask, strict=True):
        windows = whole.unfold(0, 7, 1).unfold(1, 9, 1).reshape(-1, 7, 9)
        assert (windows == label).all((1, 2)).any()


def test_crops_reach_every_edge() -> None:
    positions = torch.arange(20 * 30).view(20, 30) % 251
    mask = positions.to(torch.uint8).expand(400, 20, 30).contiguous()
    _, labels = view(mask[:, None].expand(-1, 3, -1, -1), mask, Augment(**STILL), (18, 28))
    assert set(labels[:, 0, 0].tolist()) == set(positions[:3, :3].flatten().tolist())


def test_small_images_are_padded_with_ignore_and_the_mean_colour() -> None:
    image, mask = batch(6, 4, 5)
    found, labels = view(image, mask, Augment(**STILL | {"brightness": 0.5}), (9, 11))
    inside = labels != 255
    assert inside.sum((1, 2)).eq(20).all()
    assert found.permute(0, 2, 3, 1)[~inside].abs().max() == 0


@pytest.mark.parametrize("scale", [(0.1, 0.2), (1.0, 1.0), (3.0, 9.0)])
def test_one_pixel_images_leave_at_least_a_label(scale: tuple[float, float]) -> None:
    image, mask = batch(16, 1, 1)
    found, labels = view(image, mask, Augment(scale=scale), (5, 6))
    assert found.isfinite().all()
    assert (labels != 255).any((1, 2)).all()


def test_scale_zooms_within_its_range() -> None:
    parameters = Augment(scale=(0.5, 2.0)).parameters(2000, generator(), source=(10, 10), crop=(10, 10))
    zoom = 1 / parameters[:, 2]
    assert 0.5 <= zoom.min() < 0.52 and 1.95 < zoom.max() <= 2.0
    assert 0.45 < (zoom < 1).float().mean() < 0.55


def test_ignored_pixels_stay_ignored() -> None:
    image, mask = batch()
    _, labels = view(image, torch.full_like(mask, 255), Augment(), (20, 30))
    assert labels.eq(255).all()


@pytest.mark.parametrize(
    ("name", "adjust"),
    [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast), ("saturation", tv.adjust_saturation)],
)
def test_colour_steps_mean_what_torchvision_means(name: str, adjust: object) -> None:
    image, mask = batch(8)
    image = image // 4 + 96  # far from black and white, where clipping would come in
    augment = Augment(**STILL | {name: 0.2})  # type: ignore[arg-type]
    found, _ = view(image, mask, augment, (20, 30), **UNIT)
    column = {"brightness": 4, "contrast": 5, "saturation": 6}[name]
    factors = 1 + (2 * augment.draw(8, generator())[:, column] - 1) * 0.2
    for one, original, factor in zip(found, image.float() / 255, factors.tolist(), strict=True):
        torch.testing.assert_close(one, adjust(original, factor), atol=2e-3, rtol=0)  # type: ignore[operator]


def test_hue_keeps_grey_and_luma_and_a_full_turn_is_none() -> None:
    image, mask = batch(8)
    image = image // 8 + 112
    found, _ = view(image, mask, Augment(**STILL | {"hue": 0.2}), (20, 30), **UNIT)  # type: ignore[arg-type]
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((found * luma).sum(1), (image / 255 * luma).sum(1), atol=1e-4, rtol=0)
    assert (found - image / 255).abs().amax((1, 2, 3)).max() > 0.01
    grey = image[:, :1].expand(-1, 3, -1, -1)
    found, _ = view(grey, mask, Augment(**STILL | {"hue": 0.5}), (20, 30), **UNIT)  # type: ignore[arg-type]
    torch.testing.assert_close(found, grey / 255, atol=1e-4, rtol=0)


def test_padding_does_not_count_in_the_mean_grey() -> None:
    image, mask = batch(2, 6, 6)
    image = image // 4 + 96
    augment = Augment(**STILL | {"contrast": 0.2})  # type: ignore[arg-type]
    whole, _ = view(image, mask, augment, (6, 6), **UNIT)
    padded, labels = view(image, mask, augment, (30, 30), **UNIT)
    for one, other, label in zip(whole, padded, labels, strict=True):
        torch.testing.assert_close(one.flatten(1), other[:, label != 255], atol=1e-3, rtol=0)


def test_views_are_samplewise_and_repeatable() -> None:
    image, mask = batch(4)
    parameters = Augment().parameters(4, generator(), source=(20, 30), crop=(16, 16))
    again = Augment().parameters(4, generator(), source=(20, 30), crop=(16, 16))
    assert torch.equal(parameters, again) and parameters.dtype == torch.float32
    whole, labels = apply_views(image, mask, parameters, crop=(16, 16))
    part, part_labels = apply_views(image[2:], mask[2:], parameters[2:], crop=(16, 16))
    torch.testing.assert_close(whole[2:], part)
    assert torch.equal(labels[2:], part_labels)
    assert torch.equal(image, batch(4)[0])  # the cache hands out its own tensors: nothing may write to them


def test_autocast_does_not_coarsen_views() -> None:
    image, mask = batch()
    expected, _ = view(image, mask, Augment(), (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = view(image, mask, Augment(), (16, 16))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"augment.scale is \(0.0, 1.0\)"),
        ({"scale": (2.0, 1.0)}, "low <= high"),
        ({"flip": 1.5}, r"augment.flip is 1.5; give a number in \[0, 1\]"),
        ({"hue": 0.6}, "augment.hue is 0.6"),
        ({"contrast": -0.1}, "augment.contrast"),
    ],
)
def test_ranges_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Augment(**values)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_never_wait_for_the_device() -> None:
    image, mask = batch()
    parameters = Augment().parameters(4, generator(), source=(20, 30), crop=(16, 16))
    expected = apply_views(image, mask, parameters, crop=(16, 16))
    on_device = [tensor.cuda() for tensor in (image, mask, parameters)]
    apply_views(*on_device, crop=(16, 16))  # the first call copies the constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = apply_views(*on_device, crop=(16, 16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found[0].cpu(), expected[0], atol=1e-2, rtol=0)
    assert (found[1].cpu() != expected[1]).float().mean() < 0.01


@pytest.mark.parametrize(("channels", "kind"), [(1, "uint16"), (5, "uint8"), (2, "float32")])
def test_geometry_applies_to_any_channels(channels: int, kind: str) -> None:
    images = ImageFormat(channels, kind, mean=(0.1,) * channels, std=(0.5,) * channels)
    values = np.random.default_rng(0).integers(0, 250, (2, channels, 20, 30))
    image, mask = torch.from_numpy(values.astype(kind)), torch.from_numpy(values[:, 0].astype(np.uint8))
    augment = Augment(flip=1.0, scale=(1.0, 1.0)).geometry_only()
    parameters = augment.parameters(2, torch.Generator().manual_seed(0), source=(20, 30), crop=(20, 30))
    view, labels = apply_views(image, mask, parameters, crop=(20, 30), normalisation=images)
    expected = (torch.from_numpy(values).flip(-1) / images.scale - 0.1) / 0.5
    torch.testing.assert_close(view, expected.float(), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(labels, mask.flip(-1).long())


def test_light_of_many_channels_is_one_factor_and_contrast_keeps_their_means() -> None:
    images = ImageFormat(5, "uint16", mean=(0.0,) * 5, std=(1.0,) * 5)
    image = torch.from_numpy(np.random.default_rng(0).integers(20_000, 30_000, (1, 5, 20, 30)).astype(np.uint16))
    mask, plain = torch.zeros(1, 20, 30, dtype=torch.uint8), image.float() / 65535
    still = Augment.none()
    for change in ({"brightness": 0.5}, {"contrast": 0.5}, {"brightness": 0.3, "contrast": 0.3, "saturation": 1.0}):
        augment = replace(still, hue=0.5 if "saturation" in change else 0.0, **change).for_images(images)
        parameters = augment.parameters(1, torch.Generator().manual_seed(1), source=(20, 30), crop=(20, 30))
        view, _ = apply_views(image, mask, parameters, crop=(20, 30), normalisation=images)
        centred = view - view.mean((2, 3), keepdim=True)
        ratio = centred / (plain - plain.mean((2, 3), keepdim=True))
        factor = ratio.median()
        assert abs(float(factor) - 1) > 0.01
        torch.testing.assert_close(centred, factor * (plain - plain.mean((2, 3), keepdim=True)), rtol=1e-2, atol=1e-4)
        means = view.mean((2, 3)) / plain.mean((2, 3))
        torch.testing.assert_close(means, means.mean().expand(1, 5), rtol=1e-3, atol=0)
        if "brightness" not in change:
            torch.testing.assert_close(means, torch.ones(1, 5), rtol=1e-3, atol=0)


def test_floats_keep_their_values() -> None:
    images = ImageFormat(3, "float32", mean=(-5.0,) * 3, std=(2.0,) * 3)
    image = torch.randn(1, 3, 20, 30) * 40
    augment = replace(Augment(flip=0.0, scale=(1.0, 1.0)), brightness=1.0, hue=0.5).for_images(images)
    parameters = augment.parameters(1, torch.Generator().manual_seed(0), source=(20, 30), crop=(20, 30))
    view, _ = apply_views(
        image, torch.zeros(1, 20, 30, dtype=torch.uint8), parameters, crop=(20, 30), normalisation=images
    )
    torch.testing.assert_close(view, (image + 5) / 2, rtol=1e-4, atol=1e-3)
