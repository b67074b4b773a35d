from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
from PIL import Image

from litheseg.masks.classes import Classes
from litheseg.masks.pictures import encode_mask, encode_overlay, overlay, write_mask

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
    with Image.open(io.BytesIO(encode_overlay(image, labels, CLASSES, alpha=1.0))) as picture:
        assert np.array_equal(np.asarray(picture), np.array(CLASSES.colors, np.uint8)[labels])


def test_overlay_mixes_and_leaves_ignored_pixels() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    mixed = overlay(image, np.array([[0, 1, 255]], np.uint8), CLASSES, alpha=0.5)
    assert mixed.tolist() == [[[55, 60, 65], [150, 100, 50], [100, 100, 100]]]


def test_a_large_overlay_is_mixed_in_parts() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1100, 1000, 3), dtype=np.uint8)
    labels = rng.choice([0, 1, 255], (1100, 1000)).astype(np.uint8)
    tracemalloc.start()
    mixed = overlay(image, labels, CLASSES, alpha=0.3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for k, color in enumerate(CLASSES.colors):
        expected = np.rint(image + np.float32(0.3) * (np.array(color, np.float32) - image))
        assert np.array_equal(mixed[labels == k], expected[labels == k])
    assert np.array_equal(mixed[labels == 255], image[labels == 255])
    assert peak < 4 * image.nbytes, "whole images in floating point take a dozen times its bytes"
