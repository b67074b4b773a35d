"""What `import_labels` does for every format: classes, images, and what is never replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_labelling import CLASSES, files, noise, pixels, save

from litheseg import cli
from litheseg.data.sources.folder import FolderSource
from litheseg.errors import DataError
from litheseg.labelling import import_labels
from litheseg.labelling.cvat import write_cvat
from litheseg.labelling.tools import Chosen, match_image
from litheseg.masks.classes import Classes


def _export(folder: Path, *keys: str) -> Path:
    """A CVAT export with images; mask `n` is all of class n, but for its first row."""
    chosen = []
    for index, key in enumerate(keys):
        labels = np.full((6, 8), index % 3, np.uint8)
        labels[0] = 255
        image = save(folder / "photos" / f"{key}.png", noise(6, 8, index))
        chosen.append(Chosen(key, image, save(folder / "labels" / f"{key}.png", labels)))
    return write_cvat(chosen, CLASSES, folder / f"{'-'.join(keys).replace('/', '_')}.zip")


def test_the_result_is_a_folder_data_set(tmp_path: Path) -> None:
    result = import_labels(_export(tmp_path, "a", "deep/b"), tmp_path / "out")
    source = FolderSource(result.folder, val_fraction=0)
    assert source.classes == CLASSES
    samples = source.samples("train")
    assert [sample.id for sample in samples] == ["a", "deep/b"]
    for sample in samples:
        assert np.array_equal(source.read_mask(sample), pixels(tmp_path / f"labels/{sample.id}.png"))
        assert np.array_equal(source.read_image(sample), pixels(tmp_path / f"photos/{sample.id}.png"))


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    import_labels(_export(tmp_path, "a"), tmp_path / "out")
    save(tmp_path / "out" / "masks" / "a.png", np.full((6, 8), 2, np.uint8))
    before = files(tmp_path / "out")
    for export in (_export(tmp_path, "a"), _export(tmp_path, "a", "b")):
        with pytest.raises(DataError, match=r"a\.png exists .*--force"):
            import_labels(export, tmp_path / "out")
        assert files(tmp_path / "out") == before
    import_labels(_export(tmp_path, "a"), tmp_path / "out", force=True)
    assert np.array_equal(pixels(tmp_path / "out/masks/a.png"), pixels(tmp_path / "labels/a.png"))


def test_several_exports_fill_one_folder(tmp_path: Path) -> None:
    import_labels(_export(tmp_path, "a"), tmp_path / "out")
    import_labels(_export(tmp_path, "b", "c"), tmp_path / "out")
    assert len(FolderSource(tmp_path / "out", val_fraction=0).samples("train")) == 3


@pytest.mark.parametrize("force", [False, True])
def test_masks_of_other_classes_are_not_mixed(tmp_path: Path, force: bool) -> None:
    import_labels(_export(tmp_path, "a"), tmp_path / "out")
    other = Classes.from_names(["blue", "red", "green"])
    with pytest.raises(DataError, match=r"classes\.yaml lists other classes"):
        import_labels(_export(tmp_path, "b"), tmp_path / "out", classes=other, force=force)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dataset.yaml").write_text("classes: [{name: red, id: 7}, green, blue]")
    with pytest.raises(DataError, match=r"dataset\.yaml lists other classes or values"):
        import_labels(_export(tmp_path, "b"), tmp_path / "mine", force=force)
    assert sorted(files(tmp_path / "mine")) == ["dataset.yaml"]


def test_two_images_of_one_stem_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "out" / "images" / "a.jpg", noise(6, 8, 0))
    with pytest.raises(DataError, match=r"a\.jpg has the stem of a\.png"):
        import_labels(_export(tmp_path, "a"), tmp_path / "out", force=True)


def test_masks_take_the_order_of_the_given_classes(tmp_path: Path, model: Path) -> None:
    export = _export(tmp_path, "a", "b")
    (tmp_path / "c.yaml").write_text("classes: [{name: sky, id: 5}, {name: green, id: 7}, {name: red, id: 9}, blue]")
    result = import_labels(export, tmp_path / "one", classes=tmp_path / "c.yaml")
    assert result.classes == ("sky", "green", "red", "blue")
    assert [int(pixels(tmp_path / f"one/masks/{key}.png")[1, 1]) for key in "ab"] == [2, 1]
    assert import_labels(export, tmp_path / "two", classes=model).classes == CLASSES.names


def test_images_that_are_broken_or_missing(tmp_path: Path) -> None:
    export = _export(tmp_path, "a")
    (tmp_path / "photos" / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"photos/a\.png cannot be decoded"):
        import_labels(export, tmp_path / "out", images=tmp_path / "photos")
    with pytest.raises(DataError, match=r"folder .*nowhere does not exist"):
        import_labels(export, tmp_path / "out", images=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    export = _export(tmp_path, "a")
    with pytest.raises(DataError, match=r"'gren' for unlabelled pixels is no class\. Did you mean 'green'"):
        import_labels(export, tmp_path / "out", unlabelled_as="gren")
    with pytest.raises(DataError, match="is a file; give a folder"):
        import_labels(export, export)
    with pytest.raises(DataError, match="no export that is known"):
        import_labels(save(tmp_path / "x.png", noise(2, 2, 0)), tmp_path / "out")
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [{"type": "brushlabels"}]}]}
    (tmp_path / "p.json").write_text(json.dumps([task]))
    with pytest.raises(DataError, match=r"p\.json does not list its classes; .*--classes"):
        import_labels(tmp_path / "p.json", tmp_path / "out")
    with pytest.raises(DataError, match=r"no image for 'a'; .*--images"):
        import_labels(tmp_path / "p.json", tmp_path / "out", classes=CLASSES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a", "a"),
        ("x/y/a", "a"),
        ("x/deep/a", "deep/a"),
        ("deep/0a1b2c3d-b", "deep/b"),
        ("0a1b2c3d-a", "a"),
        ("0a1b2c3d-c", "0a1b2c3d-c"),
        ("b", None),
        ("../a", "a"),
        ("", None),
    ],
)
def test_names_of_tools_and_names_of_images(key: str, expected: str | None) -> None:
    assert match_image(key, {"a", "deep/a", "deep/b", "0a1b2c3d-c"}) == expected


def test_the_commands(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    label = ["pseudo-label", str(model), str(photos), "--output", str(out), "--choose", "2", "--width", "0.5"]
    assert cli.main([*label, "--export", "cvat"]) == 0
    printed = capsys.readouterr().out
    assert "4 images: 8 files written" in printed and f"--classes {out}/classes.yaml" in printed
    assert cli.main(["import-labels", str(out / "cvat.zip"), "--output", str(back), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(back),
        "images": 2,
        "left_out": [],
        "classes": list(CLASSES.names),
    }
    assert cli.main(["import-labels", str(out / "cvat.zip"), "--output", str(back)]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
    (photos / "broken.png").write_text("no image")
    assert cli.main(["pseudo-label", str(model), str(photos), "--output", str(tmp_path / "more"), "--json"]) == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["images"], result["export"], len(result["chosen"])) == (5, None, 4)
    assert "broken.png" in captured.err and "broken.png" in result["failed"][0][0]
