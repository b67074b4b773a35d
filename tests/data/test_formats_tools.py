"""Annotation tools: LabelMe's JSON, CVAT's XML and mask trees, Label Studio's JSON, as their pages describe them."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from tiny_formats import SIZE, imported, photo, picture

from litheseg.data import open_source
from litheseg.errors import DataError

HEIGHT, WIDTH = SIZE
TRIANGLE = [(2.3, 2.2), (25.4, 4.1), (8.2, 17.3)]


def inside(points):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    found = Outline(points).contains_points(np.column_stack([columns.ravel(), rows.ravel()]))
    return found.reshape(SIZE)


def half(columns):
    return np.arange(WIDTH)[None] < columns + np.zeros((HEIGHT, 1))


def png(array) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# LabelMe


def labelme(path, *shapes, image="a.jpg", data=None):
    """A file as LabelMe 5 saves it."""
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}
            for label, kind, points, more in shapes
        ],
        "imagePath": image,
        "imageData": data,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def test_labelme(tmp_path):
    root = tmp_path / "mine"
    photo(root / "a.jpg")
    photo(root / "without.jpg")
    small = np.zeros((4, 5), bool)
    small[1:3, 1:4] = True
    labelme(
        root / "a.json",
        ("leaf", "polygon", TRIANGLE, {}),
        ("bug", "rectangle", [[20, 10], [26, 16]], {}),
        ("__ignore__", "circle", [[5, 15], [5, 18]], {}),
        ("bug", "mask", [[24, 0], [29, 4]], {"mask": png(small * 255)}),
        ("stem", "line", [[0, 0], [9, 9]], {}),
        ("leaf", "polygon", [[1, 1], [1, 1], [1, 1]], {}),
    )
    names, masks, notes = imported(root, tmp_path / "out")
    assert names == ("background", "bug", "leaf")
    expected = np.where(inside(TRIANGLE), 2, 0)
    expected[10:16, 20:26] = 1
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected[np.hypot(rows - 15, columns - 5) < 3] = 255
    expected[1:3, 25:28] = 1
    np.testing.assert_array_equal(masks["train/a"], expected)
    shown = "\n".join(notes)
    assert "1 lines and points left out" in shown and "1 outlines without an area left out" in shown
    assert "1 images without a .json file left out, e.g. in" in shown and "without.jpg" in shown


def test_labelme_keeps_images_in_its_files_and_an_order_in_labels_txt(tmp_path):
    root = tmp_path / "mine"
    labelme(root / "a.json", ("leaf", "polygon", TRIANGLE, {}), data=png(np.full((*SIZE, 3), 9)))
    labelme(root / "b.json", ("bug", "polygon", TRIANGLE, {}), data=png(np.full((*SIZE, 3), 9)))
    (root / "labels.txt").write_text("__ignore__\n_background_\nleaf\nbug\n")
    assert imported(root, tmp_path / "out")[0] == ("background", "leaf", "bug")
    assert open_source("auto", tmp_path / "out").read_image(_first(tmp_path / "out"))[0, 0].tolist() == [9, 9, 9]
    labelme(root / "c.json", ("bug", "polygon", TRIANGLE, {}), image="..\\photos\\c.jpg")
    with pytest.raises(DataError, match=r"1 files .* not there: .*c\.jpg \(of c\.json\)"):
        imported(root, tmp_path / "other")


def _first(folder):
    return open_source("auto", folder).samples("train")[0]


# CVAT for images

XML = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>t</name><labels>
    <label><name>leaf</name><color>#33ddff</color><type>any</type><attributes></attributes></label>
    <label><name>bug</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
    <label><name>stem</name><color>#00ff00</color><type>any</type><attributes></attributes></label>
  </labels></task></meta>
  <image id="0" name="deep/a.jpg" subset="Validation" width="{WIDTH}" height="{HEIGHT}">
    <mask label="bug" source="manual" occluded="0" rle="2, 3, 4, 1" left="10" top="8" width="5" height="2" z_order="2"/>
    <polygon label="leaf" source="manual" occluded="0" points="2.3,2.2;25.4,4.1;8.2,17.3" z_order="1"></polygon>
    <box label="bug" source="manual" occluded="0" xtl="0" ytl="16.0" xbr="4" ybr="20.0" z_order="0"></box>
    <ellipse label="bug" cx="25" cy="15" rx="4" ry="2" rotation="90" z_order="0"></ellipse>
    <points label="bug" points="1,1" z_order="0"></points>
  </image>
  <image id="1" name="b.jpg" width="{WIDTH}" height="{HEIGHT}"></image>
</annotations>"""


