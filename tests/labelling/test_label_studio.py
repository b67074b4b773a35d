"""Label Studio's JSON, written and read."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from tiny_labelling import CLASSES, files, noise, pixels, save

from litheseg.errors import DataError
from litheseg.labelling import import_labels, pseudo_label
from litheseg.labelling.label_studio import write_label_studio
from litheseg.labelling.tools import Chosen
from litheseg.masks.classes import Classes
from litheseg.models.bundle import Bundle

# A bar of three pixels in the middle of 3 x 5, by label-studio-sdk 2.1.2 (see test_brush).
BAR = [0, 0, 0, 60, 57, 27, 254, 23, 0, 183, 255, 133, 192, 0]


def _brush(label: str = "red", **changes: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": BAR, "brushlabels": [label]}
    size = {"original_width": 5, "original_height": 3, "image_rotation": 0}
    return {
        "id": "r1",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        **size,
        "value": value,
    } | changes


def _polygon(points: list[list[float]], label: str = "green") -> dict[str, Any]:
    value = {"points": points, "closed": True, "polygonlabels": [label]}
    return _brush(type="polygonlabels", value=value)


def _task(*results: dict[str, Any], image: str = "/data/local-files/?d=images/a.png", **changes: Any) -> dict[str, Any]:
    annotation = {"id": 7, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 1, "data": {"image": image}, "annotations": [annotation], "predictions": []} | changes


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save(tmp_path / "images" / "a.png", noise(3, 5, 0))
    save(tmp_path / "images" / "deep" / "b c.jpg", noise(3, 5, 1))
    return tmp_path / "images"


def _import(tmp_path: Path, tasks: Any, **options: Any) -> np.ndarray:
    """The mask of the only image."""
    path = tmp_path / "project.json"
    path.write_text(json.dumps(tasks))
    import_labels(path, tmp_path / "out", images=tmp_path / "images", classes=CLASSES, **options)
    [mask] = (tmp_path / "out" / "masks").rglob("*.png")
    return pixels(mask)


def test_what_is_written_is_what_label_studio_reads(tmp_path: Path) -> None:
    labels = np.full((3, 5), 255, np.uint8)
    labels[1, 1:4], labels[0] = 2, 0
    image = save(tmp_path / "photos" / "deep" / "b #1.png", noise(3, 5, 1))
    mask = save(tmp_path / "b.png", labels)
    path = write_label_studio([Chosen("deep/b #1", image, mask)], CLASSES, tmp_path / "ls", version="v7")
    [task] = json.loads(path.read_text())
    address, key = task["data"]["image"], task["data"]["litheseg_id"]
    served = unquote(address.removeprefix("/data/local-files/?d="))
    assert (key, "#" in address, " " in address) == ("deep/b #1", False, False)
    assert (tmp_path / "ls" / served).read_bytes() == image.read_bytes()
    [prediction] = task["predictions"]
    assert prediction["model_version"] == "v7"
    red, blue = prediction["result"]
    assert blue["value"] == {"format": "rle", "rle": BAR, "brushlabels": ["blue"]}
    assert red["value"]["brushlabels"] == ["red"] and len({red["id"], blue["id"]}) == 2
    for region in (red, blue):
        assert (region["original_height"], region["original_width"], region["type"]) == (3, 5, "brushlabels")
    view = ElementTree.fromstring((tmp_path / "ls" / "config.xml").read_text())
    tags = {element.get("name"): element for element in view}
    assert tags[red["to_name"]].get("value") == "$image" and tags[red["from_name"]].tag == "BrushLabels"
    for tools in (tags["brush"], tags["polygon"]):
        assert tools.get("toName") == "image"
        assert [label.get("value") for label in tools] == list(CLASSES.names)
    assert [label.get("background") for label in tags["brush"]] == ["#ff0000", "#00ff00", "#0000ff"]


def test_class_names_of_any_kind_fit_the_interface(tmp_path: Path) -> None:
    classes = Classes.from_names(['<road> & "kerb"', "straße", "b"])
    mask = save(tmp_path / "m.png", np.zeros((3, 5), np.uint8))
    item = Chosen("a", save(tmp_path / "photos" / "a.png", noise(3, 5, 0)), mask)
    write_label_studio([item], classes, tmp_path / "ls", version="v")
    view = ElementTree.fromstring((tmp_path / "ls" / "config.xml").read_text(encoding="utf-8"))
    assert [label.get("value") for label in view[1]] == list(classes.names)


def test_the_loop_from_pseudo_labels_and_back_is_exact(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    result = pseudo_label(bundle, photos, tmp_path / "out", threshold=0.6, choose=3, export="label-studio")
    assert result.export == tmp_path / "out" / "label-studio" / "tasks.json"
    tasks = json.loads(result.export.read_text())
    for task in tasks:  # what submitting a prediction as it is makes of it
        task["annotations"] = [{"result": task.pop("predictions")[0]["result"], "was_cancelled": False}]
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    model = tmp_path / "model.safetensors"
    imported = import_labels(tmp_path / "project.json", tmp_path / "back", images=photos, classes=model)
    assert (imported.images, imported.classes) == (3, CLASSES.names)
    for key in result.chosen:
        assert np.array_equal(pixels(tmp_path / f"back/masks/{key}.png"), pixels(tmp_path / f"out/masks/{key}.png"))


def test_later_regions_lie_over_earlier_ones(tmp_path: Path, images: Path) -> None:
    left = _polygon([[0, 0], [56, 0], [56, 100], [0, 100]])
    bar = np.zeros((3, 5), bool)
    bar[1, 1:4] = True
    rows, columns = np.mgrid[:3, :5]
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    inside = Outline([(0, 0), (2.8, 0), (2.8, 3), (0, 3)]).contains_points(centres).reshape(3, 5)
    assert np.array_equal(_import(tmp_path, [_task(left, _brush())]), np.where(bar, 0, np.where(inside, 1, 255)))
    mask = _import(tmp_path, [_task(_brush(), left)], force=True, unlabelled_as="blue")
    assert np.array_equal(mask, np.where(inside, 1, np.where(bar, 0, 2)))


@pytest.mark.parametrize(
    ("image", "key"),
    [
        ("/data/local-files/?d=images/deep/b%20c.jpg", "deep/b c"),
        ("/data/upload/3/0a1b2c3d-a.png", "a"),
        ("https://bucket.example/x/deep/b%20c.jpg?token=1", "deep/b c"),
        ("s3://bucket/photos/a.png", "a"),
        ("a.png", "a"),
    ],
)
def test_images_are_found_by_their_address(tmp_path: Path, images: Path, image: str, key: str) -> None:
    _import(tmp_path, [_task(_brush(), image=image)])
    assert [name for name in files(tmp_path / "out") if name.startswith("masks")] == [f"masks/{key}.png"]


def test_the_annotation_that_counts(tmp_path: Path, images: Path) -> None:
    def annotation(label: str, **changes: bool) -> dict[str, Any]:
        return {"result": [_brush(label)], **changes}

    last = [annotation("red"), annotation("green"), annotation("blue", was_cancelled=True)]
    assert _import(tmp_path, [_task(annotations=last)])[1, 1] == 1
    truth = [annotation("blue", ground_truth=True), annotation("green")]
    assert _import(tmp_path, [_task(annotations=truth)], force=True)[1, 1] == 2


def test_images_that_nobody_drew_on_are_left_out(tmp_path: Path, images: Path) -> None:
    skipped = [{"was_cancelled": True, "result": [_brush()]}]
    choice = {"type": "choices", "value": {"choices": ["blurred"]}}
    tasks = [
        _task(_brush(), choice),
        _task(choice, image="images/deep/b c.jpg"),
        _task(image="images/x.png"),
        _task(image="images/y.png", annotations=skipped),
    ]
    path = tmp_path / "project.json"
    path.write_text(json.dumps(tasks))
    result = import_labels(path, tmp_path / "out", images=images, classes=CLASSES)
    assert (result.images, result.left_out) == (1, ("images/deep/b c", "images/x", "images/y"))
    path.write_text(json.dumps([_task(predictions=[{"result": [_brush()]}])]))
    with pytest.raises(DataError, match="no image that anybody drew on"):
        import_labels(path, tmp_path / "out2", images=images, classes=CLASSES)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (_brush("rde"), "image 'a', region 'r1': label 'rde' is none of the 3 classes. Did you mean 'red'"),
        (_brush(original_width=6), "drawn on 3x6 .* but the image is 3x5"),
        (_brush(image_rotation=90), "rotated image"),
        (_brush(type="rectanglelabels"), "shape of type 'rectanglelabels' makes no mask"),
        (_brush(value={"rle": BAR, "brushlabels": ["red", "blue"]}), "2 labels instead of one"),
        (_brush(value={"rle": BAR[:8], "brushlabels": ["red"]}), "cut short"),
        (_brush(value={"brushlabels": ["red"]}), "no region as Label Studio writes them"),
        (_brush(value=None), "no region as Label Studio writes them"),
        (_polygon([[0, 0], [10, 10]]), "fewer than three points"),
        (_polygon([[0, 0], [10, 10], [0, float("nan")]]), "three points"),
        (_polygon([[0, 0], [10], [5, 5]]), "no region as Label Studio writes them"),
    ],
)
def test_regions_that_cannot_be_used(tmp_path: Path, images: Path, region: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message.replace("'a'", "'(images/)?a'")) as caught:
        _import(tmp_path, [_task(region)])
    assert "project.json" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "no list of tasks"),
        ({"a": 1}, "no list of tasks"),
        ([{"image": "/a.png", "brush": []}], "not JSON-MIN"),
        ([_task(_brush()) | {"data": {}}], "task 1 names no image"),
        ([_task(_brush()), _task(_brush())], "task 2: the image .*a' occurs twice"),
        ([_task(_brush(), image="x.png")], "no image for 'x'; .* is to hold all images"),
        ([_task(_brush(), image="a.png"), _task(_brush(), image="z/a.png")], "are one image 'a'"),
        ([_task(_brush()) | {"data": {"litheseg_id": "../a", "image": "a.png"}}], "no image for '../a'"),
    ],
)
def test_exports_that_cannot_be_used(tmp_path: Path, images: Path, tasks: Any, message: str) -> None:
    if "../a" in message:
        (tmp_path / "images" / "a.png").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=message):
        _import(tmp_path, tasks)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_json(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "project.json"
    path.write_text('[{"data": ')
    with pytest.raises(DataError, match=r"project\.json is damaged or no JSON"):
        import_labels(path, tmp_path / "out", images=images, classes=CLASSES)
    with pytest.raises(DataError, match=r"nothing\.json does not exist"):
        import_labels(tmp_path / "nothing.json", tmp_path / "out", images=images, classes=CLASSES)
