"""CVAT's format, written and read, with nothing but zipfile and Pillow on the other side."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_labelling import CLASSES, files, noise, pixels, save

from litheseg.errors import DataError
from litheseg.labelling import import_labels, pseudo_label
from litheseg.labelling.cvat import CvatExport, write_cvat
from litheseg.labelling.tools import Chosen
from litheseg.masks.classes import Classes
from litheseg.models.bundle import Bundle

VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]  # the first colours of the VOC devkit


def _chosen(folder: Path, *keys: str, count: int = 3) -> list[Chosen]:
    """Images of noise with masks that hold every class and unlabelled pixels."""
    chosen = []
    for seed, key in enumerate(keys):
        image = save(folder / "images" / f"{key}.png", noise(9, 14, seed))
        labels = np.random.default_rng(seed).choice([*range(count), 255], (9, 14)).astype(np.uint8)
        chosen.append(Chosen(key, image, save(folder / "masks" / f"{key}.png", labels)))
    return chosen


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(archive.read(name))) as image:
        assert image.mode == "RGB"
        return np.array(image)


def _label_map(archive: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    lines = archive.read("labelmap.txt").decode().splitlines()
    entries = [line.split(":") for line in lines if not line.startswith("#")]
    assert all(len(entry) == 4 for entry in entries)
    return {name: tuple(map(int, color.split(","))) for name, color, _, _ in entries}


def test_what_is_written_is_what_cvat_reads(tmp_path: Path) -> None:
    chosen = _chosen(tmp_path, "a", "deep/b")
    write_cvat(chosen, CLASSES, tmp_path / "cvat.zip")
    with zipfile.ZipFile(tmp_path / "cvat.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("ImageSets/Segmentation/default.txt").decode().split() == ["a", "deep/b"]
        colors = _label_map(archive)
        expected = dict(zip(CLASSES.names, CLASSES.colors, strict=True))
        assert colors == {"background": (0, 0, 0), **expected} and next(iter(colors)) == "background"
        for item in chosen:
            labels = pixels(item.mask)
            classes, objects = (_read(archive, f"Segmentation{kind}/{item.key}.png") for kind in ("Class", "Object"))
            for index, name in [*enumerate(CLASSES.names), (255, "background")]:
                assert np.array_equal((classes == colors[name]).all(-1), labels == index)
                assert np.array_equal((objects == VOC[(index + 1) % 256]).all(-1), labels == index)
            assert archive.read(f"JPEGImages/{item.key}.png") == item.image.read_bytes()
    labels = json.loads((tmp_path / "cvat_labels.json").read_text())
    assert [(entry["name"], entry["color"]) for entry in labels] == [
        ("red", "#ff0000"),
        ("green", "#00ff00"),
        ("blue", "#0000ff"),
    ]


def test_colours_that_the_format_cannot_tell_apart_are_replaced(tmp_path: Path) -> None:
    classes = Classes(("void", "car", "van"), ((0, 0, 0), (128, 0, 0), (128, 0, 0)))
    [item] = _chosen(tmp_path, "a")
    write_cvat([item], classes, tmp_path / "cvat.zip")
    with zipfile.ZipFile(tmp_path / "cvat.zip") as archive:
        colors = _label_map(archive)
    assert len(set(colors.values())) == 4 and colors["car"] == (128, 0, 0) and colors["background"] == (0, 0, 0)
    with CvatExport(tmp_path / "cvat.zip") as export:
        assert np.array_equal(export.labels("a", classes, (9, 14)), pixels(item.mask))


@pytest.mark.parametrize("color", [(0, 0, 0), (10, 20, 30)])
def test_a_class_called_background_is_told_from_what_nobody_drew(tmp_path: Path, color: tuple[int, int, int]) -> None:
    classes = Classes(("car", "background", "van"), ((128, 0, 0), color, (0, 0, 128)))
    [item] = _chosen(tmp_path, "a")
    write_cvat([item], classes, tmp_path / "cvat.zip")
    with CvatExport(tmp_path / "cvat.zip") as export:
        assert np.array_equal(export.labels("a", classes, (9, 14)), pixels(item.mask))


def test_many_classes(tmp_path: Path) -> None:
    classes = Classes.from_names(f"class {index}" for index in range(254))
    [item] = _chosen(tmp_path, "a", count=254)
    write_cvat([item], classes, tmp_path / "cvat.zip")
    with CvatExport(tmp_path / "cvat.zip") as export:
        assert np.array_equal(export.labels("a", classes, (9, 14)), pixels(item.mask))


@pytest.mark.parametrize("name", ["a:b", "#a", " a"])
def test_names_that_the_format_cannot_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot hold the name"):
        write_cvat(_chosen(tmp_path, "a"), Classes.from_names([name, "b", "c"]), tmp_path / "cvat.zip")
    assert not (tmp_path / "cvat.zip").exists()


def test_the_loop_from_pseudo_labels_and_back_is_exact(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    result = pseudo_label(bundle, photos, tmp_path / "out", threshold=0.6, choose=3, export="cvat")
    assert result.export == tmp_path / "out" / "cvat.zip"
    imported = import_labels(result.export, tmp_path / "back", classes=tmp_path / "out" / "classes.yaml")
    assert imported.images == 3
    for key in result.chosen:
        assert np.array_equal(pixels(tmp_path / f"back/masks/{key}.png"), pixels(tmp_path / f"out/masks/{key}.png"))
        assert (tmp_path / f"back/images/{key}.png").read_bytes() == (photos / f"{key}.png").read_bytes()


def test_an_export_that_would_change_is_not_replaced(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pseudo_label(bundle, photos, tmp_path / "out", choose=2, export="cvat")
    before = files(tmp_path / "out")
    pseudo_label(bundle, photos, tmp_path / "out", choose=2, export="cvat")
    assert files(tmp_path / "out") == before
    (tmp_path / "out" / "cvat.zip").write_text("mine")
    with pytest.raises(DataError, match=r"cvat\.zip exists and would change"):
        pseudo_label(bundle, photos, tmp_path / "out", choose=2, export="cvat")
    assert (tmp_path / "out" / "cvat.zip").read_text() == "mine"
    pseudo_label(bundle, photos, tmp_path / "out", choose=2, export="cvat", force=True)
    assert files(tmp_path / "out") == before


# --- exports as CVAT writes them -------------------------------------------------------------------------------------

MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nblue:10,10,200::\nred:200,10,10::\n"
NAMES = ("red", "blue")
CODES = {0: (200, 10, 10), 1: (10, 10, 200), 255: (0, 0, 0)}


def _labels() -> np.ndarray:
    return np.random.default_rng(5).choice([0, 1, 255], (9, 14)).astype(np.uint8)


def _png(labels: np.ndarray, mode: str = "RGB") -> bytes:
    colors = np.zeros((*labels.shape, 3), np.uint8)
    for label, color in CODES.items():
        colors[labels == label] = color
    image = Image.fromarray(colors)
    buffer = io.BytesIO()
    (image.quantize(8) if mode == "P" else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _archive(path: Path, changes: dict[str, bytes | str | None] | None = None) -> Path:
    objects = np.where(_labels() == 255, 255, 0).astype(np.uint8)
    content: dict[str, bytes | str | None] = {
        "labelmap.txt": MAP,
        "ImageSets/Segmentation/default.txt": "a\nempty\n",
        "SegmentationClass/a.png": _png(_labels()),
        "SegmentationObject/a.png": _png(objects),
        **(changes or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(name, data)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for key in ("a", "empty"):
        save(tmp_path / "images" / f"{key}.png", noise(9, 14, 0))
    return tmp_path / "images"


def test_an_export_becomes_a_data_set(tmp_path: Path, images: Path) -> None:
    result = import_labels(
        _archive(tmp_path / "job.zip"), tmp_path / "out", images=images, classes=Classes.from_names(NAMES)
    )
    assert (result.images, result.left_out, result.classes) == (1, ("empty",), NAMES)
    assert np.array_equal(pixels(tmp_path / "out/masks/a.png"), _labels())
    assert sorted(files(tmp_path / "out")) == ["classes.yaml", "images/a.png", "masks/a.png"]


@pytest.mark.parametrize(
    "changes",
    [
        {"SegmentationClass/a.png": _png(_labels(), "P")},
        {"SegmentationObject/a.png": None},
        {"ImageSets/Segmentation/default.txt": None},
        {"ImageSets/Segmentation/train.txt": "a\n", "ImageSets/Segmentation/default.txt": "empty\n"},
    ],
)
def test_other_spellings_of_the_same_export(tmp_path: Path, images: Path, changes: dict[str, bytes | None]) -> None:
    path = _archive(tmp_path / "job.zip", changes)
    import_labels(path, tmp_path / "out", images=images, classes=Classes.from_names(NAMES))
    assert np.array_equal(pixels(tmp_path / "out/masks/a.png"), _labels())


def test_an_unpacked_export_and_one_in_a_folder(tmp_path: Path, images: Path) -> None:
    with zipfile.ZipFile(_archive(tmp_path / "job.zip")) as archive:
        archive.extractall(tmp_path / "unpacked" / "task")
    for place in (tmp_path / "unpacked" / "task", tmp_path / "unpacked"):
        out = tmp_path / f"out {place.name}"
        import_labels(place, out, images=images, classes=Classes.from_names(NAMES))
        assert np.array_equal(pixels(out / "masks/a.png"), _labels())


def test_without_a_class_list_the_label_map_is_it(tmp_path: Path, images: Path) -> None:
    result = import_labels(_archive(tmp_path / "job.zip"), tmp_path / "out", images=images)
    assert result.classes == ("blue", "red")
    assert np.array_equal(pixels(tmp_path / "out/masks/a.png"), np.choose(np.minimum(_labels(), 2), [1, 0, 255]))


def test_unlabelled_pixels_become_a_class_if_asked(tmp_path: Path, images: Path) -> None:
    result = import_labels(_archive(tmp_path / "job.zip"), tmp_path / "out", images=images, unlabelled_as="background")
    assert result.classes == ("background", "blue", "red")
    assert np.array_equal(pixels(tmp_path / "out/masks/a.png"), np.choose(np.minimum(_labels(), 2), [2, 1, 0]))


def test_one_channel_masks_hold_lines_of_the_label_map(tmp_path: Path, images: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.choose(np.minimum(_labels(), 2), [2, 1, 0]).astype(np.uint8)).save(buffer, format="PNG")
    path = _archive(tmp_path / "job.zip", {"SegmentationClass/a.png": buffer.getvalue()})
    import_labels(path, tmp_path / "out", images=images, classes=Classes.from_names(NAMES))
    assert np.array_equal(pixels(tmp_path / "out/masks/a.png"), _labels())


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelmap.txt": None}, "holds no labelmap.txt and SegmentationClass"),
        ({"SegmentationClass/a.png": None}, "holds no labelmap.txt and SegmentationClass"),
        ({"labelmap.txt": "red\n"}, "'red' is no 'name:r,g,b::'"),
        ({"labelmap.txt": "red:1,2,x::\n"}, "is no 'name:r,g,b::'"),
        ({"labelmap.txt": "red:1,2,3::\nblue:1,2,3::\n"}, "'red' and 'blue' have the same name or colour"),
        ({"labelmap.txt": "background:0,0,0::\nblue:10,10,200::\n"}, "a.png: colours .* does not list: #c80a0a"),
        ({"labelmap.txt": MAP.replace("red", "rde")}, "label 'rde' is none of the 2 classes. Did you mean 'red'"),
        ({"labelmap.txt": b"\xff\xfe\x00"}, "no UTF-8"),
        ({"SegmentationClass/a.png": _png(_labels()[:5])}, "a.png is 5x14 .* but its image is 9x14"),
        ({"SegmentationClass/a.png": _cut(_png(_labels()))}, "a.png is damaged or no image"),
        ({"SegmentationClass/a.png": b"text"}, "a.png is damaged or no image"),
        ({"ImageSets/Segmentation/default.txt": "../a\n"}, r"'../a' is no path below the data folder"),
        ({"ImageSets/Segmentation/default.txt": "/a\n"}, "'/a' is no path below"),
        ({"ImageSets/Segmentation/default.txt": "C:/a\n"}, "'C:/a' is no path below"),
        ({"ImageSets/Segmentation/default.txt": "empty\n"}, "no image that anybody drew on"),
        (
            {"SegmentationClass/b.png": _png(_labels()), "ImageSets/Segmentation/default.txt": "b\n"},
            "no image for 'b'; .*images is to hold all images",
        ),
    ],
)
def test_exports_that_cannot_be_used(
    tmp_path: Path, images: Path, changes: dict[str, bytes | str | None], message: str
) -> None:
    path = _archive(tmp_path / "job.zip", changes)
    with pytest.raises(DataError, match=message) as caught:
        import_labels(path, tmp_path / "out", images=images, classes=Classes.from_names(NAMES))
    assert "job.zip" in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_members_that_climb_out_of_the_zip_write_nothing(tmp_path: Path) -> None:
    path = _archive(
        tmp_path / "job.zip",
        {
            "ImageSets/Segmentation/default.txt": None,
            "SegmentationClass/../../evil.png": _png(_labels()),
            "JPEGImages/../../evil.png": _png(_labels()),
        },
    )
    with pytest.raises(DataError, match=r"evil' is no path below the data folder"):
        import_labels(path, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil*"))


def test_a_damaged_zip_and_a_damaged_member(tmp_path: Path, images: Path) -> None:
    path = _archive(tmp_path / "job.zip")
    content = path.read_bytes()
    path.write_bytes(_cut(content))
    with pytest.raises(DataError, match=r"job\.zip is a damaged zip"):
        import_labels(path, tmp_path / "out", images=images)
    place = content.index(_png(_labels())) + 60
    path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    with pytest.raises(DataError, match=r"a\.png cannot be read .*CRC"):
        import_labels(path, tmp_path / "out", images=images)
    assert not (tmp_path / "out").exists()


def test_drawn_background_needs_a_class_of_that_name(tmp_path: Path, images: Path) -> None:
    everywhere = _png(np.zeros((9, 14), np.uint8))
    path = _archive(tmp_path / "job.zip", {"SegmentationObject/a.png": everywhere})
    with pytest.raises(DataError, match="label 'background' is none of"):
        import_labels(path, tmp_path / "out", images=images, classes=Classes.from_names(NAMES))
    classes = Classes.from_names([*NAMES, "background"])
    import_labels(path, tmp_path / "out", images=images, classes=classes)
    assert np.array_equal(pixels(tmp_path / "out/masks/a.png"), np.minimum(_labels(), 2))
