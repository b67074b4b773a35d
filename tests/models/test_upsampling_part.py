"""Labels of a rectangle against those of the whole image."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import litheseg.models.upsampling as room
from litheseg.errors import DataError
from litheseg.models.upsampling import Part, upsample_labels, upsample_part, warm_up


@pytest.fixture(params=["kernel", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations; the second as where Numba is missing."""
    if request.param == "torch":
        monkeypatch.setattr(room, "_kernel", lambda: None)
    else:
        assert warm_up()
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
        draw = random.Random(seed)
        torch.manual_seed(seed)
        samples = draw.randint(1, 12), draw.randint(1, 12)
        size = tuple(draw.choice([count, count * 8, draw.randint(1, 100)]) for count in samples)
        logits = torch.randn(draw.choice([1, 2, 5, 11]), *samples)
        whole = upsample_labels(logits, size)
        top, bottom, first_row, last_row = bounds(draw, samples[0], size[0])
        left, right, first_column, last_column = bounds(draw, samples[1], size[1])
        part = Part(samples, size, (first_row, first_column), (top, bottom, left, right))
        labels = upsample_part(logits[:, first_row:last_row, first_column:last_column], part)
        assert torch.equal(labels, whole[top:bottom, left:right]), seed


def test_arrays_give_arrays() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    labels = upsample_part(logits[:, :3], Part((4, 6), (13, 20), (0, 0), (0, 5, 2, 20)))
    assert np.array_equal(labels, upsample_labels(logits, (13, 20))[:5, 2:])


@pytest.mark.parametrize("first", [0, 2])
def test_samples_that_are_missing_are_missed(first: int) -> None:
    with pytest.raises(DataError, match="other ones are needed"):
        upsample_part(torch.zeros(3, 2, 6), Part((4, 6), (16, 24), (first, 0), (4, 10, 0, 24)))
