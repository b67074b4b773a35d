"""Data sets on disk: every layout, and what each says when a file is missing or wrong."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from litheseg.data import SOURCES, Classes, Source, open_source
from litheseg.data.sources.base import Sample, find_images
from litheseg.data.sources.folder import FolderSource
from litheseg.data.sources.public import CITYSCAPES_CLASSES, VOC_CLASSES, CamVid, Cityscapes, Voc
from litheseg.errors import DataError
from litheseg.masks.classes import CAMVID_CLASSES

TWO = ["ground", "leaf"]


def image(path, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(path)


def mask(path, value=1, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def pairs(images, masks, stems, ending="png", value=1):
    for stem in stems:
        image(images / f"{stem}.{ending}")
        mask(masks / f"{stem}.png", value)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def ids(source, split):
    return [sample.id for sample in source.samples(split)]


def check(source):
    """What every source promises."""
    assert isinstance(source, Source) and source.name
    for split in source.splits():
        samples = source.samples(split)
        assert isinstance(samples, tuple) and samples
        assert [sample.id for sample in samples] == sorted({sample.id for sample in samples})
        assert all(sample.split == split for sample in samples)
        pixels, labels = source.read_image(samples[0]), source.read_mask(samples[0])
        assert pixels.dtype == labels.dtype == np.uint8 and pixels.shape == (*labels.shape, 3)
        assert (labels[labels != 255] < len(source.classes)).all()
        assert source.raw_mask(samples[0]).shape[:2] == labels.shape


# CamVid


@pytest.mark.parametrize("ending", ["png", "jpg", "JPG"])
@pytest.mark.parametrize("name", ["camvid", "auto"])
def test_camvid(tmp_path, ending, name):
    for split in ("train", "val", "test"):
        pairs(tmp_path / split, tmp_path / f"{split}annot", ["b", "a"], ending, value=11)
    text(tmp_path / "train" / "._a.png", "left by macOS")
    text(tmp_path / "train" / "Thumbs.db", "left by Windows")
    source = open_source(name, tmp_path)
    check(source)
    assert (
        isinstance(source, CamVid)
        and source.splits() == ("train", "val", "test")
        and ids(source, "train") == ["a", "b"]
    )
    assert (source.read_mask(source.samples("val")[0]) == 255).all()
    assert (source.raw_mask(source.samples("val")[0]) == 11).all()


def test_camvid_classes():
    assert len(CAMVID_CLASSES) == 11 and CAMVID_CLASSES.names[3] == "road"
    assert CAMVID_CLASSES.colors[8] == (64, 0, 128)


def test_camvid_without_test_split_and_below_a_folder(tmp_path):
    pairs(tmp_path / "CamVid/train", tmp_path / "CamVid/trainannot", ["a"])
    source = open_source("camvid", tmp_path)
    assert source.splits() == ("train",)
    with pytest.raises(DataError, match=r"no split 'trian'. Did you mean 'train'"):
        source.samples("trian")


def test_camvid_without_val_says_where_it_would_be(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a"])
    pairs(tmp_path / "test", tmp_path / "testannot", ["a"])
    source = open_source("camvid", tmp_path)
    assert source.splits() == ("train", "test")
    message = r"no split 'val'\. Choose from: test, train\. Its files would be in val/ and valannot/"
    with pytest.raises(DataError, match=message):
        source.samples("val")
    image(tmp_path / "val/a.png")
    with pytest.raises(DataError, match=r"val.a\.png has no mask of the same stem"):
        source.samples("val")


def test_absent_camvid_can_be_fetched(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"fetch\('camvid'"):
            open_source("camvid", root)


def test_camvid_label_outside_the_classes(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a"], value=12)
    source = CamVid(tmp_path)
    with pytest.raises(DataError, match=r"a\.png: labels outside the 11 classes: 12 \(24 px\)"):
        source.read_mask(source.samples("train")[0])


# Pairing


def test_image_without_mask(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a", "b", "c"])
    for stem in "bc":
        (tmp_path / f"trainannot/{stem}.png").unlink()
    with pytest.raises(DataError, match=r"b\.png has no mask.*1 more.*allow_unlabelled"):
        CamVid(tmp_path).samples("train")
    source = CamVid(tmp_path, allow_unlabelled=True)
    assert [sample.mask is None for sample in source.samples("train")] == [False, True, True]
    assert source.read_image(source.samples("train")[1]).shape == (4, 6, 3)
    for read in (source.read_mask, source.raw_mask):
        with pytest.raises(DataError, match=r"'b' .* has no mask"):
            read(source.samples("train")[1])


@pytest.mark.parametrize("allow", [True, False])
def test_mask_without_image(tmp_path, allow):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a"])
    mask(tmp_path / "trainannot/z.png")
    with pytest.raises(DataError, match=r"z\.png has no image"):
        CamVid(tmp_path, allow_unlabelled=allow).samples("train")


def test_two_images_of_one_stem(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a"])
    image(tmp_path / "train/a.jpg")
    with pytest.raises(DataError, match=r"same stem: .*train/a\.png and a\.jpg; keep one"):
        CamVid(tmp_path).samples("train")


def test_all_images_of_one_stem_are_named_up_to_a_few(tmp_path):
    for index in range(8):
        image(tmp_path / f"{index}.png")
        image(tmp_path / f"{index}.bmp")
    image(tmp_path / "alone.png")
    with pytest.raises(DataError) as caught:
        find_images(tmp_path)
    shown = [f"{tmp_path}/{index}.png and {index}.bmp" for index in range(5)]
    assert str(caught.value) == f"files have the same stem 8 times: {', '.join(shown)} and 3 more; keep one of each"


def test_a_limit_on_pixels_holds_for_images_and_masks(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a"])
    source = open_source("camvid", tmp_path, max_pixels=24)
    (sample,) = source.samples("train")
    assert source.read_image(sample).shape == (4, 6, 3) and source.read_mask(sample).shape == (4, 6)
    source = open_source("camvid", tmp_path, max_pixels=23)
    for read in (source.read_image, source.read_mask, source.raw_mask):
        with pytest.raises(DataError, match="6 x 4 pixels, and at most 23"):
            read(sample)
    with pytest.raises(DataError, match="max_pixels is 0"):
        open_source("camvid", tmp_path, max_pixels=0)


def test_empty_split(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(DataError, match="is empty"):
        CamVid(tmp_path).samples("train")


def test_size_mismatch(tmp_path):
    image(tmp_path / "train/a.png", (8, 8))
    mask(tmp_path / "trainannot/a.png")
    source = CamVid(tmp_path)
    with pytest.raises(DataError, match=r"trainannot.a\.png: the mask is 4x6"):
        source.read_mask(source.samples("train")[0])


def test_sample_without_files(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a"])
    with pytest.raises(DataError, match="no image file"):
        CamVid(tmp_path).read_image(Sample("x", None, None, "train"))


def test_a_refused_split_is_paired_all_the_same(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a", "b", "c"])
    (tmp_path / "trainannot/c.png").unlink()
    image(tmp_path / "train/b2.png")
    (tmp_path / "train/a.png").unlink()
    source = CamVid(tmp_path)
    pairing = source.pairing("train")
    assert [sample.id for sample in pairing.pairs] == ["b"]
    assert [(sample.id, sample.mask) for sample in pairing.images] == [("b2", None), ("c", None)]
    assert pairing.masks == (tmp_path / "trainannot/a.png",) and pairing.missing == ()
    with pytest.raises(DataError) as refused:
        source.samples("train")
    assert str(refused.value) == pairing.refusal
    with pytest.raises(DataError, match="no split 'val'"):
        source.pairing("val")


def test_a_mended_split_is_read_anew(tmp_path):
    image(tmp_path / "train/a.png")
    mask(tmp_path / "trainannot/b.png")
    source = CamVid(tmp_path)
    with pytest.raises(DataError, match="no image"):
        source.samples("train")
    (tmp_path / "trainannot/b.png").rename(tmp_path / "trainannot/a.png")
    assert ids(source, "train") == ["a"] and source.pairing("train").samples == source.samples("train")


# Cityscapes


def cityscapes(root, kind="labelIds", values=(7, 33, 5, 0)):
    stem = "aachen/aachen_000000_000019"
    image(root / f"leftImg8bit/train/{stem}_leftImg8bit.png", (1, len(values)))
    path = root / f"gtFine/train/{stem}_gtFine_{kind}.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.array([values], np.uint8)).save(path)
    image(path.with_name("aachen_000000_000019_gtFine_color.png"))


def test_cityscapes(tmp_path):
    cityscapes(tmp_path)
    source = open_source("auto", tmp_path)
    check(source)
    assert isinstance(source, Cityscapes) and ids(source, "train") == ["aachen/aachen_000000_000019"]
    np.testing.assert_array_equal(source.read_mask(source.samples("train")[0]), [[0, 18, 255, 255]])
    assert len(CITYSCAPES_CLASSES) == 19 and CITYSCAPES_CLASSES.names[13] == "car"


def test_cityscapes_train_ids(tmp_path):
    cityscapes(tmp_path, "labelTrainIds", (0, 18, 255))
    source = open_source("cityscapes", tmp_path, labels="labelTrainIds")
    np.testing.assert_array_equal(source.read_mask(source.samples("train")[0]), [[0, 18, 255]])
    with pytest.raises(DataError, match="has no mask"):
        Cityscapes(tmp_path).samples("train")
    with pytest.raises(DataError, match="Did you mean 'labelIds'"):
        Cityscapes(tmp_path, labels="labelids")


# PASCAL VOC


def voc(root, stems=("2007_1", "2007_2", "2007_3")):
    for stem in stems:
        image(root / f"JPEGImages/{stem}.jpg")
        mask(root / f"SegmentationClass/{stem}.png", 15)
        mask(root / f"SegmentationClassAug/{stem}.png", 255)
    text(root / "ImageSets/Segmentation/train.txt", stems[0])
    text(root / "ImageSets/Segmentation/val.txt", stems[-1])


@pytest.mark.parametrize("inner", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, inner):
    voc(tmp_path / inner)
    source = open_source("auto", tmp_path)
    check(source)
    assert isinstance(source, Voc) and source.splits() == ("train", "val") and ids(source, "train") == ["2007_1"]
    assert (source.read_mask(source.samples("train")[0]) == 15).all()
    assert len(VOC_CLASSES) == 21 and VOC_CLASSES.names[15] == "person" and VOC_CLASSES.colors[15] == (192, 128, 128)


def test_voc_augmented(tmp_path):
    voc(tmp_path)
    source = open_source("voc", tmp_path, augmented=True)
    assert ids(source, "train") == ["2007_1", "2007_2"]
    assert (source.read_mask(source.samples("train")[0]) == 255).all()
    assert (source.read_mask(source.samples("val")[0]) == 15).all()
    pair = "/JPEGImages/2007_2.jpg /SegmentationClassAug/2007_2.png"
    text(tmp_path / "ImageSets/Segmentation/train_aug.txt", pair)
    assert ids(Voc(tmp_path, augmented=True), "train") == ["2007_2"]
    text(tmp_path / "mine.txt", "2007_1")
    assert ids(Voc(tmp_path, augmented=tmp_path / "mine.txt"), "train") == ["2007_1"]


def test_voc_missing_files(tmp_path):
    voc(tmp_path)
    (tmp_path / "SegmentationClass/2007_1.png").unlink()
    with pytest.raises(DataError, match=r"2007_1\.png does not exist, but .*train\.txt lists it"):
        Voc(tmp_path).samples("train")
    (tmp_path / "JPEGImages/2007_3.jpg").unlink()
    with pytest.raises(DataError, match=r"2007_3\.jpg does not exist"):
        Voc(tmp_path, allow_unlabelled=True).samples("val")


@pytest.mark.parametrize("listed", [True, False])
def test_augmented_voc_is_paired_all_the_same(tmp_path, listed):
    voc(tmp_path, ("1", "2", "3", "4", "9"))
    (tmp_path / "JPEGImages/1.jpg").unlink()
    (tmp_path / "SegmentationClassAug/2.png").unlink()
    if listed:
        text(tmp_path / "ImageSets/Segmentation/train_aug.txt", "4", "2", "1", "7")
    source = Voc(tmp_path, augmented=True)
    pairing = source.pairing("train")
    assert [sample.id for sample in pairing.pairs] == (["4"] if listed else ["3", "4"])
    assert pairing.pairs[0].mask.parent.name == "SegmentationClassAug"
    assert [sample.id for sample in pairing.images] == (["2"] if listed else [])
    assert pairing.masks == (tmp_path / "SegmentationClassAug/1.png",)
    assert pairing.missing == (("7",) if listed else ())
    with pytest.raises(DataError, match=r"Aug.2\.png does not exist" if listed else r"1\.jpg does not exist"):
        source.samples("train")
    assert source.pairing("val").refusal == ""


def test_voc_without_augmented_masks(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    text(tmp_path / "ImageSets/Segmentation/train.txt", "a")
    with pytest.raises(DataError, match="SegmentationClassAug"):
        Voc(tmp_path, augmented=True)


# Folders


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("imgs/{}", "labels/{}"),
        ("Images/{}", "Masks/{}"),
        ("{}", "{}annot"),
    ],
)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_folder_with_splits(tmp_path, images, masks, val):
    for split in ("train", val):
        pairs(tmp_path / images.format(split), tmp_path / masks.format(split), [f"{split}_a", f"{split}_b"])
    text(tmp_path / "classes.yaml", "- ground", "- leaf")
    source = open_source("auto", tmp_path)
    check(source)
    assert isinstance(source, FolderSource) and source.splits() == ("train", "val")
    assert ids(source, "val") == [f"{val}_a", f"{val}_b"]


def test_flat_folder_holds_out_the_same_images(tmp_path):
    pairs(tmp_path / "images", tmp_path / "masks", [f"{index:02d}" for index in range(20)])
    source = open_source("folder", tmp_path, classes=TWO)
    check(source)
    train, val = ids(source, "train"), ids(source, "val")
    assert (len(train), len(val)) == (16, 4) and not set(train) & set(val)
    assert ids(FolderSource(tmp_path, classes=TWO), "val") == val
    assert ids(FolderSource(tmp_path, classes=TWO, seed=1), "val") != val
    assert len(ids(FolderSource(tmp_path, classes=TWO, val_fraction=0.5), "val")) == 10
    assert FolderSource(tmp_path, classes=TWO, val_fraction=0).splits() == ("train",)
    with pytest.raises(DataError, match="val_fraction 1"):
        FolderSource(tmp_path, classes=TWO, val_fraction=1)


def test_one_image_cannot_be_held_out(tmp_path):
    pairs(tmp_path / "images", tmp_path / "masks", ["a"])
    with pytest.raises(DataError, match="val_fraction=0"):
        FolderSource(tmp_path, classes=TWO).samples("train")
    assert ids(FolderSource(tmp_path, classes=TWO, val_fraction=0), "train") == ["a"]


def test_flat_folder_with_folders_and_suffix(tmp_path):
    for stem in ("bonn/a", "ulm/a"):
        image(tmp_path / f"images/{stem}.jpg")
        mask(tmp_path / f"masks/{stem}_mask.png")
    source = FolderSource(tmp_path, classes=Classes.from_names(TWO), val_fraction=0, mask_suffix="_mask")
    assert ids(source, "train") == ["bonn/a", "ulm/a"]


@pytest.mark.parametrize("where", ["", "splits", "lists"])
def test_lists_of_stems(tmp_path, where):
    pairs(tmp_path / "images", tmp_path / "masks", ["a", "b", "c", "d"], "jpg")
    text(tmp_path / where / "train.txt", "# chosen by hand", "b", "a.jpg")
    text(tmp_path / where / "val.txt", "c")
    source = FolderSource(tmp_path, classes=TWO)
    check(source)
    assert ids(source, "train") == ["a", "b"] and ids(source, "val") == ["c"]


def test_lists_elsewhere(tmp_path):
    pairs(tmp_path / "data/images", tmp_path / "data/masks", ["a", "b", "c"])
    text(tmp_path / "mine/train.txt", "a", "b")
    source = FolderSource(tmp_path / "data", classes=TWO, lists=tmp_path / "mine", val_fraction=0.4)
    assert sorted(ids(source, "train") + ids(source, "val")) == ["a", "b"]
    with pytest.raises(DataError, match=r"holds no train\.txt"):
        FolderSource(tmp_path / "data", classes=TWO, lists=tmp_path)


def test_lists_of_pairs(tmp_path):
    for stem in "abc":
        image(tmp_path / f"photos/{stem}.jpg")
        mask(tmp_path / f"truth/{stem}-labels.png")
    text(tmp_path / "train.txt", "photos/a.jpg truth/a-labels.png", "/photos/b.jpg\ttruth/b-labels.png")
    text(tmp_path / "val.txt", "photos/c.jpg truth/c-labels.png")
    source = open_source("auto", tmp_path, classes=TWO)
    check(source)
    assert isinstance(source, FolderSource) and ids(source, "train") == ["photos/a", "photos/b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("z", r"line 2: .*z does not exist"),
        ("images/a.png masks/z.png", r"line 2: .*z\.png does not exist"),
        ("images/a.png", r"line 2: .*a\.png has no mask"),
        ("a a a", "3 fields"),
        ("b", "listed twice"),
        ("images/b.png masks/b.png", "'b' is listed twice"),
    ],
)
def test_lists_refused(tmp_path, line, message):
    pairs(tmp_path / "images", tmp_path / "masks", ["a", "b"])
    text(tmp_path / "train.txt", "b", line)
    text(tmp_path / "val.txt", "a")
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path, classes=TWO).samples("train")


def test_refused_lists_are_paired_all_the_same(tmp_path):
    pairs(tmp_path / "images", tmp_path / "masks", ["a", "b", "c"])
    (tmp_path / "masks/b.png").unlink()
    lines = "c", "z", "b", "a", "a", "images/a.png masks/z.png", "x y z"
    text(tmp_path / "train.txt", *lines)
    source = FolderSource(tmp_path, classes=TWO)
    pairing = source.pairing("train")
    assert [sample.id for sample in pairing.pairs] == ["c", "a"]
    assert [sample.id for sample in pairing.images] == ["b"]
    listing = tmp_path / "train.txt"
    assert pairing.missing == tuple(f"{listing}, line {line}: {lines[line - 1]}" for line in (2, 6, 7))
    assert "line 2" in pairing.refusal and "does not exist" in pairing.refusal
    # What cannot be used is not divided either.
    with pytest.raises(DataError, match="line 2"):
        source.pairing("val")
    text(listing, "a", "b", "c")
    source = FolderSource(tmp_path, classes=TWO, allow_unlabelled=True)
    parts = [source.pairing(split) for split in ("train", "val")]
    assert sorted(sample.id for part in parts for sample in part.samples) == ["a", "b", "c"]
    assert [sample.id for part in parts for sample in part.images] == ["b"]


def test_unlabelled_folder(tmp_path):
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/b.jpg")
    source = FolderSource(tmp_path, allow_unlabelled=True, val_fraction=0)
    assert [sample.mask for sample in source.samples("train")] == [None, None] and len(source.classes) == 0
    with pytest.raises(DataError, match="allow_unlabelled"):
        FolderSource(tmp_path, classes=TWO).samples("train")


def test_folder_that_describes_itself(tmp_path):
    pairs(tmp_path / "images", tmp_path / "masks", ["a", "b"], value=3)
    lines = "name: leaves", "licence: CC0", "citation: us", "classes: [ground, leaf]", "remap: {3: leaf}"
    text(tmp_path / "dataset.yaml", *lines)
    source = open_source("folder", str(tmp_path))
    assert (source.name, source.licence, source.citation) == ("leaves", "CC0", "us")
    assert (source.read_mask(source.samples("val")[0]) == 1).all()
    text(tmp_path / "classes.yaml", "[a]")
    with pytest.raises(DataError, match="keep one"):
        FolderSource(tmp_path)
    assert FolderSource(tmp_path, classes="classes.yaml").classes.names == ("a",)


def test_folder_without_classes(tmp_path):
    pairs(tmp_path / "images", tmp_path / "masks", ["a", "b"])
    with pytest.raises(DataError, match=r"no classes\.yaml.*doctor"):
        FolderSource(tmp_path)


def test_folder_without_images(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        FolderSource(tmp_path, classes=TWO).samples("train")
    with pytest.raises(DataError, match="no layout"):
        FolderSource(tmp_path / "images", classes=TWO)


# open_source


@pytest.mark.parametrize("name", ["camvid", "cityscapes", "voc", "folder", "auto"])
def test_roots_that_do_not_serve(tmp_path, name):
    with pytest.raises(DataError, match="name it"):
        open_source(name)
    with pytest.raises(DataError, match="does not exist; give the folder"):
        open_source(name, tmp_path / "absent")
    text(tmp_path / "file", "")
    with pytest.raises(DataError, match="is a file"):
        open_source(name, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected|classes\.yaml"):
        open_source(name, tmp_path / "empty")


def test_streets_need_no_root(tmp_path):
    check(open_source("streets", train=1, val=1, size=(32, 48)))
    with pytest.raises(DataError, match="makes its own images"):
        open_source("streets", tmp_path)


def test_sources_travel_to_worker_processes(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a"])
    source = CamVid(tmp_path)
    samples = source.samples("train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.samples("train") == samples and (copy.read_mask(samples[0]) == 1).all()


def test_unknown_names():
    with pytest.raises(DataError, match=r"unknown data set 'camvit'\. Did you mean 'camvid'"):
        open_source("camvit")
    with pytest.raises(DataError, match=r"no option 'valfraction'\. Did you mean 'val_fraction'"):
        open_source("folder", ".", valfraction=0.1)


def test_class_file_decides_what_auto_opens(tmp_path):
    pairs(tmp_path / "train", tmp_path / "trainannot", ["a", "b"])
    assert open_source("auto", tmp_path).name == "camvid"
    text(tmp_path / "classes.yaml", "- ground", "- leaf")
    assert open_source("auto", tmp_path).name == "folder"


def test_every_source_says_where_it_comes_from():
    for name, source in SOURCES.items():
        assert source.name == name
        if name != "folder":
            assert source.licence and source.citation


def test_two_folders_of_masks(tmp_path):
    pairs(tmp_path / "images", tmp_path / "masks", ["a", "b"])
    (tmp_path / "annotations").mkdir()
    text(tmp_path / "classes.yaml", "classes: [ground, leaf]")
    assert open_source("auto", tmp_path).splits() == ("train", "val")  # nothing in it
    mask(tmp_path / "annotations/a.png", 0)
    mask(tmp_path / "annotations/b.png", 0)
    with pytest.raises(DataError, match=r"masks in masks/ and in annotations/; say which .*\{masks: masks\}"):
        open_source("auto", tmp_path)
    chosen = open_source("auto", tmp_path, masks="annotations", val_fraction=0)
    assert not chosen.read_mask(chosen.samples("train")[0]).any()


def test_sequences_are_held_out_whole_or_their_ends(tmp_path):
    names = [f"{sequence}_{number}" for sequence in ("one", "two", "six") for number in range(1, 11)]
    pairs(tmp_path / "images", tmp_path / "masks", names)
    last = FolderSource(tmp_path, classes=TWO, hold_out="last")
    assert ids(last, "val") == sorted(f"{name}_{number}" for name in ("one", "two", "six") for number in (9, 10))
    whole = FolderSource(tmp_path, classes=TWO, hold_out="sequences")
    assert len({name.split("_")[0] for name in ids(whole, "val")}) == 1 and len(ids(whole, "val")) == 10
    assert len(ids(whole, "train")) == 20
    with pytest.raises(DataError, match="hold_out 'lst' is not known"):
        FolderSource(tmp_path, classes=TWO, hold_out="lst")
