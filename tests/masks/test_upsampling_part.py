"""Labels of a rectangle against those of the whole image."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tiny_upsampling import WAYS, use

from litheseg.errors import DataError, LithesegError
from litheseg.masks.upsampling import LogitsPart, upsample_labels, upsample_part


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return request.param


def bounds(draw: random.Random, samples: int, pixels: int) -> tuple[int, int, int, int]:
    """Pixels start to stop, and samples that are enough for them."""
    start = draw.randrange(pixels)
    stop = draw.randint(start + 1, pixels)
    lower = [
        min(max((2 * pixel + 1) * samples - pixels, 0) // (2 * pixels), samples - 1) for pixel in (start, stop - 1)
    ]
    return start, stop, draw.randint(0, lower[0]), draw.randint(min(lower[1] + 2, samples), samples)


def test_a_part_has_the_labels_of_the_whole() -> None:
    for seed in range(400):
        draw, numbers = random.Random(seed), np.random.default_rng(seed)
        samples = draw.randint(1, 12), draw.randint(1, 12)
        rows, columns = (draw.choice([count, count * 8, draw.randint(1, 100)]) for count in samples)
        logits = numbers.standard_normal((draw.choice([1, 2, 5, 11]), *samples)).astype(np.float32)
        if seed % 4 == 0:
            logits[numbers.random(logits.shape) < 0.05] = draw.choice([np.nan, np.inf, -np.inf])
        whole = upsample_labels(logits, (rows, columns))
        top, bottom, first_row, last_row = bounds(draw, samples[0], rows)
        left, right, first_column, last_column = bounds(draw, samples[1], columns)
        part = LogitsPart(samples, (rows, columns), (first_row, first_column), (top, bottom, left, right))
        labels = upsample_part(logits[:, first_row:last_row, first_column:last_column], part)
        assert np.array_equal(labels, whole[top:bottom, left:right]), seed


def test_float16_and_an_image_with_n() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 3, 4, 6)).astype(np.float16)
    labels = upsample_part(logits[:, :, :3], LogitsPart((4, 6), (13, 20), (0, 0), (0, 5, 2, 20)), threads=2)
    assert np.array_equal(labels, upsample_labels(logits, (13, 20))[:, :5, 2:])


@pytest.mark.parametrize("size", [(16, 24), (4, 6)])
@pytest.mark.parametrize("first", [0, 2])
def test_samples_that_are_missing_are_missed(first: int, size: tuple[int, int]) -> None:
    box = (1, 4, 0, 6) if size == (4, 6) else (4, 10, 0, 24)
    with pytest.raises(DataError, match="other ones are needed"):
        upsample_part(np.zeros((3, 2, 6), np.float32), LogitsPart((4, 6), size, (first, 0), box))


@pytest.mark.parametrize("box", [(0, 0, 0, 8), (4, 2, 0, 8), (0, 17, 0, 8), (-1, 4, 0, 8), (0, 4, 8, 25)])
def test_a_box_outside_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(LithesegError, match="inside it"):
        upsample_part(np.zeros((3, 4, 6), np.float32), LogitsPart((4, 6), (16, 24), (0, 0), box))


def test_a_part_is_of_one_image() -> None:
    with pytest.raises(DataError, match="one image"):
        upsample_part(np.zeros((2, 3, 4, 6), np.float32), LogitsPart((4, 6), (16, 24), (0, 0), (0, 4, 0, 8)))
