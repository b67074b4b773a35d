"""COCO: files by its published format, masks against pycocotools and against points in polygons."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools import mask as coco
from tiny_formats import SIZE, imported, photo, picture

from litheseg.cli import main
from litheseg.data import open_source
from litheseg.data.doctor.diagnosis import diagnose_path
from litheseg.errors import DataError
from litheseg.masks.run_lengths import coco_counts

HEIGHT, WIDTH = SIZE
CATEGORIES = [{"id": 90, "name": "cup", "supercategory": "x"}, {"id": 3, "name": "table", "supercategory": "x"}]
TRIANGLE = [2.0, 2.0, 25.5, 4.0, 8.0, 17.5]
BOX = [5.0, 5.0, 12.0, 5.0, 12.0, 10.0, 5.0, 10.0]


def annotation(image, category, shape, **more):
    return {"image_id": image, "category_id": category, "segmentation": shape, "iscrowd": 0, "bbox": [], **more}


def write(path, annotations, names=("1.png",), **entry):
    images = [{"id": 10 * i, "file_name": n, "height": HEIGHT, "width": WIDTH, **entry} for i, n in enumerate(names, 1)]
    annotations = [{"id": place, **entry} for place, entry in enumerate(annotations, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))


def inside(*corners):
    """Pixels whose centre lies in a polygon, by matplotlib."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    outline = Outline(np.reshape(corners, (-1, 2)), closed=False)
    return outline.contains_points(np.column_stack([columns.ravel(), rows.ravel()])).reshape(SIZE)


@pytest.fixture
def data(tmp_path):
    """Where COCO's images lie: train2017/ beside annotations/."""
    photo(tmp_path / "coco/train2017/1.png")
    return tmp_path / "coco"


def test_run_lengths_are_those_of_pycocotools(data, tmp_path):
    rng = np.random.default_rng(0)
    cup, table = rng.random(SIZE) < 0.3, np.kron(rng.random((4, 6)) < 0.4, np.ones((5, 5))).astype(bool)
    packed = coco.encode(np.asfortranarray(cup.astype(np.uint8)))
    flat = table.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    plain = np.diff(edges, prepend=0, append=flat.size).tolist()
    write(
        data / "annotations/instances_train2017.json",
        [
            annotation(10, 3, {"size": list(SIZE), "counts": plain}, iscrowd=1),
            annotation(10, 90, {"size": list(SIZE), "counts": packed["counts"].decode()}),
        ],
    )
    names, masks, _ = imported(data, tmp_path / "out", overlap="later")
    assert names == ("background", "table", "cup")  # by category id
    np.testing.assert_array_equal(masks["train/1"], np.where(cup, 2, np.where(table, 1, 0)))


def test_the_string_of_run_lengths():
    rng = np.random.default_rng(1)
    for edge in (1, 7, 300):
        mask = np.asfortranarray((rng.random((edge, 2 * edge)) < 0.2).astype(np.uint8))
        packed = coco.encode(mask)
        runs = coco_counts(packed["counts"])
        plain = coco.frPyObjects({"size": list(mask.shape), "counts": runs.tolist()}, *mask.shape)
        assert plain["counts"] == packed["counts"]
    for damaged in ("", "\x01", "oo", 7, ["a"]):
        with pytest.raises(DataError):
            coco_counts(damaged)


@pytest.mark.parametrize(
    "corners",
    [
        TRIANGLE,
        [2, 2, 20, 17, 20, 2, 2, 17],  # crosses itself
        [4.1, 2.2, 12.3, 18.4, 20.1, 2.2, 2.3, 12.3, 22.2, 11.9],  # a star
        [-50, -9, 100, 5, 10, 60],  # reaches out of the image
    ],
)
def test_a_polygon_holds_the_pixels_whose_centres_are_inside(data, tmp_path, corners):
    write(data / "instances.json", [annotation(10, 3, [corners])])
    _, masks, notes = imported(data, tmp_path / "out", unlabelled_as="nothing")
    np.testing.assert_array_equal(masks["train/1"] == 1, inside(*corners))
    assert any("beyond their image" in note for note in notes) == (min(corners) < 0)