def test_cvat_for_images(tmp_path):
    root = tmp_path / "job"
    photo(root / "images/deep/a.jpg")
    photo(root / "images/b.jpg")
    (root / "annotations.xml").write_text(XML)
    names, masks, notes = imported(root, tmp_path / "out")
    assert names == ("background", "leaf", "bug")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected = np.zeros(SIZE, int)
    expected[16:20, :4] = 2
    expected[((columns - 25) / 2) ** 2 + ((rows - 15) / 4) ** 2 < 1] = 2
    expected[inside(TRIANGLE)] = 1
    expected[8, 12:15] = 2  # run lengths: 2 out, 3 in, 4 out, 1 in
    expected[9, 14] = 2
    np.testing.assert_array_equal(masks["val/deep/a"], expected)
    assert list(masks) == ["val/deep/a"]
    shown = "\n".join(notes)
    assert "1 images that nobody drew on left out" in shown and "1 lines and points left out" in shown
    assert "1 classes without a shape left out (stem)" in shown


def test_an_archive_is_unpacked_and_goes_again(tmp_path):
    photo(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "job.zip", "w") as archive:
        archive.writestr("annotations.xml", XML)
        for name in ("deep/a.jpg", "b.jpg"):
            archive.write(tmp_path / "a.jpg", f"images/{name}")
    assert imported(tmp_path / "job.zip", tmp_path / "out")[0] == ("background", "leaf", "bug")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "job.zip", "out"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2, 3, 4, 1", "2, 3, 4", "a mask of 9 pixels in a box of 2x5"),
        ("2.3,2.2;", "2.3;", "image 'deep/a.jpg': no image as CVAT"),
        ("</annotations>", "", "damaged or no XML"),
    ],
)
def test_damaged_cvat_files_are_named(tmp_path, old, new, message):
    photo(tmp_path / "deep/a.jpg")
    (tmp_path / "annotations.xml").write_text(XML.replace(old, new))
    with pytest.raises(DataError, match=rf"annotations\.xml.*{message}"):
        imported(tmp_path, tmp_path / "out", format="cvat")


# Trees as PASCAL VOC's


@pytest.mark.parametrize("palette", [False, True])
def test_a_mask_export_of_cvat_with_classes_of_its_own(tmp_path, palette):
    root = tmp_path / "job"
    colours = np.where(half(9)[..., None], (250, 50, 83), (0, 0, 0)).astype(np.uint8)
    for name in ("a", "deep/b"):
        photo(root / f"JPEGImages/{name}.jpg")
        picture(root / f"SegmentationObject/{name}.png", colours)
        path = picture(root / f"SegmentationClass/{name}.png", colours)
        if palette:
            Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:250,50,83::\n")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/Validation.txt").write_text("a\ndeep/b\n")
    with pytest.raises(DataError, match="litheseg data import"):
        open_source("auto", root)
    names, masks, _ = imported(root, tmp_path / "out")
    assert names == ("background", "leaf") and set(masks) == {"val/a", "val/deep/b"}
    np.testing.assert_array_equal(masks["val/a"] == 1, half(9))


def test_a_tree_without_lists(tmp_path):
    for number in range(3):
        photo(tmp_path / f"voc/JPEGImages/{number}.jpg")
        picture(tmp_path / f"voc/SegmentationClass/{number}.png", half(9) * 1)
    names, masks, notes = imported(tmp_path / "voc", tmp_path / "out")
    assert names == ("class 0", "class 1") and len(masks) == 3 and "rename them" in notes[-1]


# Label Studio


def region(kind, label, **value):
    """As Label Studio stores what was drawn."""
    about = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "from_name": "label"}
    return {"id": "x1", "type": kind, "to_name": "image", **about, "value": {**value, kind: [label]}}


def test_label_studio(tmp_path):
    root = tmp_path / "project"
    photo(root / "images/a b.jpg")
    photo(root / "images/b.jpg")
    points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in TRIANGLE]
    polygon = region("polygonlabels", "leaf", points=points)
    skipped = region("polygonlabels", "wrong", points=points)
    tasks = [
        {
            "id": 1,
            "data": {"image": "/data/upload/1/1a2b3c4d-a%20b.jpg"},
            "annotations": [
                {"id": 1, "result": [polygon], "was_cancelled": False},
                {"id": 2, "result": [skipped], "was_cancelled": True},
            ],
        },
        {"id": 2, "data": {"image": "/data/local-files/?d=images/b.jpg"}, "annotations": []},
    ]
    (root / "project-1.json").write_text(json.dumps(tasks))
    names, masks, notes = imported(root, tmp_path / "out")
    assert names == ("background", "leaf") and list(masks) == ["train/a b"]
    np.testing.assert_array_equal(masks["train/a b"] == 1, inside(TRIANGLE))
    assert any("1 images that nobody drew on left out" in note for note in notes)
    tasks[0]["annotations"][0]["result"].append(region("rectanglelabels", "leaf", x=1, y=1, width=5, height=5))
    (root / "project-1.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError, match="region 'x1': a shape of type 'rectanglelabels' makes no mask"):
        imported(root, tmp_path / "other")
