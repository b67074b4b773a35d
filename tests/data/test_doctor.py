"""The doctor: every kind of trouble is found, named and counted, and a healthy data set has none."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from litheseg.data.doctor.diagnosis import Diagnosis, diagnose, diagnose_path
from litheseg.data.doctor.findings import KNOWN
from litheseg.data.doctor.learnable import STRIDES, filled_cells
from litheseg.data.sources.folder import FolderSource
from litheseg.data.sources.streets import Streets

SIZE = (24, 32)
CLASSES = "classes: [road, car, tree]\n"


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth random image, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def labels(size: tuple[int, int] = SIZE) -> np.ndarray:
    """All three classes."""
    mask = np.zeros(size, np.uint8)
    mask[:, 10:] = 1
    mask[:, 20:] = 2
    return mask


def put(path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def data(tmp_path):
    """A healthy folder: 4 train and 2 val pairs."""
    (tmp_path / "classes.yaml").write_text(CLASSES)
    for split, count, first in (("train", 4, 0), ("val", 2, 100)):
        for index in range(count):
            put(tmp_path / "images" / split / f"{index}.png", picture(first + index))
            put(tmp_path / "masks" / split / f"{index}.png", labels())
    return tmp_path


def codes(report: Diagnosis) -> list[str]:
    return [item.code for item in report.findings]


def only(report: Diagnosis, code: str):
    """The one finding, which must be of this code."""
    assert codes(report) == [code], report.findings
    return report.findings[0]


def the(report: Diagnosis, code: str):
    """The finding of this code among others."""
    return next(item for item in report.findings if item.code == code)


def test_a_healthy_folder_has_no_findings(data):
    report = diagnose_path(data)
    assert report.ok
    assert report.findings == ()
    summary = report.splits["train"]
    assert (summary.samples, summary.labelled, summary.ignored) == (4, 4, 0)
    assert summary.sizes == {SIZE: 4}
    assert summary.histogram == (4 * 24 * 10, 4 * 24 * 10, 4 * 24 * 12)
    assert summary.values == {"2": 1152, "0": 960, "1": 960}


def test_all_unpaired_files_are_named_and_the_rest_is_examined(data):
    for index in (0, 1):
        (data / "masks/train" / f"{index}.png").unlink()
    put(data / "masks/train/extra.png", labels())
    report = diagnose_path(data)
    assert not report.ok
    images, masks = the(report, "unpaired-image"), the(report, "unpaired-mask")
    assert images.files == tuple(str(data / "images/train" / f"{index}.png") for index in (0, 1))
    assert (images.count, masks.count) == (2, 1)
    assert masks.files == (str(data / "masks/train/extra.png"),)
    assert report.splits["train"].samples == 2
    assert "allow_unlabelled" in images.remedy


def test_unpaired_files_of_a_held_out_split_are_reported_once(tmp_path):
    (tmp_path / "classes.yaml").write_text(CLASSES)
    for index in range(5):
        put(tmp_path / "images" / f"{index}.png", picture(index))
        if index:
            put(tmp_path / "masks" / f"{index}.png", labels())
    assert only(diagnose_path(tmp_path), "unpaired-image").count == 1


def test_unpaired_camvid(tmp_path):
    for split in ("train", "val"):
        for index in range(2):
            put(tmp_path / split / f"{index}.png", picture(index + 10 * len(split)))
            put(tmp_path / f"{split}annot" / f"{index}.png", np.arange(24 * 32, dtype=np.uint8).reshape(SIZE) % 12)
    assert diagnose_path(tmp_path).ok
    (tmp_path / "valannot/1.png").unlink()
    report = diagnose_path(tmp_path)
    assert the(report, "unpaired-image").files == (str(tmp_path / "val/1.png"),)


def test_lines_of_a_list_without_files(data):
    lists = data / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("images/train/0.png masks/train/0.png\nimages/train/9.png masks/train/9.png\n")
    (lists / "val.txt").write_text("images/val/0.png masks/val/0.png\nimages/val/1.png\n")
    report = diagnose(FolderSource(data, lists=lists))
    assert codes(report) == ["unpaired-image", "missing-file"]
    assert "line 2" in the(report, "missing-file").files[0]


def test_voc_lists_without_files(tmp_path):
    for index in range(3):
        put(tmp_path / "JPEGImages" / f"{index}.jpg", picture(index))
        put(tmp_path / "SegmentationClass" / f"{index}.png", np.arange(24 * 32).reshape(SIZE).astype(np.uint8) % 21)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n7\n")
    (lists / "val.txt").write_text("1\n2\n")
    report = diagnose_path(tmp_path)
    assert report.source == "voc"
    assert the(report, "missing-file").files == ("7",)


def test_unpaired_augmented_voc(tmp_path):
    for index in range(4):
        put(tmp_path / "JPEGImages" / f"{index}.jpg", picture(index))
        put(tmp_path / "SegmentationClass" / f"{index}.png", np.arange(24 * 32).reshape(SIZE).astype(np.uint8) % 21)
        put(tmp_path / "SegmentationClassAug" / f"{index}.png", np.arange(24 * 32).reshape(SIZE).astype(np.uint8) % 21)
    (tmp_path / "JPEGImages/1.jpg").unlink()
    (tmp_path / "SegmentationClassAug/2.png").unlink()
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n")
    (lists / "trainaug.txt").write_text("0\n1\n2\n7\n")
    (lists / "val.txt").write_text("3\n")
    report = diagnose_path(tmp_path, augmented=True)
    assert codes(report)[:3] == ["unpaired-image", "unpaired-mask", "missing-file"]
    assert the(report, "unpaired-image").files == (str(tmp_path / "JPEGImages/2.jpg"),)
    assert the(report, "unpaired-mask").files == (str(tmp_path / "SegmentationClassAug/1.png"),)
    assert the(report, "missing-file").files == ("7",)
    assert (report.splits["train"].samples, report.splits["val"].samples) == (1, 1)


def test_a_line_that_stands_twice(data):
    (data / "train.txt").write_text("images/train/0.png masks/train/0.png\n" * 2)
    (data / "val.txt").write_text("images/val/0.png masks/val/0.png\n")
    report = diagnose(FolderSource(data, lists=data))
    assert "listed twice" in only(report, "unusable-split").message
    assert report.splits["train"].samples == 1


def test_trouble_in_train_hides_none_in_val(data):
    (data / "masks/train/0.png").unlink()
    put(data / "images/val/0.bmp", picture(0))
    report = diagnose_path(data)
    assert "'val'" in the(report, "same-stem").message
    assert the(report, "unpaired-image").count == 1


def test_a_mask_without_image_where_unlabelled_images_are_allowed(data):
    (data / "masks/train/0.png").unlink()
    put(data / "masks/train/extra.png", labels())
    report = diagnose_path(data, allow_unlabelled=True)
    assert codes(report) == ["unpaired-mask", "unlabelled"]
    assert (report.splits["train"].samples, report.splits["train"].labelled) == (4, 3)


def test_unlabelled_images_are_no_error_where_they_are_allowed(data):
    (data / "masks/train/0.png").unlink()
    report = diagnose_path(data, allow_unlabelled=True)
    assert report.ok
    assert only(report, "unlabelled").count == 1
    assert report.splits["train"].labelled == 3


def test_two_files_of_one_stem(data):
    put(data / "images/train/0.bmp", picture(0))
    put(data / "images/train/3.bmp", picture(0))
    finding = only(diagnose_path(data, splits=["train"]), "same-stem")
    assert finding.files == (str(data / "images/train/0.png"), str(data / "images/train/3.png"))


def test_an_image_that_is_too_large(data):
    finding = only(diagnose_path(data, splits=["val"], max_pixels=700), "too-large")
    assert finding.count == 4 and "32 x 24 pixels, and at most 700" in finding.message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_a_terminal_would_obey_or_cannot_show(data):
    for name in (b"\x1b[31mred.png", b"caf\xe9.png"):
        with open(os.fsencode(data / "images/train") + b"/" + name, "wb") as file:
            file.write(b"no image")
        (data / "masks/train" / os.fsdecode(name)).write_bytes((data / "masks/train/0.png").read_bytes())
    report = diagnose_path(data)
    text = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Console(file=text, width=300, force_terminal=False).print(report.render())
    text.seek(0)
    shown = text.read()
    assert "\x1b" not in shown and r"\x1b[31mred.png" in shown and r"caf\udce9.png" in shown
    files = json.loads(report.to_json())["findings"][0]["files"]
    assert os.fsencode(files[1]).endswith(b"caf\xe9.png")


def test_masks_of_another_size(data):
    put(data / "masks/train/2.png", labels((24, 40)))
    finding = only(diagnose_path(data), "size-mismatch")
    assert finding.files == (str(data / "masks/train/2.png"),)
    assert "mask 24x40, image 24x32" in finding.message


def test_an_upright_mask_of_a_turned_photograph_is_fine(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(7)).save(data / "images/train/0.png", exif=exif)
    put(data / "masks/train/0.png", np.rot90(labels(), -1))
    assert codes(diagnose_path(data)) == ["mixed-sizes"]


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_truncated_files(data, kind):
    path = data / f"{kind}s/val/1.png"
    put(path, np.random.default_rng(0).integers(0, 3, SIZE, dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-60])
    finding = only(diagnose_path(data), f"unreadable-{kind}")
    assert finding.severity == "error"
    assert finding.files == (str(path),)


def test_a_text_file_called_png_and_a_jpeg_mask(data):
    (data / "images/train/0.png").write_text("hello")
    Image.fromarray(labels()).save(data / "masks/train/1.png", format="JPEG")
    report = diagnose_path(data)
    assert the(report, "unreadable-image").count == 1
    assert "JPEG" in the(report, "unreadable-mask").message


def test_values_outside_the_classes(data):
    mask = labels()
    mask[0, :5] = 77
    put(data / "masks/train/3.png", mask)
    report = diagnose_path(data)
    finding = only(report, "unknown-label")
    assert "77 (5 px)" in finding.message
    assert finding.files == (str(data / "masks/train/3.png"),)
    assert report.splits["train"].values["77"] == 5


def test_labels_that_count_from_one(data):
    for path in data.glob("masks/*/*.png"):
        put(path, labels() + 1)
    report = diagnose_path(data)
    assert "id: 1" in the(report, "off-by-one").remedy
    assert the(report, "off-by-one").count == 6
    assert not report.ok


def test_labels_that_count_from_one_and_whose_last_is_ignored(data):
    (data / "classes.yaml").write_text(CLASSES + "ignore: [3]\n")
    for path in data.glob("masks/*/*.png"):
        put(path, labels() + 1)
    report = diagnose_path(data)
    assert report.ok
    assert the(report, "maybe-off-by-one").severity == "warning"
    assert the(report, "absent-class").files == ("road",)


def test_labels_from_one_on_purpose_are_fine(data):
    entries = ", ".join(f"{{name: {name}, id: {i + 1}}}" for i, name in enumerate(["road", "car", "tree"]))
    (data / "classes.yaml").write_text(f"classes: [{entries}]\n")
    for path in data.glob("masks/*/*.png"):
        put(path, labels() + 1)
    assert diagnose_path(data).findings == ()


def test_colour_masks_read_as_index(data):
    put(data / "masks/train/1.png", np.stack([labels()] * 3, axis=-1))  # grey: indices all the same
    put(data / "masks/train/0.png", np.stack([labels(), labels(), 0 * labels()], axis=-1) * 40)
    assert only(diagnose_path(data), "rgb-mask").files == (str(data / "masks/train/0.png"),)


def test_index_masks_read_as_colours_and_unknown_colours(data):
    (data / "classes.yaml").write_text(
        "encoding: rgb\nclasses:\n  - {name: road, color: [1, 2, 3]}\n  - {name: car, color: [4, 5, 6]}\n"
    )
    colours = np.array([(1, 2, 3), (4, 5, 6), (4, 5, 6)], np.uint8)
    for path in data.glob("masks/*/*.png"):
        put(path, colours[labels()])
    assert diagnose_path(data).findings == ()
    put(data / "masks/train/0.png", labels())
    put(data / "masks/train/1.png", colours[labels()] + np.uint8(1))
    report = diagnose_path(data)
    assert codes(report) == ["index-mask", "unknown-label"]
    assert "#020304" in the(report, "unknown-label").message


def test_absent_and_rare_classes(data):
    for path in data.glob("masks/*/*.png"):
        put(path, labels() % 2)
    assert only(diagnose_path(data), "absent-class").files == ("tree",)
    put(data / "masks/val/0.png", labels())
    finding = only(diagnose_path(data), "absent-in-split")
    assert "'train' lacks: tree" in finding.message
    mask = labels() % 2
    mask[0, 0] = 2
    put(data / "masks/train/0.png", mask)
    assert "tree (0.033% of the pixels)" in the(diagnose_path(data), "rare-class").message


def test_ignored_images(data):
    put(data / "masks/train/0.png", np.full(SIZE, 255, np.uint8))
    report = diagnose_path(data)
    assert only(report, "all-ignored").files == (str(data / "images/train/0.png"),)
    assert report.splits["train"].ignored == 24 * 32
    for index in (1, 2):
        put(data / "masks/train" / f"{index}.png", np.full(SIZE, 255, np.uint8))
    assert codes(diagnose_path(data)) == ["all-ignored", "mostly-ignored"]
    put(data / "masks/train/3.png", np.full(SIZE, 255, np.uint8))
    report = diagnose_path(data)
    assert not report.ok
    assert the(report, "nothing-labelled").count == 4


def test_copies(data):
    put(data / "images/train/9.png", picture(0))
    put(data / "masks/train/9.png", labels())
    assert only(diagnose_path(data), "duplicate").files == (str(data / "images/train/9.png"),)


def test_training_images_that_return_in_val(data):
    put(data / "images/val/1.png", picture(2))
    finding = only(diagnose_path(data), "leak")
    assert finding.files == (str(data / "images/train/2.png"),)
    assert "val/1.png" in finding.message


@pytest.mark.parametrize("change", ["jpeg", "brighter", "resized"])
def test_changed_copies_in_val(data, change):
    image = picture(2)
    if change == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=60)
        image = np.asarray(Image.open(buffer))
    elif change == "brighter":
        image = np.clip(image.astype(int) + 9, 0, 255).astype(np.uint8)
    else:
        image = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BICUBIC))
        put(data / "masks/val/1.png", labels((48, 64)))
    put(data / "images/val/1.png", image)
    report = diagnose_path(data)
    assert the(report, "near-leak").files == (str(data / "images/train/2.png"),)
    assert report.ok


def test_flat_images_are_not_all_alike(data):
    for index, level in enumerate((10, 90, 170, 250)):
        put(data / "images/train" / f"{index}.png", np.full((*SIZE, 3), level, np.uint8))
    put(data / "images/val/0.png", np.full((*SIZE, 3), 50, np.uint8))
    report = diagnose_path(data)
    assert "leak" not in codes(report)


def test_images_smaller_than_the_crop(data):
    put(data / "images/train/0.png", picture(50, (10, 64)))
    put(data / "masks/train/0.png", labels((10, 64)))
    report = diagnose_path(data, crop=(20, 32))
    assert the(report, "small-image").files == (str(data / "images/train/0.png"),)
    assert "10x64 (1)" in the(report, "mixed-sizes").message
    assert report.ok


def test_missing_and_empty_splits(data):
    report = diagnose_path(data, splits=["train", "test"])
    assert only(report, "missing-split").files == ("test",)
    for path in data.glob("*/val/*.png"):
        path.unlink()
    assert only(diagnose_path(data), "empty-split").files == ("val",)
    assert "no-val" not in codes(diagnose(Streets(train=2, val=0, size=(32, 32)), splits=["train"]))
    assert "no-val" in codes(diagnose(Streets(train=2, val=0, size=(32, 32))))
    assert "missing-split" in codes(diagnose(Streets(train=0, val=2, size=(32, 32))))


def test_a_folder_that_cannot_be_opened(tmp_path):
    report = diagnose_path(tmp_path / "nowhere")
    assert not report.ok
    assert "does not exist" in only(report, "cannot-open").message
    assert report.splits == {}
    assert "cannot-open" in codes(diagnose_path(tmp_path))


def test_without_a_class_list_it_shows_the_values(data):
    (data / "classes.yaml").unlink()
    report = diagnose_path(data)
    assert "classes.yaml" in the(report, "cannot-open").message
    assert report.splits["train"].values == {"2": 1152, "0": 960, "1": 960}
    assert "1152" in text(report)


def test_a_limit_spreads_over_the_split(data):
    (data / "images/train/0.png").write_text("no image")
    (data / "images/train/2.png").write_text("no image")
    report = diagnose_path(data, limit=2)
    assert report.splits["train"].samples == 2
    assert the(report, "unreadable-image").count == 2


def test_the_streets_are_healthy():
    report = diagnose(Streets(train=12, val=6, size=(64, 96)))
    assert report.ok
    assert not {"duplicate", "leak", "near-leak", "absent-class"} & set(codes(report))


def test_the_gravest_comes_first(data):
    put(data / "images/train/9.png", picture(0))
    put(data / "masks/train/9.png", labels())
    put(data / "masks/train/1.png", labels((5, 5)))
    assert [item.severity for item in diagnose_path(data).findings] == ["error", "warning"]


def text(report: Diagnosis) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(report.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_report_in_words_and_as_json(data):
    put(data / "masks/train/2.png", labels((24, 40)))
    report = diagnose_path(data)
    shown = text(report)
    assert "training cannot go on" in shown
    assert "size-mismatch" in shown
    assert "2.png" in shown
    content = json.loads(report.to_json())
    assert content["ok"] is False
    assert content["findings"][0]["code"] == "size-mismatch"
    assert content["splits"]["train"]["sizes"] == {"24x32": 4}


def test_a_healthy_report_in_words(data):
    shown = text(diagnose_path(data))
    assert "ready for training" in shown
    assert "road" in shown


def test_brackets_in_file_names_are_no_markup(data):
    put(data / "images/train/[bold]x.png", picture(60))
    put(data / "masks/train/[bold]x.png", labels((5, 5)))
    assert "[bold]x.png" in text(diagnose_path(data))


def test_every_code_has_a_remedy():
    assert all(severity in ("error", "warning", "info") and remedy for severity, remedy in KNOWN.values())


def test_masks_of_0_and_255_are_an_error_until_255_is_a_class(data):
    (data / "classes.yaml").write_text("classes: [background, leaf]\n")
    for path in data.glob("masks/*/*.png"):
        put(path, (labels() > 0) * np.uint8(255))
    report = diagnose_path(data)
    assert not report.ok and "zero-255" in codes(report)
    (data / "classes.yaml").write_text("classes: [{name: background, id: 0}, {name: leaf, id: 255}]\n")
    assert diagnose_path(data).findings == ()


def test_masks_of_one_class_are_an_error(data):
    for path in data.glob("masks/*/*.png"):
        put(path, np.zeros(SIZE, np.uint8))
    report = diagnose_path(data)
    assert not report.ok and "one-class" in codes(report)
    assert "'road' is the only class" in next(item.message for item in report.findings if item.code == "one-class")


def film(data, split: str, names: list[str], seed: int = 0) -> None:
    """Frames of a camera that moves along a long picture, by the numbers in their names."""
    long = picture(seed, (24, 4000))
    for name in names:
        start = int(name.rpartition("_")[2]) * 5
        put(data / "images" / split / f"{name}.png", long[:, start : start + 32])
        put(data / "masks" / split / f"{name}.png", labels())


def test_val_of_a_sequence_that_is_trained_on(data):
    film(data, "train", [f"one_{number:03}" for number in range(0, 90, 3)])
    film(data, "train", [f"two_{number:03}" for number in range(200, 290, 9)])
    film(data, "val", [f"one_{number:03}" for number in range(91, 99)])
    finding = the(diagnose_path(data), "shared-sequence")
    assert finding.files == ("one",) and finding.severity == "warning"
    assert "8 of 10 images of 'val'" in finding.message and "'one': 8 here, 30 in 'train'" in finding.message
    assert "--data.leave_out one" in finding.remedy and "two (10)" in finding.remedy


def test_numbered_photographs_are_no_sequence(data):
    for split, numbers in (("train", range(30)), ("val", range(30, 40))):
        for number in numbers:
            put(data / "images" / split / f"IMG_{number}.png", picture(number + 1000))
            put(data / "masks" / split / f"IMG_{number}.png", labels())
    assert diagnose_path(data).findings == ()


def test_leaks_between_val_and_test(data):
    for split, number in (("test", 100), ("test", 2)):
        put(data / "images" / split / f"{number}.png", picture(number))
        put(data / "masks" / split / f"{number}.png", labels())
    found = [item for item in diagnose_path(data).findings if item.code == "leak"]
    assert ["'train'" in item.message for item in found] == [True, False]
    assert all("'test'" in item.message for item in found)


def test_thin_and_rare_classes_are_named(data):
    for number in range(25):
        put(data / "images/train" / f"x{number}.png", picture(number + 1000, (64, 64)))
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 30:32] = 1  # two pixels wide
        mask[:32, :16] = 2 if number < 3 else 0
        put(data / "masks/train" / f"x{number}.png", mask)
    for name in (*"0123",):
        put(data / "masks/train" / f"{name}.png", np.zeros(SIZE, np.uint8))
    report = diagnose_path(data)
    small, few = the(report, "small-objects"), the(report, "few-images")
    assert small.files == ("car",) and "'car' 0%, 0%, 0%, 0%" in small.message
    assert few.files == ("tree",) and "'tree' in 3" in few.message


def test_filled_cells_are_those_of_a_majority():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 4, (9, 7)), np.ones((7, 9), int)).astype(np.uint8)  # 3 is no class
    for place, stride in enumerate(STRIDES):
        expected = np.zeros(3, int)
        for top in range(0, mask.shape[0], stride):
            for left in range(0, mask.shape[1], stride):
                cell = mask[top : top + stride, left : left + stride]
                for k in range(3):
                    count = (cell == k).sum()
                    expected[k] += count * (2 * count > stride * stride)
        np.testing.assert_array_equal(filled_cells(mask, 3)[place], expected)


def test_dark_images_images_of_another_kind_and_fourth_channels(data):
    put(data / "images/train/0.png", picture(0) // 5)
    assert only(diagnose_path(data), "dark-image").files == (str(data / "images/train/0.png"),)
    put(data / "images/train/0.png", picture(0))
    put(data / "images/train/1.png", picture(1)[..., 0].astype(np.uint16))
    finding = only(diagnose_path(data), "mixed-images")
    assert finding.severity == "error" and finding.files == (str(data / "images/train/1.png"),)
    assert "1.png has 1 channel of uint16, and " in finding.message and "0.png 3 channels of uint8" in finding.message
    depth = np.dstack([picture(1), np.full(SIZE, 90, np.uint8)])
    put(data / "images/train/1.png", depth)
    finding = only(diagnose_path(data), "transparent")
    assert finding.files == (str(data / "images/train/1.png"),) and "depth or infrared" in finding.remedy
