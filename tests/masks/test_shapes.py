"""Masks as run lengths and polygons: against COCO's own code, worked examples, and filling the polygons again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tiny_shapes import filled

from litheseg.masks import polygons
from litheseg.masks.polygons import simplify, trace
from litheseg.masks.run_lengths import class_runs, coco_string
from litheseg.streets import render_street


def unpack(text: str) -> list[int]:
    """COCO's string by its definition, one character after the other."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def test_run_lengths_of_a_worked_example() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    runs = class_runs(mask)
    # Columns: (0 0), (1 0), (1 1).
    assert {k: lengths.tolist() for k, lengths in runs.items()} == {0: [0, 2, 1, 1, 2], 1: [2, 1, 1, 2]}
    assert [coco_string(lengths, mask.shape) for lengths in runs.values()] == ["021O1", "2111"]


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_unpack_to_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.repeat(np.repeat(rng.integers(0, 4, (7, 5)), rng.integers(1, 300), 0), 40, 1).astype(np.uint8)
    for k, runs in class_runs(mask).items():
        assert unpack(coco_string(runs, mask.shape)) == runs.tolist()
        turns = np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask.shape, order="F")
        assert np.array_equal(turns == 1, mask == k)


def test_run_lengths_are_those_of_cocos_own_code() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    _, mask = render_street(np.random.default_rng(3), (90, 120))
    for k, runs in class_runs(mask).items():
        expected = coco.encode(np.asfortranarray(mask == k).astype(np.uint8))
        assert coco_string(runs, mask.shape) == expected["counts"].decode()


@pytest.mark.parametrize("seed", range(40))
def test_outlines_enclose_exactly_the_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 14, 2)
    mask = rng.random((height, width)) < rng.random()
    parts = trace(mask)
    assert np.array_equal(filled(parts, height, width), mask)
    assert all(filled([part], height, width).sum() == part.area for part in parts)


def test_a_ring_around_an_island() -> None:
    mask = np.ones((7, 7), bool)
    mask[1:6, 1:6] = False
    mask[3, 3] = True
    ring, island = trace(mask)
    assert ring.exterior.tolist() == [[0, 0], [7, 0], [7, 7], [0, 7]]
    assert ring.holes[0].tolist() == [[1, 6], [6, 6], [6, 1], [1, 1]]
    assert (ring.area, island.area, island.exterior.tolist()) == (24, 1, [[3, 3], [4, 3], [4, 4], [3, 4]])


def test_parts_that_touch_at_a_corner_are_separate() -> None:
    assert [part.area for part in trace(np.eye(3, dtype=bool))] == [1, 1, 1]
    holes = trace(~np.pad(np.eye(2, dtype=bool), 1))[0].holes
    assert len(holes) == 1, "what surrounds a part touches at corners too"


def test_small_parts_and_holes_are_left_out() -> None:
    mask = np.zeros((10, 20), bool)
    mask[1:9, 1:9], mask[4, 4], mask[5, 15] = True, False, True
    parts = trace(mask, min_area=2)
    assert len(parts) == 1 and not parts[0].holes
    assert len(trace(mask)) == 2 and len(trace(mask)[0].holes) == 1


def test_simplified_outlines_stay_within_the_tolerance() -> None:
    y, x = np.mgrid[:80, :80]
    exact = trace((x - 40) ** 2 + (y - 40) ** 2 < 900)[0].exterior
    simple = simplify(exact, 1.0)
    assert 8 <= len(simple) < len(exact) / 3
    closed = np.concatenate([simple, simple[:1]]).astype(float)
    samples = np.concatenate([np.linspace(a, b, 200) for a, b in pairwise(closed)])
    assert max(np.hypot(*(samples - point).T).min() for point in exact) <= 1.1
    assert np.array_equal(simplify(exact, 0), exact)
    assert len(simplify(exact, 1000)) >= 3


def winding(turns: int) -> np.ndarray:
    """A spiral, one pixel wide: one part whose ends are far apart."""
    size = 4 * turns + 1
    mask = np.zeros((size, size), bool)
    for k in range(turns):
        mask[2 * k, max(0, 2 * k - 1) : size - 2 * k] = mask[2 * k : size - 2 * k, size - 1 - 2 * k] = True
        mask[size - 1 - 2 * k, 2 * k : size - 2 * k] = mask[2 * k + 2 : size - 2 * k, 2 * k] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        *(
            np.random.default_rng(seed).random((37, 53)) < share
            for seed, share in enumerate((0.05, 0.4, 0.6, 0.65, 0.95))
        ),
        winding(8),
        winding(8)[:, ::-1],
        ~winding(8),
        np.tri(20, 30, dtype=bool) & (np.arange(30) % 2 == 0),  # a comb whose teeth nothing joins
        np.tri(20, 30, dtype=bool)[::-1] & ((np.arange(30) % 2 == 0) | (np.arange(20)[:, None] == 19)),
        np.zeros((3, 4), bool),
        np.ones((3, 4), bool),
        np.ones((1, 1), bool),
    ],
)
def test_connected_parts_are_those_of_scipy(mask: np.ndarray) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    expected, count = ndimage.label(mask)
    labels, found = polygons._parts(mask)
    assert found == count
    pairs = np.unique(np.column_stack([labels.ravel(), expected.ravel()]), axis=0)
    assert len(pairs) == count + (not mask.all()), "each number stands for one of scipy's"
    assert np.array_equal(labels == 0, ~mask)
