from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litheseg.errors import DataError
from litheseg.masks.classes import Classes
from litheseg.masks.pictures import OverlayStyle, encode_mask, encode_overlay, legend_strip, overlay, write_mask

CLASSES = Classes(("dark", "bright"), ((10, 20, 30), (200, 100, 0)))


def test_masks_keep_every_label_and_show_its_colour(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_mask(tmp_path / "deep" / "m.png", labels, CLASSES)
    with Image.open(tmp_path / "deep" / "m.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), labels)
        assert np.array_equal(np.asarray(mask.convert("RGB"))[0, :2], CLASSES.colors)
    assert (tmp_path / "deep" / "m.png").read_bytes() == encode_mask(labels, CLASSES)


def test_overlays_are_rgb_images() -> None:
    image, labels = np.full((3, 4, 3), 100, np.uint8), np.eye(3, 4, dtype=np.uint8)
    with Image.open(io.BytesIO(encode_overlay(image, labels, CLASSES, OverlayStyle(1.0, legend=False)))) as picture:
        assert np.array_equal(np.asarray(picture), np.array(CLASSES.colors, np.uint8)[labels])


def test_overlay_mixes_and_leaves_ignored_pixels() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    mixed = overlay(image, np.array([[0, 1, 255]], np.uint8), CLASSES, OverlayStyle(0.5))
    assert mixed.tolist() == [[[55, 60, 65], [150, 100, 50], [100, 100, 100]]]


def test_a_large_overlay_is_mixed_in_parts() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1100, 1000, 3), dtype=np.uint8)
    labels = rng.choice([0, 1, 255], (1100, 1000)).astype(np.uint8)
    tracemalloc.start()
    mixed = overlay(image, labels, CLASSES, OverlayStyle(0.3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for k, color in enumerate(CLASSES.colors):
        expected = np.rint(image + np.float32(0.3) * (np.array(color, np.float32) - image))
        assert np.array_equal(mixed[labels == k], expected[labels == k])
    assert np.array_equal(mixed[labels == 255], image[labels == 255])
    assert peak < 4 * image.nbytes, "whole images in floating point take a dozen times its bytes"


BACKGROUND = Classes(("background", "leaf", "stem"), ((0, 200, 0), (200, 0, 0), (0, 0, 200)))


def test_a_background_stays_clear_by_name_or_wish() -> None:
    image, labels = np.full((1, 3, 3), 100, np.uint8), np.array([[0, 1, 2]], np.uint8)
    untouched, red, blue, green = [100, 100, 100], [200, 0, 0], [0, 0, 200], [0, 200, 0]
    assert overlay(image, labels, BACKGROUND, OverlayStyle(1.0)).tolist() == [[untouched, red, blue]]
    assert overlay(image, labels, BACKGROUND, OverlayStyle(1.0, ("leaf",))).tolist() == [[green, untouched, blue]]
    assert overlay(image, labels, BACKGROUND, OverlayStyle(1.0, ("",))).tolist() == [[green, red, blue]]
    with pytest.raises(DataError, match=r"no class 'leave' to stay clear.*'leaf'"):
        overlay(image, labels, BACKGROUND, OverlayStyle(1.0, ("leave",)))


def test_the_legend_stands_below_and_names_what_is_painted() -> None:
    image, labels = np.full((40, 200, 3), 100, np.uint8), np.zeros((40, 200), np.uint8)
    labels[:20] = 1
    with Image.open(io.BytesIO(encode_overlay(image, labels, BACKGROUND, OverlayStyle(0.5)))) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] == 200 and pixels.shape[0] > 40
    assert np.array_equal(pixels[:40], overlay(image, labels, BACKGROUND, OverlayStyle(0.5)))
    colours = {tuple(color) for color in pixels[40:].reshape(-1, 3).tolist()}
    assert (200, 0, 0) in colours and not colours & {(0, 200, 0), (0, 0, 200)}, "the leaf, and it alone"
    assert min(map(sum, colours)) < 3 * 60, "dark letters"
    everything_clear = encode_overlay(image, 0 * labels, BACKGROUND, OverlayStyle(0.5))
    assert Image.open(io.BytesIO(everything_clear)).size == (200, 40)


def test_a_legend_of_a_few_lines_says_how_many_are_left_out() -> None:
    classes = Classes.from_names(f"class {index}" for index in range(60))
    whole, short = (legend_strip(classes, range(60), 400, rows) for rows in (None, 3))
    assert whole.shape[1] == short.shape[1] == 400 and len(short) < len(whole) / 3
    for index in range(60):
        assert (whole == classes.colors[index]).all(2).any()
    assert not (short == classes.colors[59]).all(2).any()


def test_names_longer_than_the_picture_are_cut() -> None:
    assert legend_strip(Classes.from_names(["a" * 500]), [0], 64).shape[1] == 64
