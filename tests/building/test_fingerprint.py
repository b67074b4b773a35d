"""The numbers of a fingerprint, by shapes whose measures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litheseg.building.fingerprint import Fingerprint, take_fingerprint
from litheseg.data import open_source
from litheseg.errors import DataError


def dataset(folder: Path, masks: dict[str, np.ndarray], grey: int = 100) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.yaml").write_text("classes: [ground, square, line]\n")
    for index, (name, mask) in enumerate(masks.items()):
        Image.fromarray(np.full((*mask.shape, 3), grey + 20 * index, np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def mask(square: int = 0, line: int = 0) -> np.ndarray:
    result = np.zeros((60, 80), np.uint8)
    result[5 : 5 + square, 5 : 5 + square] = 1
    result[40 : 40 + line, 10:70] = 2
    return result


def test_shares_and_thickness(tmp_path: Path) -> None:
    source = open_source("folder", dataset(tmp_path, {"a1": mask(20), "a2": mask(20, 3)}), val_fraction=0)
    facts = take_fingerprint(source)
    ground, square, line = facts.classes
    assert facts.train == 2 and facts.val == 0 and facts.size == (60, 80) and facts.sizes == 1
    assert square.share == pytest.approx(2 * 400 / 9600) and line.share == pytest.approx(180 / 9600)
    assert square.thickness == pytest.approx(2 * 400 / 80)  # twice the area over the outline
    assert line.thickness == pytest.approx(2 * 180 / 126)
    assert (square.images, line.images, ground.images) == (2, 1, 2)
    assert facts.rarest.name == facts.thinnest.name == "line"
    assert facts.sequences == {"a": 2} and facts.brightness == pytest.approx(10 / 110)
    assert Fingerprint.from_dict(facts.to_dict()) == facts


def test_images_have_no_up_where_their_halves_are_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scattered = {f"a{i}": (rng.random((60, 80)) < 0.3).astype(np.uint8) for i in range(6)}
    assert not take_fingerprint(open_source("folder", dataset(tmp_path / "drone", scattered), val_fraction=0)).upright
    few = dict(list(scattered.items())[:4])
    assert take_fingerprint(open_source("folder", dataset(tmp_path / "few", few), val_fraction=0)).upright
    street = {
        name: np.maximum(one, np.where(np.arange(60)[:, None] > 40, 2, 0)).astype(np.uint8)
        for name, one in scattered.items()
    }
    assert take_fingerprint(open_source("folder", dataset(tmp_path / "street", street), val_fraction=0)).upright


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bright_above", [False, True])
def test_a_bright_sky_is_an_up_whatever_numbers_pixels_are(tmp_path: Path, kind: str, bright_above: bool) -> None:
    rng = np.random.default_rng(0)
    most = 1.0 if kind == "float32" else np.iinfo(kind).max
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.yaml").write_text("classes: [ground, square]\n")
    for index in range(6):
        image = 0.2 + 0.2 * rng.random((60, 80, 5)) + 0.4 * (bright_above & (np.arange(60) < 30))[:, None, None]
        np.save(tmp_path / "images" / f"{index}a.npy", (image * most).astype(kind))
        Image.fromarray((rng.random((60, 80)) < 0.3).astype(np.uint8)).save(tmp_path / "masks" / f"{index}a.png")
    assert take_fingerprint(open_source("folder", tmp_path, val_fraction=0)).upright is bright_above


def test_ignored_pixels_and_absent_classes_do_not_count(tmp_path: Path) -> None:
    half = mask(10)
    half[30:] = 255
    facts = take_fingerprint(open_source("folder", dataset(tmp_path, {"a": half}), val_fraction=0))
    assert facts.classes[1].share == pytest.approx(100 / 2400)
    assert facts.classes[2].images == 0 and facts.rarest.name == "square"


def test_without_labels_there_is_no_fingerprint(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"a": mask(10)})
    (folder / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match="no labelled training images"):
        take_fingerprint(open_source("folder", folder, allow_unlabelled=True, val_fraction=0))
