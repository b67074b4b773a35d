"""Data sets as they are published: ADE20K, Mapillary Vistas, Hugging Face's tables, Cityscapes and PASCAL VOC."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_formats import SIZE, imported, photo, picture
from tiny_hub import tiny_hub

from litheseg.data import open_source
from litheseg.data.sources.public import CITYSCAPES_CLASSES, VOC_CLASSES
from litheseg.errors import DataError, DownloadError, MissingExtraError

HALVES = np.repeat([[1, 2]], 15, axis=1).repeat(20, 0)


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for folder, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        photo(root / f"images/{folder}/{name}.jpg")
        picture(root / f"annotations/{folder}/{name}.png", np.where(np.arange(30) < 3, 0, HALVES))
    lines = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        "1     \t0.1576  \t11664 \t1172 \t1 \twall",
        "2\t0.1\t6046\t612\t1\t",
    ]
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "building, edifice\n")
    with pytest.raises(DataError, match=r"format ADE20K .*litheseg data import"):
        open_source("auto", root)
    names, masks, _ = imported(root, tmp_path / "out")
    assert names == ("wall", "building") and set(masks) == {"train/ADE_train_00000001", "val/ADE_val_00000001"}
    assert masks["train/ADE_train_00000001"][0, [0, 3, 20]].tolist() == [255, 0, 1]


def mapillary(root, version):
    labels = [("animal--bird", "Bird", True), ("void--unlabeled", "Unlabeled", False), ("flat--road", "Road", True)]
    entries = [{"name": n, "readable": r, "evaluate": e, "instances": False, "color": [9, 8, 7]} for n, r, e in labels]
    (root / f"config_{version}.json").write_text(json.dumps({"labels": entries, "version": version, "mapping": "x"}))
    for folder in ("training", "validation"):
        picture(root / f"{folder}/{version}/labels/a.png", HALVES)


def test_mapillary_vistas(tmp_path):
    root = tmp_path / "vistas"
    for folder in ("training", "validation", "testing"):
        photo(root / f"{folder}/images/a.jpg")
    mapillary(root, "v1.2")
    names, masks, _ = imported(root, tmp_path / "out")
    assert names == ("Bird", "Road") and masks["val/a"][0, [0, 20]].tolist() == [255, 1]
    mapillary(root, "v2.0")
    with pytest.raises(DataError, match=r"versions v1\.2 and v2\.0; .* --labels v2\.0"):
        imported(root, tmp_path / "other")
    assert imported(root, tmp_path / "other", labels="v2.0")[0] == ("Bird", "Road")


# Tables


def content(values, ending="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, ending)
    return buffer.getvalue()


def cells(count, names=None):
    """Rows as `datasets` writes a feature `Image`: bytes and a path."""
    rng = np.random.default_rng(0)
    photos = [content(rng.integers(0, 256, (*SIZE, 3)), "JPEG") for _ in range(count)]
    masks = [content(np.roll(HALVES, place, 1)) for place in range(count)]
    paths = names or [None] * count
    rows = [[{"bytes": data, "path": path} for data, path in zip(part, paths, strict=True)] for part in (photos, masks)]
    return {"pixel_values": rows[0], "label": rows[1], "note": ["x"] * count}


def test_parquet_as_on_the_hub(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    root = tmp_path / "hub"
    (root / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        table = pyarrow.table(cells(7, [f"img_{place}.jpg" for place in range(7)]))
        parquet.write_table(table, root / f"data/{split}-00000-of-00001.parquet", row_group_size=3)
    (root / "id2label.json").write_text('{"1": "road", "2": "car", "7": "never"}')
    names, masks, _ = imported(root, tmp_path / "out")
    assert names == ("road", "car", "never") and len(masks) == 14
    for place in range(7):
        np.testing.assert_array_equal(masks[f"val/img_{place}"], np.roll(HALVES, place, 1) - 1)


def test_a_data_set_that_was_saved_to_disk(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    root = tmp_path / "saved/train"
    root.mkdir(parents=True)
    table = pyarrow.table(cells(3))
    with pyarrow.OSFile(str(root / "data-00000-of-00001.arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
    names, masks, notes = imported(tmp_path / "saved", tmp_path / "out")
    assert names == ("class 1", "class 2") and "rename them" in notes[-1]
    np.testing.assert_array_equal(masks["train/000002"], np.roll(HALVES, 2, 1) - 1)
    bad = pyarrow.table(cells(3) | {"mask": cells(3)["label"]})
    with pyarrow.OSFile(str(root / "data-00000-of-00001.arrow"), "wb") as file:
        with pyarrow.ipc.new_file(file, bad.schema) as writer:
            writer.write_table(bad)
    from litheseg.data.formats import tables

    tables._table.cache_clear()
    with pytest.raises(DataError, match="columns of pictures are pixel_values, label, mask; one must be called"):
        imported(tmp_path / "saved", tmp_path / "other")


def test_tables_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'pyarrow': pip install 'litheseg\[parquet\]'"):
        imported(tmp_path, tmp_path / "out")


# What is read as it is


def test_cityscapes_and_voc_are_imported_as_they_are_read(tmp_path):
    root = tmp_path / "city"
    for split in ("train", "val"):
        photo(root / f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png")
        picture(root / f"gtFine/{split}/ulm/ulm_0_gtFine_labelIds.png", np.where(HALVES == 1, 7, 4))
    names, masks, _ = imported(root, tmp_path / "out")
    assert names == CITYSCAPES_CLASSES.names and masks["val/ulm/ulm_0"][0, [0, 20]].tolist() == [0, 255]
    root = tmp_path / "VOCdevkit/VOC2012"
    photo(root / "JPEGImages/2007_1.jpg")
    picture(root / "SegmentationClass/2007_1.png", np.where(HALVES == 1, 15, 255))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_1\n")
    names, masks, _ = imported(root.parent, tmp_path / "voc")
    assert names == VOC_CLASSES.names and masks["train/2007_1"][0, [0, 20]].tolist() == [15, 255]


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet
    from huggingface_hub import constants

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(cells(3)), buffer)
    files = {"data/train-00000-of-00001.parquet": buffer.getvalue(), "leaves.py": b"raise SystemExit"}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with tiny_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repositories["someone/leaves"] = [files]
        _, masks, _ = imported("hf:someone/leaves", tmp_path / "out")
        with pytest.raises(DownloadError, match="hf:someone/none"):
            imported("hf:someone/none", tmp_path / "other")
    assert set(masks) == {"train/000000", "train/000001", "train/000002"}
    assert "name: leaves" in (tmp_path / "out/classes.yaml").read_text()
    assert not [path for path in (tmp_path / "cache").rglob("*.py")]
