"""Which images are held out, and which folds they make: none is lost, and what is alike stays together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from litheseg.data.doctor.diagnosis import diagnose
from litheseg.data.sources import likeness
from litheseg.data.sources.base import Source
from litheseg.data.sources.folder import FolderSource
from litheseg.data.sources.hold_out import HOLD_OUT, Holding
from litheseg.errors import DataError

NAMES = [f"{sequence}_{number}" for sequence, count in (("a", 9), ("b", 7), ("c", 2)) for number in range(count)]
GROUPS = (("a_0", "b_0"), ("a_1", "a_2", "a_3"), ("elsewhere", "c_0"))


def holding(how: str, seed: int = 0) -> Holding:
    return Holding(how, seed, lambda: GROUPS)


@pytest.mark.parametrize("how", HOLD_OUT)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_over_all_folds_every_image_is_scored_once(how: str, count: int) -> None:
    folds = holding(how).folds(NAMES, count)
    assert len(folds) == count and sorted(name for fold in folds for name in fold) == sorted(NAMES)
    if how != "sequences":
        assert max(map(len, folds)) - min(map(len, folds)) <= 2
    assert folds == holding(how).folds(NAMES[::-1], count)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_alike_stays_together(seed: int) -> None:
    for part in (*holding("groups", seed).folds(NAMES, 3), holding("groups", seed).part(NAMES, 0.2)):
        assert all(part >= set(group) or part.isdisjoint(group) for group in GROUPS[:2])
    assert {name[0] for fold in holding("sequences", seed).folds(NAMES, 3)[:1] for name in fold} == {"a"}


@pytest.mark.parametrize("how", HOLD_OUT)
@pytest.mark.parametrize("seed", range(3))
def test_no_more_are_held_out_than_are_asked_for(how: str, seed: int) -> None:
    part = holding(how, seed).part(NAMES, 0.2)
    assert 2 <= len(part) <= 5


def test_the_folds_of_a_video_are_its_parts() -> None:
    frames = [f"drive_{number}" for number in range(24)]
    for fold in holding("last").folds(frames, 3):
        numbers = sorted(int(name.split("_")[1]) for name in fold)
        assert numbers == list(range(numbers[0], numbers[0] + 8))


def test_units_that_are_too_few_are_refused_or_cut() -> None:
    frames = ["drive_1", "drive_2", "drive_3"]
    with pytest.raises(DataError, match="all 3 images are of one sequence by their names; use hold_out: last"):
        holding("sequences").part(frames, 0.2)
    assert sorted(map(len, holding("sequences").folds(frames, 3))) == [1, 1, 1]
    with pytest.raises(DataError, match="4 folds of 3 images are not possible; choose from 2 to 3"):
        holding("random").folds(frames, 4)


def photographs(folder: Path, bursts: int, of: int) -> Path:
    """Different scenes, each photographed some times: a little brighter, and compressed anew."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.yaml").write_text("classes: [ground, thing]\n")
    draw = np.random.default_rng(0)
    for scene in range(bursts):
        picture = Image.fromarray(draw.integers(0, 255, (6, 8, 3)).astype(np.uint8)).resize((64, 48))
        for shot in range(of):
            name = f"{scene + bursts * shot:03}"  # neighbours by number are other scenes
            ImageEnhance.Brightness(picture).enhance(1 - 0.03 * shot).save(folder / "images" / f"{name}.jpg")
            Image.fromarray((np.arange(64 * 48).reshape(48, 64) % 2).astype(np.uint8)).save(
                folder / "masks" / f"{name}.png"
            )
    return folder


def scenes(source: Source, split: str, bursts: int) -> list[int]:
    return sorted(int(sample.id) % bursts for sample in source.samples(split))


def test_bursts_are_held_out_whole_and_the_doctor_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "cache"))
    folder = photographs(tmp_path / "data", bursts=6, of=3)
    torn = diagnose(FolderSource(folder))
    assert {"near-leak", "near-duplicate"} <= {item.code for item in torn.findings}
    assert all("{hold_out: groups}" in item.remedy for item in torn.findings if item.code.startswith("near-"))
    source = FolderSource(folder, hold_out="groups")
    whole = scenes(source, "val", 6)
    assert len(whole) == 3 and len(set(whole)) == 1 and not {*whole} & {*scenes(source, "train", 6)}
    assert "near-leak" not in {item.code for item in diagnose(source).findings}
    monkeypatch.setattr(likeness, "near_duplicates", None)
    assert scenes(FolderSource(folder, hold_out="groups"), "val", 6) == whole, "it is remembered"
    Image.new("RGB", (64, 48)).save(folder / "images" / "000.jpg")
    with pytest.raises(TypeError):
        FolderSource(folder, hold_out="groups").samples("val")
