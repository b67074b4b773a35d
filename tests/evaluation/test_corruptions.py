"""Corruptions, beside Pillow, NumPy and hand-made numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.corruptions import CORRUPTIONS, FAMILIES, STRENGTHS, corrupt


def photo(height: int = 60, width: int = 80) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


GREY = np.full((100, 100, 3), 128, np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_is_further_from_the_image_and_the_same_seed_the_same_picture(name: str) -> None:
    image = photo()
    before = image.copy()
    pictures = [corrupt(image, name, strength, seed="a") for strength in STRENGTHS]
    assert all(picture.shape == image.shape and picture.dtype == np.uint8 for picture in pictures)
    distances = [float(np.abs(picture.astype(float) - image).mean()) for picture in pictures]
    assert 0 < distances[0] and distances == sorted(distances)
    assert np.array_equal(corrupt(image, name, 3, seed="a"), pictures[2]) and np.array_equal(image, before)


def test_there_are_fifteen_and_each_is_random_or_is_not() -> None:
    assert len(CORRUPTIONS) == 15 and sum(map(len, FAMILIES.values())) == 15
    same = {name for name in CORRUPTIONS if np.array_equal(*(corrupt(photo(), name, 3, seed=seed) for seed in "ab"))}
    assert same == {"defocus-blur", "zoom-blur", "brightness", "contrast", "jpeg", "pixelate"}


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (17, 31)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    for name in CORRUPTIONS:
        assert corrupt(photo(*size), name, 5).shape == (*size, 3)


def test_jpeg_is_that_of_pillow() -> None:
    file = io.BytesIO()
    Image.fromarray(photo()).save(file, "JPEG", quality=15)
    assert np.array_equal(corrupt(photo(), "jpeg", 3), np.asarray(Image.open(file)))


def test_light_in_numbers() -> None:
    # 1 stop is twice the light: 2 ** (1 / 2.2) = 1.3703 times the value in the file.
    assert corrupt(GREY, "brightness", 2)[0, 0, 0] == round(128 * 1.3703)
    assert abs(corrupt(GREY, "darkness", 1).mean() - 128 / 1.3703) < 1
    halves = np.concatenate([GREY[:50] - 100, GREY[50:] + 100])
    low, high = np.unique(corrupt(halves, "contrast", 5))
    assert (low, high) == (118, 138), "a tenth of the distance from the mean"


def test_noise_in_numbers() -> None:
    assert corrupt(GREY, "gaussian-noise", 1).std() == pytest.approx(0.04 * 255, rel=0.02)
    # The number of photons is Poisson's: its variance is its mean, here 0.502 * 120.
    assert corrupt(GREY, "shot-noise", 1).std() == pytest.approx(255 * (0.502 / 120) ** 0.5, rel=0.02)
    values = corrupt(GREY, "impulse-noise", 5)
    assert (values == 0).mean() == pytest.approx(0.08, abs=0.005) and (values == 255).mean() == pytest.approx(
        0.08, abs=0.005
    )


def test_blurs_spread_a_point_as_far_as_they_say() -> None:
    point = np.zeros((200, 200, 3), np.uint8)
    point[100, 100] = 255
    rows, columns = np.nonzero(corrupt(point, "defocus-blur", 5)[..., 0])
    assert np.hypot(rows - 100, columns - 100).max() == pytest.approx(0.024 * 200, abs=1)
    rows, columns = np.nonzero(corrupt(point, "motion-blur", 5)[..., 0])
    assert np.hypot(np.ptp(rows), np.ptp(columns)) == pytest.approx(0.1 * 200, abs=2)
    assert np.ptp(columns) >= np.ptp(rows), "at most 45 degrees from level"
    flat = corrupt(GREY, "zoom-blur", 5), corrupt(GREY, "defocus-blur", 5), corrupt(GREY, "motion-blur", 5)
    assert all(np.array_equal(picture, GREY) for picture in flat), "no dark frame around the image"


def test_pixelate_keeps_an_eighth_of_the_resolution() -> None:
    picture = corrupt(photo(100, 100), "pixelate", 5)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) <= 12 * 12


@pytest.mark.parametrize(
    ("image", "name", "strength", "message"),
    [
        (GREY, "fogg", 1, "Did you mean 'fog'"),
        (GREY, "fog", 6, "no strength 6"),
        (GREY, "fog", 0, "no strength 0"),
        (GREY.astype(np.float32), "fog", 1, "uint8 H W 3"),
        (GREY[..., :1], "fog", 1, "uint8 H W 3"),
        (GREY[:0], "fog", 1, "uint8 H W 3"),
    ],
)
def test_what_cannot_be_corrupted(image: np.ndarray, name: str, strength: int, message: str) -> None:
    with pytest.raises((DataError, LithesegError), match=message):
        corrupt(image, name, strength)
