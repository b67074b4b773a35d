"""Masks as run lengths and polygons: against COCO's own code, worked examples, and filling the polygons again."""

from __future__ import annotations

import json
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from litheseg.errors import DataError
from litheseg.masks import polygons
from litheseg.masks.classes import Classes
from litheseg.masks.polygons import fill, simplify, trace
from litheseg.masks.run_lengths import class_runs, coco_string
from litheseg.serving import encodings
from litheseg.serving.encodings import mask_png, overlay_picture, polygons_json, rle_json
from litheseg.serving.problems import Problem
from litheseg.streets import render_street

CLASSES = Classes.from_names([f"class {k}" for k in range(12)])


def filled(parts: list[polygons.Polygon], height: int, width: int) -> np.ndarray:
    """Pixels of the parts, which must not overlap."""
    total = np.zeros((height, width), np.int64)
    for part in parts:
        total += fill(part.exterior.tolist(), height, width)
        for hole in part.holes:
            total -= fill(hole.tolist(), height, width)
    assert set(np.unique(total)) <= {0, 1}
    return total.astype(bool)


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


def test_a_mask_that_is_all_outline_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = (np.indices((64, 64)).sum(0) % 2).astype(np.uint8)
    monkeypatch.setattr(polygons, "MAX_CORNERS", 1000)
    with pytest.raises(DataError, match="more than 1000 corners"):
        trace(mask == 1)
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(Problem, match="min_area") as caught:
        polygons_json(image, mask, CLASSES, tolerance=1, min_area=1)
    assert caught.value.code == "mask-too-detailed"
    assert json.loads(polygons_json(image, mask, CLASSES, tolerance=1, min_area=2))["segments"][0]["polygons"] == []


def test_polygons_of_a_street_make_its_mask_again() -> None:
    image, mask = render_street(np.random.default_rng(1), (60, 80))
    content = json.loads(polygons_json(image, mask, CLASSES, tolerance=0, min_area=1))
    again = np.full(mask.shape, 255, np.uint8)
    for segment in content["segments"]:
        assert segment["category"] == f"class {segment['category_id']}"
        parts = [
            polygons.Polygon(np.array(part["exterior"]), part["area"], [np.array(hole) for hole in part["holes"]])
            for part in segment["polygons"]
        ]
        inside = filled(parts, 60, 80)
        assert inside.sum() == segment["area"]
        again[inside] = segment["category_id"]
    assert np.array_equal(again, mask)


def test_run_lengths_as_coco_annotations() -> None:
    mask = np.zeros((5, 8), np.uint8)
    mask[1:3, 2:7] = 4
    content = json.loads(rle_json(np.zeros((5, 8, 3), np.uint8), mask, CLASSES, compressed=False))
    assert content["image"] == {"height": 5, "width": 8}
    segment = content["segments"][1]
    assert (segment["category_id"], segment["area"], segment["bbox"]) == (4, 10, [2, 1, 5, 2])
    assert segment["segmentation"] == {"size": [5, 8], "counts": [11, 2, 3, 2, 3, 2, 3, 2, 3, 2, 7]}


def test_mask_png_holds_indices_and_colours() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.open(BytesIO(mask_png(np.zeros((3, 4, 3), np.uint8), mask, CLASSES)))
    assert image.mode == "P" and np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB")), CLASSES.palette()[mask])


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_overlays(format: str) -> None:
    grey, mask = np.full((32, 32, 3), 100, np.uint8), np.full((32, 32), 2, np.uint8)
    image = Image.open(BytesIO(overlay_picture(grey, mask, CLASSES, format=format, alpha=0.5)))
    assert image.format == format.upper()
    expected = 50 + np.array(CLASSES.colors[2]) / 2
    assert np.abs(np.asarray(image.convert("RGB"))[16, 16] - expected).max() <= (1 if format == "png" else 6)


def test_a_side_that_webp_cannot_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encodings._LONGEST, "webp", 20)
    with pytest.raises(Problem, match="no side of 32 pixels") as caught:
        overlay_picture(np.zeros((8, 32, 3), np.uint8), np.zeros((8, 32), np.uint8), CLASSES, format="webp", alpha=0.5)
    assert caught.value.code == "invalid-parameter"


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
