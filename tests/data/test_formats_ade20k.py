"""The full ADE20K by its published specification: classes in red and green, names in an index or beside the image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from tiny_formats import imported, photo

from litheseg.data import open_source
from litheseg.errors import DataError

NAMES = {1: "wall", 401: "car, auto, automobile", 402: "car, railcar", 1831: "person, someone", 2978: "wall"}
COLUMNS = np.array([0, *([1] * 12), *([401] * 8), *([1831] * 5), *([402] * 3), 2978])  # of an image of 20 x 30


def ade(root: Path, *, described: bool = True) -> Path:
    """Two images, as `loadAde20K` of the data set's own toolkit reads them: class = red / 10 * 256 + green."""
    for folder, name in (
        ("training/urban/street", "ADE_train_00000001"),
        ("validation/urban/street", "ADE_val_00000001"),
    ):
        image = root / "images/ADE" / folder / f"{name}.jpg"
        photo(image)
        values = np.tile(COLUMNS, (20, 1))
        mask = np.stack([values // 256 * 10, values % 256, np.arange(30) * np.ones((20, 1))], 2)
        Image.fromarray(mask.astype(np.uint8)).save(image.with_name(f"{name}_seg.png"))
        Image.fromarray(mask.astype(np.uint8)).save(image.with_name(f"{name}_parts_1.png"))
        (image.parent / name).mkdir()
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(image.parent / name / f"instance_000_{name}.png")
        if described:
            objects = [{"id": 0, "name": word, "name_ndx": value} for value, word in NAMES.items()]
            image.with_suffix(".json").write_text(
                json.dumps({"annotation": {"filename": image.name, "object": objects}})
            )
    return root


def test_all_classes_of_a_small_one(tmp_path: Path) -> None:
    root = ade(tmp_path / "ADE20K_2021_17_01")
    with pytest.raises(DataError, match=r"format the full ADE20K .*litheseg data import"):
        open_source("auto", root)
    names, masks, notes = imported(root, tmp_path / "out")
    assert names == ("wall 1", "car, auto, automobile", "person", "car, railcar", "wall 2978")
    assert set(masks) == {"train/ADE_train_00000001", "val/ADE_val_00000001"}
    row = masks["train/ADE_train_00000001"][7].tolist()
    assert row == [255, *([0] * 12), *([1] * 8), *([2] * 5), *([3] * 3), 4]
    assert not any("left out" in note for note in notes)


def test_the_most_frequent_and_those_that_are_named(tmp_path: Path) -> None:
    root = ade(tmp_path / "ade")
    names, masks, notes = imported(root, tmp_path / "two", most_frequent=2)
    assert names == ("wall 1", "car, auto, automobile")
    assert masks["val/ADE_val_00000001"][0].tolist() == [255, *([0] * 12), *([1] * 8), *([255] * 9)]
    assert any(note.startswith("3 classes left out, e.g. in 31.0 % of the labelled pixels") for note in notes)
    names, masks, _ = imported(root, tmp_path / "named", classes="person, wall 2978")
    assert names == ("person", "wall 2978") and masks["train/ADE_train_00000001"][0, [0, 5, 21, 29]].tolist() == [
        255,
        255,
        0,
        1,
    ]
    with pytest.raises(DataError, match=r"no training image holds a class 'persons'\. Did you mean 'person'"):
        imported(root, tmp_path / "wrong", classes="persons")
    assert not (tmp_path / "wrong").exists()


def test_names_from_the_index_of_the_first_edition(tmp_path: Path) -> None:
    root = ade(tmp_path / "ADE20K_2016_07_26", described=False)
    with pytest.raises(DataError):
        imported(root, tmp_path / "out", format="ade20k-full")
    every = np.array([NAMES.get(number, f"thing {number}") for number in range(1, 3149)], dtype=object)
    savemat(root / "index_ade20k.mat", {"index": {"objectnames": every}})
    assert imported(root, tmp_path / "out", most_frequent=3)[0][2] == "person"
    (root / "index_ade20k.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DataError, match=r"index_ade20k\.mat: no index of ADE20K"):
        imported(root, tmp_path / "other")


def test_more_classes_than_a_mask_holds(tmp_path: Path) -> None:
    root = ade(tmp_path / "ade")
    seg = next(root.rglob("ADE_train*_seg.png"))
    values = np.arange(600).reshape(20, 30)
    Image.fromarray(np.stack([values // 256 * 10, values % 256, 0 * values], 2).astype(np.uint8)).save(seg)
    with pytest.raises(DataError, match=r"what is the class 2, 3, 4, 5, 6 and \d+ more called\? Restore index_ade20k"):
        imported(root, tmp_path / "out")
    file = seg.with_name(seg.name.replace("_seg.png", ".json"))
    objects = [{"name": f"thing {value}", "name_ndx": value} for value in range(600)]
    file.write_text(json.dumps({"annotation": {"object": objects}}))
    with pytest.raises(
        DataError, match=r"599 classes, and masks hold 254 at most: .*--most-frequent 150, or name some: -"
    ):
        imported(root, tmp_path / "out")
    assert len(imported(root, tmp_path / "out", most_frequent=254)[0]) == 254


def test_other_formats_have_no_such_choice(tmp_path: Path) -> None:
    for number in (1, 2):
        photo(tmp_path / f"data/img_{number}.png")
        Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(tmp_path / f"data/mask_{number}.png")
    with pytest.raises(DataError, match="choose among those of the full ADE20K"):
        imported(tmp_path / "data", tmp_path / "out", most_frequent=2)