def test_pycocotools_differs_by_the_outline_only(data, tmp_path):
    write(data / "instances.json", [annotation(10, 3, [BOX, TRIANGLE])])
    _, masks, _ = imported(data, tmp_path / "out")
    theirs = coco.decode(coco.merge(coco.frPyObjects([BOX, TRIANGLE], *SIZE))).astype(bool)
    ours = masks["train/1"] == 1
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9


@pytest.mark.parametrize(("overlap", "both"), [(None, "cup"), ("smaller", "cup"), ("later", "table"), ("ignore", None)])
def test_overlaps(data, tmp_path, overlap, both):
    write(data / "instances.json", [annotation(10, 90, [BOX]), annotation(10, 3, [TRIANGLE])])
    names, masks, _ = imported(data, tmp_path / "out", overlap=overlap)
    shared = inside(*BOX) & inside(*TRIANGLE)
    assert shared.any()
    assert set(masks["train/1"][shared]) == {names.index(both) if both else 255}


def test_what_is_no_shape_is_counted_and_named(data, tmp_path):
    shapes = [[BOX], [[1, 1, 9, 9]], [[3, 3, 3, 3, 3, 3]], []]
    write(data / "instances.json", [*(annotation(10, 3, s) for s in shapes), annotation(99, 3, [BOX])])
    names, _, notes = imported(data, tmp_path / "out")
    assert names == ("background", "table")
    shown = "\n".join(notes)
    for part in ("2 outlines without an area", "1 annotations without a shape", "1 annotations of images that are not"):
        assert part in shown
    assert "1 classes without a shape left out (cup)" in shown


@pytest.mark.parametrize(("corners", "first"), [(BOX, "background"), ([0, 0, 30, 0, 30, 19.5, 0, 19.5], "table")])
def test_few_pixels_without_a_label_are_ignored(data, tmp_path, corners, first):
    write(data / "instances.json", [annotation(10, 3, [corners])])
    names, masks, notes = imported(data, tmp_path / "out")
    assert names[0] == first and ("ignored" in notes[-1]) == (first == "table")
    assert masks["train/1"][-1, -1] == (0 if first == "background" else 255)


def test_splits_and_the_places_of_images(tmp_path):
    """Roboflow's layout: a file beside the images of each split, with a category that stands for all."""
    root = tmp_path / "export"
    for split in ("train", "valid", "test"):
        photo(root / split / "a.jpg")
        write(root / split / "_annotations.coco.json", [annotation(10, 3, [BOX])], names=["a.jpg"])
    _, masks, _ = imported(root, tmp_path / "out")
    assert set(masks) == {"train/a", "val/a", "test/a"}
    one, _, _ = imported(root / "valid/_annotations.coco.json", tmp_path / "one")
    assert one == ("background", "table")


