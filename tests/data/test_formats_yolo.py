"""YOLO polygons: the folders and lines of its documentation."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_formats import SIZE, imported, photo

from litheseg.data import open_source
from litheseg.errors import DataError

HEIGHT, WIDTH = SIZE
LEFT = "0 0 0 0.5 0 0.5 1 0 1"
CORNER = "2 0.4 0.5 1 0.5 1 1 0.4 1"


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def data(tmp_path):
    """Two splits; of three classes one is never drawn, and one image has no labels."""
    root = tmp_path / "yolo"
    text(root / "data.yaml", "path: .", "train: images/train", "val: images/val", "names: {0: leaf, 1: bug, 2: stem}")
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        photo(root / f"images/{split}/{name}.jpg")
    text(root / "labels/train/a.txt", LEFT, CORNER)
    text(root / "labels/val/c.txt", CORNER)
    return root


def test_polygons(data, tmp_path):
    names, masks, notes = imported(data, tmp_path / "out")
    assert names == ("background", "leaf", "stem")
    expected = np.zeros(SIZE, int)
    expected[:, : WIDTH // 2] = 1
    expected[HEIGHT // 2 :, 12:] = 2  # the smaller one counts
    np.testing.assert_array_equal(masks["train/a"], expected)
    assert not masks["train/b"].any() and set(masks) == {"train/a", "train/b", "val/c"}
    assert any("1 classes without a shape left out (bug)" in note for note in notes)


@pytest.mark.parametrize("name", ["data.yaml", "dataset.yaml"])
def test_the_folder_is_recognised_whatever_its_description_is_called(data, name):
    (data / "data.yaml").rename(data / name)
    with pytest.raises(DataError, match=r"YOLO polygons .*litheseg data import"):
        open_source("auto", data)


def test_roboflow_writes_other_paths(tmp_path):
    root = tmp_path / "robo"
    text(root / "data.yaml", "train: ../train/images", "val: ../valid/images", "nc: 1", "names: ['leaf']")
    for split in ("train", "valid"):
        photo(root / split / "images/a.jpg")
        text(root / split / "labels/a.txt", LEFT)
    assert set(imported(root, tmp_path / "out")[1]) == {"train/a", "val/a"}


def test_lists_of_images(data, tmp_path):
    text(data / "data.yaml", "train: train.txt", "names: [leaf, bug, stem]")
    text(data / "train.txt", "./images/train/a.jpg", "./images/train/z.jpg")
    with pytest.raises(DataError, match=r"1 files .* not there: \./images/train/z\.jpg \(of train\.txt\)"):
        imported(data, tmp_path / "out")
    assert set(imported(data, tmp_path / "out", skip_missing=True)[1]) == {"train/a"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 0 0 1 0 1 1", "class 3, but data.yaml names 3"),
        ("leaf 0 0 1 0 1 1", "no 'class x1 y1"),
        ("0 0 0 1 0 1 1 0.5", "odd number"),
        ("0 5 5 20 5 20 15", "corners in pixels"),
    ],
)
def test_bad_lines_are_named(data, tmp_path, line, message):
    text(data / "labels/train/a.txt", LEFT, line)
    with pytest.raises(DataError, match=rf"a\.txt, line 2: .*{message}"):
        imported(data, tmp_path / "out")


def test_boxes(data, tmp_path):
    text(data / "labels/train/a.txt", LEFT, "0 0.5 0.5 0.1 0.1")
    assert any("1 boxes left out" in note for note in imported(data, tmp_path / "out")[2])
    for file in ("train/a", "val/c"):
        text(data / f"labels/{file}.txt", "0 0.5 0.5 0.1 0.1")
    with pytest.raises(DataError, match=r"no shape that makes a mask \(2 boxes left out"):
        imported(data, tmp_path / "other")
