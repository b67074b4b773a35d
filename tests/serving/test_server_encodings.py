"""Masks in the forms that clients ask for, read again as a client would."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_shapes import filled

from litheseg.errors import DataError
from litheseg.masks import polygons
from litheseg.masks.classes import Classes
from litheseg.masks.pictures import OverlayStyle
from litheseg.masks.polygons import trace
from litheseg.serving import encodings
from litheseg.serving.encodings import mask_png, overlay_picture, polygons_json, rle_json
from litheseg.serving.problems import Problem
from litheseg.streets import render_street

CLASSES = Classes.from_names([f"class {k}" for k in range(12)])


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
    image = Image.open(BytesIO(overlay_picture(grey, mask, CLASSES, format=format, style=OverlayStyle())))
    assert image.format == format.upper()
    expected = 50 + np.array(CLASSES.colors[2]) / 2
    assert np.abs(np.asarray(image.convert("RGB"))[16, 16] - expected).max() <= (1 if format == "png" else 6)


def test_a_side_that_webp_cannot_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encodings._LONGEST, "webp", 20)
    with pytest.raises(Problem, match="no side of 32 pixels") as caught:
        overlay_picture(
            np.zeros((8, 32, 3), np.uint8), np.zeros((8, 32), np.uint8), CLASSES, format="webp", style=OverlayStyle()
        )
    assert caught.value.code == "invalid-parameter"