def test_images_that_are_not_there(data, tmp_path):
    write(data / "instances.json", [annotation(10, 3, [BOX])], names=["1.png", "far/2.png", "3.png"])
    with pytest.raises(DataError, match=r"2 files that the labels name are not there: far/2\.png .*--skip-missing"):
        imported(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    _, masks, notes = imported(data, tmp_path / "out", skip_missing=True)
    assert list(masks) == ["train/1"] and any(note.startswith("2 missing files skipped") for note in notes)


def test_sizes_that_differ_and_photos_that_lie_on_their_side(data, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    stored = Image.open(photo(tmp_path / "plain.png"))
    stored.save(data / "train2017/1.png", exif=turned)
    write(data / "instances.json", [annotation(10, 3, [BOX])])
    _, masks, _ = imported(data, tmp_path / "out")
    np.testing.assert_array_equal(masks["train/1"] == 1, np.rot90(inside(*BOX), -1))
    write(data / "instances.json", [annotation(10, 3, [BOX])], height=9)
    with pytest.raises(DataError, match=r"9x30 .* but its image .*1\.png is 30x20"):
        imported(data, tmp_path / "other")


@pytest.mark.parametrize(
    ("shape", "category", "message"),
    [
        ({"size": [20, 30], "counts": [1, 2]}, 3, "run lengths of 3 pixels for a size of 20x30"),
        ([[1, 2, 3]], 3, "odd number of coordinates"),
        ([[1, 2, "a", 4, 5, 6]], 3, "no numbers"),
        ([BOX], 5, "category that is not listed"),
    ],
)
def test_damaged_annotations_are_named(data, tmp_path, shape, category, message):
    write(data / "instances.json", [annotation(10, 3, [BOX]), annotation(10, category, shape)])
    with pytest.raises(DataError, match=rf"instances\.json: annotation 2: .*{message}"):
        imported(data, tmp_path / "out")


def test_two_files_of_the_same_images(data, tmp_path):
    for name in ("instances_train2017", "stuff_train2017"):
        write(data / f"annotations/{name}.json", [annotation(10, 3, [BOX])])
    with pytest.raises(DataError, match=r"1\.png is in .*instances_train2017.json and in .*stuff.*--labels"):
        imported(data, tmp_path / "out")
    assert imported(data, tmp_path / "out", labels="stuff_*")[0] == ("background", "table")


def panoptic(root):
    """A split as COCO publishes it: the colour is red + 256 green + 65536 blue."""
    photo(root / "val2017/7.png")
    numbers = np.zeros((*SIZE, 3), np.uint8)
    numbers[:, 10:20] = (5, 1, 0)  # segment 261
    numbers[:, 20:] = (0, 0, 1)  # 65536
    picture(root / "annotations/panoptic_val2017/7.png", numbers)
    segments = [{"id": 261, "category_id": 3}, {"id": 65536, "category_id": 90}]
    entry = {"image_id": 10, "file_name": "7.png", "segments_info": segments}
    write(root / "annotations/panoptic_val2017.json", [entry], names=["7.png"])


def test_panoptic(tmp_path):
    panoptic(tmp_path / "coco")
    names, masks, _ = imported(tmp_path / "coco", tmp_path / "out")
    assert names == ("table", "cup")
    np.testing.assert_array_equal(masks["val/7"][0], [255] * 10 + [0] * 10 + [1] * 10)
    content = json.loads((tmp_path / "coco/annotations/panoptic_val2017.json").read_text())
    del content["annotations"][0]["segments_info"][1]
    (tmp_path / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"segments 65536 are in 7\.png and not in the JSON"):
        imported(tmp_path / "coco", tmp_path / "other")


def test_two_formats_in_one_folder(data, tmp_path):
    panoptic(data)
    write(data / "annotations/instances_train2017.json", [annotation(10, 3, [BOX])])
    with pytest.raises(DataError, match=r"2 formats: COCO \(objects.*COCO panoptic.*--format coco-panoptic"):
        open_source("auto", data)
    assert imported(data, tmp_path / "out", format="coco")[0] == ("background", "table")


@pytest.mark.parametrize("source", ["auto", "folder"])
def test_the_command_that_imports_is_named_and_works(data, tmp_path, source, capsys):
    write(data / "annotations/instances_train2017.json", [annotation(10, 3, [BOX])])
    (finding,) = diagnose_path(data, source).findings
    assert finding.code == "other-format"
    assert finding.remedy == f"litheseg data import {data} {data}-imported"
    assert main(finding.remedy.split()[1:]) == 0
    assert "train 1; 2 classes: background, table" in capsys.readouterr().out
    assert open_source("auto", f"{data}-imported").classes.names == ("background", "table")
    assert main(finding.remedy.split()[1:]) == 2  # nothing is written over
    assert main(["data", "import", str(tmp_path), str(tmp_path / "other"), "--format", "yolo"]) == 2
    assert "looked for data.yaml" in capsys.readouterr().err


def test_boxes_alone_make_no_masks(data, tmp_path):
    write(data / "instances.json", [annotation(10, 3, [])])
    with pytest.raises(DataError, match=r"no shape that makes a mask \(1 annotations without a shape"):
        imported(data, tmp_path / "out")


def test_masks_beside_a_json_file_are_refused_until_one_is_chosen(data, tmp_path):
    write(data / "annotations/instances.json", [annotation(10, 3, [BOX])], names=["a.png"])
    photo(data / "images/a.png")
    picture(data / "masks/a.png", np.ones(SIZE))
    with pytest.raises(
        DataError, match=r"data set 'folder', and holds labels as COCO .*--data\.source folder.*--format"
    ):
        open_source("auto", data)
    assert imported(data, tmp_path / "out", format="coco")[0] == ("background", "table")
    (data / "classes.yaml").write_text("classes: [ground, leaf]\n")
    assert open_source("auto", data).classes.names == ("ground", "leaf")
