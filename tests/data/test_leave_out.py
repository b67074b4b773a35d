"""A sequence that is left out of the training images: which images go where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litheseg.data import open_source
from litheseg.data.sources.base import Source
from litheseg.data.sources.redivided import Fold, LeaveOut
from litheseg.data.sources.splits import belongs, sequence_sizes
from litheseg.errors import DataError
from litheseg.training import load_recipe
from litheseg.training.build import build_data

TRAIN = ("seq1_0001", "seq1_0002", "seq10_0001", "seq2_0001", "seq2_0002", "seq2_0003")


def put(folder: Path, annotations: Path, names: tuple[str, ...], first: int = 0) -> None:
    for number, name in enumerate(names, first):
        for path in (folder, annotations):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 10 * number, np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(np.full((4, 6), number % 11, np.uint8)).save(annotations / f"{name}.png")


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    put(tmp_path / "train", tmp_path / "trainannot", TRAIN)
    put(tmp_path / "val", tmp_path / "valannot", ("seq2_0007",), 10)
    put(tmp_path / "test", tmp_path / "testannot", ("other_0001",), 11)
    return tmp_path


def ids(source: Source, split: str) -> list[str]:
    return [sample.id for sample in source.samples(split)]


def test_one_sequence_is_scored_and_the_others_are_trained_on(camvid: Path) -> None:
    source = LeaveOut(open_source("camvid", camvid), "seq2")
    assert ids(source, "train") == ["seq10_0001", "seq1_0001", "seq1_0002"]
    assert ids(source, "val") == ["seq2_0001", "seq2_0002", "seq2_0003"]
    assert source.splits() == ("train", "val", "test") and ids(source, "test") == ["other_0001"]
    sample = source.samples("val")[1]
    assert sample.split == "val" and source.read_image(sample)[0, 0, 0] == 40 and source.read_mask(sample)[0, 0] == 4


def test_over_all_folds_every_image_is_scored_once(camvid: Path) -> None:
    whole = open_source("camvid", camvid)
    folds = [LeaveOut(whole, name) for name in ("seq1", "seq2", "seq10")]
    assert sorted(name for fold in folds for name in ids(fold, "val")) == sorted(TRAIN)
    assert all(set(ids(fold, "val")).isdisjoint(ids(fold, "train")) for fold in folds)
    assert all(len(ids(fold, "val")) + len(ids(fold, "train")) == len(TRAIN) for fold in folds)


@pytest.mark.parametrize(
    ("name", "inside"),
    [("seq1_0001", True), ("seq1/0001", True), ("seq1", True), ("seq10_0001", False), ("a/seq1_0001", False)],
)
def test_a_sequence_is_a_whole_name(name: str, inside: bool) -> None:
    assert belongs(name, "seq1") is inside


def test_sequences_as_names_suggest_them() -> None:
    names = ["0016E5_00390", "0016E5_00420", "a/b/frame12", "0001", "town_000001_000019"]
    assert sequence_sizes(names) == {"": 1, "0016E5": 2, "a/b/frame": 1, "town_000001": 1}


def test_an_unknown_sequence_is_refused_and_those_that_are_there_are_named(camvid: Path) -> None:
    with pytest.raises(DataError, match=r"of sequence 'seq3'; there is seq1 \(2\), seq10 \(1\), seq2 \(3\)"):
        LeaveOut(open_source("camvid", camvid), "seq3")


def test_something_must_be_left(tmp_path: Path) -> None:
    put(tmp_path / "train", tmp_path / "trainannot", ("a_1", "a_2"))
    with pytest.raises(DataError, match=r"all 2 training images .* are of sequence 'a'"):
        LeaveOut(open_source("camvid", tmp_path), "a")


def test_a_source_without_files_has_no_sequences() -> None:
    with pytest.raises(DataError, match=r"'streets' has no files to divide anew; leave data\.leave_out away"):
        LeaveOut(open_source("streets"), "a")


def test_what_a_folder_held_out_at_random_is_trained_on_again(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "masks", TRAIN)
    whole = open_source("folder", tmp_path, classes=[str(i) for i in range(11)], val_fraction=0.5)
    assert len(ids(whole, "train")) == 3
    source = LeaveOut(whole, "seq2")
    assert len(ids(source, "train")) == 3 and ids(source, "val") == ["seq2_0001", "seq2_0002", "seq2_0003"]


def test_few_labels_are_drawn_from_what_is_trained_on(camvid: Path) -> None:
    options = ["--data.source=camvid", f"--data.root={camvid}", "--data.leave_out=seq2"]
    data = build_data(load_recipe("mean-teacher", [*options, "--data.labelled=1", "--data.unlabelled=rest"]))
    assert data.unlabelled is not None
    assert {sample.id.split("_")[0] for sample in data.unlabelled.samples} <= {"seq1", "seq10"}
    assert data.labelled_count == 1 and len(data.unlabelled) == 2


def test_a_name_that_looks_like_a_number_stays_a_name() -> None:
    assert load_recipe("supervised", ["--data.leave_out=0016E5"]).data.leave_out == "0016E5"


def test_a_fold_is_scored_and_the_others_are_trained_on(camvid: Path) -> None:
    folds = [Fold(open_source("camvid", camvid), f"{number}/3") for number in (1, 2, 3)]
    assert sorted(name for fold in folds for name in ids(fold, "val")) == sorted(TRAIN)
    for fold in folds:
        assert sorted([*ids(fold, "val"), *ids(fold, "train")]) == sorted(TRAIN)
        assert len({name.split("_")[0] for name in ids(fold, "val")}) == 1, "whole sequences"
        assert ids(fold, "test") == ["other_0001"] and fold.samples("val")[0].split == "val"


def test_a_recipe_names_its_fold(camvid: Path) -> None:
    options = ["--data.source=camvid", f"--data.root={camvid}", "--data.fold=2/3"]
    data = build_data(load_recipe("supervised", options))
    assert ids(data.source, "val") == ids(Fold(open_source("camvid", camvid), "2/3"), "val")
    with pytest.raises(DataError, match="leave one of them away"):
        build_data(load_recipe("supervised", [*options, "--data.leave_out=seq1"]))
    for wrong in ("0/3", "4/3", "second"):
        with pytest.raises(DataError, match="is no fold; write 1/3"):
            Fold(open_source("camvid", camvid), wrong)
