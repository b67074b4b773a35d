"""Images and masks as files of any names: what pairs, what the masks are, and what their values mean."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny_formats import SIZE, imported, photo, picture

from litheseg.data import open_source
from litheseg.errors import DataError

COUNT = 5


def mask(path, values=(0, 255), seed=0):
    return picture(path, np.random.default_rng(seed).choice(values, SIZE))


@pytest.mark.parametrize(
    ("image", "label", "key"),
    [
        ("images/img_{}.jpg", "masks/mask_{}.png", "train/{}"),
        ("{}_rgb.png", "{}_label.png", "train/{}"),
        ("{}.jpg", "{}.png", "train/{}"),
        ("{}.png", "{}_mask.png", "train/{}"),
        ("train/a{}.png", "train_labels/a{}_L.png", "train/a{}"),
        ("val/seq1/photos/a{}.jpg", "val/seq1/truth/a{}_gt.png", "val/seq1/a{}"),
        ("photos/test/a{}.jpg", "truth/test/gt-a{}.png", "test/a{}"),
        ("set/ISIC_00{}.jpg", "truth/ISIC_00{}_segmentation.png", "train/ISIC_00{}"),
        ("Images/x {}.JPG", "Segmentations/x {}.PNG", "train/x {}"),
    ],
)
def test_names_that_pair(tmp_path, image, label, key):
    root = tmp_path / "mine"
    numbers = range(98, 98 + COUNT)
    for number in numbers:
        photo(root / image.format(number), seed=number)
        mask(root / label.format(number), seed=number)
    with pytest.raises(DataError, match=r"image and mask files.*litheseg data import .*mine-imported"):
        open_source("auto", root)
    names, masks, notes = imported(root, tmp_path / "out")
    assert names == ("class 0", "class 255") and "rename them" in notes[-1]
    assert set(masks) == {key.format(number) for number in numbers}
    for number in numbers:
        raw = np.asarray(Image.open(root / label.format(number)))
        np.testing.assert_array_equal(masks[key.format(number)], raw > 0)


def test_a_folder_that_training_takes_is_left_alone(tmp_path):
    for number in range(COUNT):
        photo(tmp_path / f"images/{number}.png", seed=number)
        mask(tmp_path / f"masks/{number}.png")
    with pytest.raises(DataError, match="--write-classes"):
        open_source("auto", tmp_path)


def test_files_without_a_partner(tmp_path):
    root = tmp_path / "mine"
    for number in range(COUNT):
        photo(root / f"photos/{number}.jpg", seed=number)
        mask(root / f"truth/{number}_gt.png")
    photo(root / "photos/extra.jpg")
    assert "1 images without a mask left out, e.g. in" in imported(root, tmp_path / "out")[2][0]
    mask(root / "truth/77_gt.png")
    with pytest.raises(DataError, match=r"1 files .* not there: the image of .*77_gt\.png"):
        imported(root, tmp_path / "other")
    assert len(imported(root, tmp_path / "other", skip_missing=True)[1]) == COUNT


def test_two_kinds_of_masks(tmp_path):
    for number in range(COUNT):
        photo(tmp_path / f"mine/raw/{number}.jpg", seed=number)
        mask(tmp_path / f"mine/one/{number}.png")
        mask(tmp_path / f"mine/two/{number}.png", values=(1, 2, 3))
    with pytest.raises(DataError, match=r"masks such as .*one.* and with masks such as .*two.*--labels 'one/\*\.png'"):
        imported(tmp_path / "mine", tmp_path / "out")
    assert imported(tmp_path / "mine", tmp_path / "out", labels="two/*.png")[0] == ("class 1", "class 2", "class 3")


def test_photos_beside_photos_are_nothing(tmp_path):
    for number in range(COUNT):
        photo(tmp_path / f"left/{number}.jpg", seed=number)
        photo(tmp_path / f"right/{number}.jpg", seed=number + 50)
    with pytest.raises(DataError, match=r"nothing that is recognised; expected images/ and masks/.*COCO.*YOLO"):
        open_source("auto", tmp_path)


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("class_dict.csv", "name,r,g,b\nsky,0,0,255\nhouse,255,0,0\n", ("sky", "house")),
        ("label_colors.txt", "255 0 0\thouse\n0 0 255\tsky\n", ("house", "sky")),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nhouse:255,0,0::\nsky:0,0,255::\n", ("house", "sky")),
        (None, "", ("class #0000ff", "class #ff0000")),
    ],
)
def test_colours_and_the_lists_that_name_them(tmp_path, name, content, classes):
    root = tmp_path / "mine"
    for number in range(COUNT):
        photo(root / f"x/{number}.jpg", seed=number)
        picture(root / f"y/{number}_L.png", np.where(np.arange(30)[:, None] < 9, RED, BLUE)[None].repeat(20, 0))
    if name:
        (root / name).write_text(content)
    names, masks, _ = imported(root, tmp_path / "out")
    assert names == classes
    reds = next(place for place, name in enumerate(names) if name in ("house", "class #ff0000"))
    np.testing.assert_array_equal(masks["train/0"] == reds, np.tile(np.arange(30) < 9, (20, 1)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "ground\n\nleaf\nbug\n"),
        ("_classes.csv", "Pixel Value, Class\n0, ground\n1, leaf\n2, bug\n"),
        ("id2label.json", '{"0": "ground", "1": "leaf", "2": "bug"}'),
    ],
)
def test_values_and_the_lists_that_name_them(tmp_path, name, content):
    for number in range(COUNT):
        photo(tmp_path / f"mine/{number}.jpg", seed=number)
        mask(tmp_path / f"mine/{number}_mask.png", values=(0, 1, 2, 255))
    (tmp_path / "mine" / name).write_text(content)
    names, masks, _ = imported(tmp_path / "mine", tmp_path / "out")
    assert names == ("ground", "leaf", "bug") and set(np.unique(masks["train/0"])) == {0, 1, 2, 255}


def test_palettes_and_sixteen_bits(tmp_path):
    for number in range(COUNT):
        photo(tmp_path / f"a/{number}.jpg", seed=number)
        values = np.random.default_rng(number).choice([0, 3], SIZE).astype(np.uint8)
        image = Image.fromarray(values).convert("L")
        image.putpalette([200, 10, 10] * 256)
        image.save(tmp_path / f"a/{number}_mask.png")
        photo(tmp_path / f"b/{number}.jpg", seed=number)
        mask(tmp_path / f"b/{number}_mask.png", values=(7, 3000))
    assert imported(tmp_path / "a", tmp_path / "one")[0] == ("class 0", "class 3")
    assert imported(tmp_path / "b", tmp_path / "two")[0] == ("class 7", "class 3000")


def test_smeared_masks_are_refused(tmp_path):
    for number in range(COUNT):
        photo(tmp_path / f"x/{number}.png", seed=number)
        (tmp_path / "y").mkdir(exist_ok=True)
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(tmp_path / f"y/{number}_m.jpg")
    with pytest.raises(DataError, match="JPEG has smeared labels; export it as PNG"):
        imported(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arrays_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"Arrays \(\.npy\) are not read: save images and masks as PNG"):
        open_source("auto", tmp_path)
