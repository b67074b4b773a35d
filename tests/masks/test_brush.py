"""Brush data and polygons against other programs: label-studio-sdk 2.1.2 (`converter.brush`) and Matplotlib."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from litheseg.errors import DataError, MissingExtraError
from litheseg.masks.polygons import fill
from litheseg.masks.run_lengths import coco_string, decode_brush, encode_brush


def _bar() -> np.ndarray:
    mask = np.zeros((3, 5), bool)
    mask[1, 1:4] = True
    return mask


# What `encode_rle(np.repeat(mask.ravel() * 255, 4))` of label-studio-sdk 2.1.2 returns.
GOLDEN = {
    "bar": (_bar(), [0, 0, 0, 60, 57, 27, 254, 23, 0, 183, 255, 133, 192, 0]),
    "diagonal": (
        np.eye(4, dtype=bool),
        [0, 0, 0, 64, 57, 27, 252, 127, 247, 192, 35, 255, 190, 1, 31, 253, 240, 8, 255, 192],
    ),
    "longer than a run can be": (
        np.ones((300, 260), bool),
        [0, 4, 194, 192, 57, 27, *([255] * 14), 252, 43, 255, 240],
    ),
    "one short run": (np.ones((2, 2), bool), [0, 0, 0, 16, 57, 27, 253, 255, 240]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_brush_data_is_label_studios(name: str) -> None:
    mask, numbers = GOLDEN[name]
    assert encode_brush(mask) == numbers
    assert np.array_equal(decode_brush(numbers, *mask.shape), mask)


def test_values_one_by_one_and_faint_rims() -> None:
    # `encode_rle([0, 255, 128, 127] * 3)` of label-studio-sdk 2.1.2: single values; alpha 127 is not half.
    numbers = [
        0,
        0,
        0,
        12,
        57,
        27,
        248,
        0,
        0,
        127,
        129,
        0,
        3,
        248,
        0,
        0,
        127,
        129,
        0,
        3,
        248,
        0,
        0,
        127,
        129,
        0,
        3,
        248,
    ]
    assert not decode_brush(numbers, 1, 3).any()


def _packed(chunks: list[tuple[bool, list[int]]], count: int, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """By the README of @thi.ng/rle-pack, one chunk after the other; the class of a chunk is always the last."""
    bits = f"{count:032b}00111" + "".join(f"{size - 1:04b}" for size in sizes)
    for repeated, values in chunks:
        length = len(values) - 1
        bits += f"{int(repeated)}11{length:0{sizes[3]}b}"
        bits += "".join(f"{value:08b}" for value in (values[:1] if repeated else values))
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


@pytest.mark.parametrize("sizes", [(3, 4, 8, 16), (1, 2, 3, 5)])
def test_chunks_of_several_values_as_the_browser_writes_them(sizes: tuple[int, ...]) -> None:
    rim = [9, 8, 7, 255, 1, 2, 3, 128, 4, 5, 6, 127]
    numbers = _packed([(True, [0] * 8), (False, rim), (True, [255] * 12)], 32, sizes)
    assert decode_brush(numbers, 2, 4).tolist() == [[False, False, True, True], [False, True, True, True]]


@pytest.mark.parametrize("seed", range(4))
def test_masks_survive_the_round_trip(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 90, 2))
    mask = generator.random(shape) < generator.random()
    assert np.array_equal(decode_brush(encode_brush(mask), *shape), mask)
    assert all(0 <= number <= 255 for number in encode_brush(mask))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("zip", "no list of numbers"),
        ([0, 0, 0, 256], "no list of numbers"),
        ([0, 0, 0, 1.5], "no list of numbers"),
        ([], "cut short"),
        (GOLDEN["bar"][1][:9], "cut short"),
        (GOLDEN["diagonal"][1], "16 pixels for an image of 3x5"),
        ([0, 0, 0, 60, 1, 27, 254], "words of 1 bits"),
        (_packed([(True, [0] * 61)], 60), "more pixels than the image has"),
    ],
)
def test_damaged_brush_data(numbers: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_brush(numbers, 3, 5)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_hold_the_pixels_whose_centre_matplotlib_finds_inside(seed: int) -> None:
    generator = np.random.default_rng(seed)
    turns = np.sort(generator.random(9)) * 2 * np.pi  # star-shaped: an outline that does not cross itself
    radius = generator.uniform(3, 25, 9)
    corners = np.stack([20 + radius * np.cos(turns), 15 + radius * np.sin(turns)], axis=1)
    rows, columns = np.mgrid[:30, :40]
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    expected = Outline(corners).contains_points(centres).reshape(30, 40)
    assert 100 < expected.sum() < 1200
    assert np.array_equal(fill([(float(x), float(y)) for x, y in corners], 30, 40), expected)


def test_a_square_covers_its_area_and_no_outline() -> None:
    assert np.argwhere(fill([(1, 1), (3, 1), (3, 3), (1, 3)], 4, 5)).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert fill([(-9, -9), (99, -9), (99, 99), (-9, 99)], 4, 5).all()
    assert not fill([(7, 0), (9, 0), (9, 4)], 4, 5).any()


def test_without_pycocotools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtraError, match=r"pycocotools.*litheseg\[serve\]"):
        coco_string(np.array([1, 3]), (2, 2))
