"""Training from a program: the fields of a recipe as arguments, and a result in hand."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import STEPS, same_weights, train_tiny

import litheseg
from litheseg.building import finding, stages
from litheseg.building.result import ScoreTable
from litheseg.bundle.header import BundleHeader
from litheseg.errors import DataError, Interrupted, RecipeError, TrainingError
from litheseg.masks.classes import Classes
from litheseg.models.bundle import load_bundle
from litheseg.training.task import SegmentationTask

TINY: dict[str, Any] = {
    "model": {"name": "tiny"},
    "data": {"source": "streets", "options": {"train": 8, "val": 2, "size": [32, 32]}, "batch_size": 2},
    "widths": [1.0, 0.5],
    "trainer": {"epochs": 2, "accelerator": "cpu", "val_every": 1, "threads": 1, "loggers": ["csv"]},
}


def test_arguments_are_the_fields_of_a_recipe(tmp_path: Path) -> None:
    run = litheseg.train("slimseg", tmp_path / "called", **TINY)
    train_tiny(tmp_path / "loaded")
    assert same_weights(run.folder, tmp_path / "loaded")


def test_the_result_in_hand(tmp_path: Path) -> None:
    run = litheseg.train("slimseg", tmp_path / "run", size=(32, 32), minutes=10, **TINY)
    assert list(run.scores) == [1.0, 0.5] and "parameters" in str(run.scores)
    assert run.predict(np.zeros((20, 30, 3), np.uint8), width=0.5).shape == (20, 30)
    red, blue = np.zeros((20, 30, 3), np.uint8) + np.uint8([[255, 0, 0], [0, 0, 255]])[:, None, None]
    pictures = run.show([red, np.kron(blue, np.ones((2, 2, 1), np.uint8))])
    assert isinstance(pictures, Image.Image) and pictures.width == 3 * 30 + 2 * 8
    first_column = np.asarray(pictures)[:, 15]
    assert (first_column == (255, 0, 0)).all(1).sum() == (first_column == (0, 0, 255)).all(1).sum() == 20
    assert run.show(red).width == pictures.width, "one image needs no list"
    with pytest.raises(DataError, match="no images to show"):
        run.show([])
    assert run.frontier().format == "PNG"
    assert repr(run).startswith(f"TrainedNetwork in {run.folder}\n") and repr(run.scores) in repr(run)
    assert f"{run.scores.worst_class(0.5)[0]} {100 * run.scores.worst_class(0.5)[1]:.1f}" in repr(run)
    pandas = pytest.importorskip("pandas")
    table = run.scores.to_pandas()
    assert isinstance(table, pandas.DataFrame) and list(table.index) == [1.0, 0.5]
    assert table.loc[0.5, "miou"] == run.scores[0.5]["miou"] and "iou road" in table.columns


def test_notebooks_show_a_table_whatever_classes_are_called(tmp_path: Path) -> None:
    iou = {"iou": [0.9, 0.02], "miou": 0.46, "params": 2000, "macs": 3e6}
    classes = Classes(("road", "<img src=x>"), ((0, 0, 0), (255, 255, 255)))
    header = BundleHeader({"name": "tiny", "args": {}}, classes, (1.0, 0.5), metrics={"1": iou, "0.5": iou})
    html = ScoreTable(header)._repr_html_()
    table = ElementTree.fromstring(f"<div>{html}</div>")
    assert [row[0].text for row in table.iter("tr")] == ["width", "1", "0.5"]
    assert "<img src=x> 2.0" in [cell.text for cell in table.iter("td")]
    assert "<img src=x> is hardly found" in str(table.findtext("p"))


def test_unknown_fields_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown option --trainer.epoch\."):
        litheseg.train("slimseg", tmp_path, trainer={"epoch": 3})


def test_fields_of_data_reach_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(stages, "build", lambda *words, **_: given.extend(words))
    litheseg.build({"root": "mine", "batch_size": 4}, size=(32, 64), trainer={"epochs": 3})
    assert given[0] == "mine" and set(given[1:]) == {
        "--trainer.epochs=3",
        "--data.batch_size=4",
        "--data.size=[32, 64]",
    }
    with pytest.raises(RecipeError, match='no "root"'):
        litheseg.build({"batch_size": 4})


def test_errors_name_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise DataError(
            "give --min-class-iou 0.2, `litheseg doctor a --json`: litheseg data import a --format x; --folds"
        )

    monkeypatch.setattr(stages, "build", refused)
    wanted = "give min_class_iou 0.2, `litheseg doctor a --json`: litheseg data import a --format x; folds"
    with pytest.raises(DataError) as caught:
        litheseg.build("mine")
    assert str(caught.value) == wanted
    with pytest.raises(TrainingError, match=r"or choose another output$"):
        train_tiny(tmp_path)
        litheseg.train("slimseg", tmp_path, **TINY)


def test_batch_size_and_learning_rate_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "find_batch_size", lambda *_: 4)
    monkeypatch.setattr(finding, "find_lr", lambda recipe, _: 0.001 * recipe.data.batch_size)
    run = litheseg.train("slimseg", tmp_path / "run", find_batch_size=True, find_lr=True, **TINY)
    recipe = load_bundle(run.bundle).header.recipe
    assert recipe["data"]["batch_size"] == 4 and recipe["optimizer"]["lr"] == 0.004


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come at a training step, the first of which is 0."""
    start = SegmentationTask.on_train_batch_start

    def on_train_batch_start(task: SegmentationTask, batch: object, index: int) -> None:
        if task.global_step == step:
            signal.raise_signal(signal.SIGINT)
        start(task, batch, index)

    monkeypatch.setattr(SegmentationTask, "on_train_batch_start", on_train_batch_start)


@pytest.mark.parametrize(
    ("step", "of", "trained"),
    [(STEPS + 1, 50, 2), (2 * STEPS - 1, 50, 3), (2 * STEPS - 1, 2, 2)],
    ids=[
        "within an epoch, which is the last",
        "at the end of one",
        "at the end of all, where nothing is left to train",
    ],
)
def test_ctrl_c_gives_what_there_is(
    step: int, of: int, trained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    interrupted_at(step, monkeypatch)
    try:
        fields = {**TINY, "trainer": {**TINY["trainer"], "epochs": of}}
        run = litheseg.train("slimseg", tmp_path / "run", **fields)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    history, weights = (run.folder / "metrics.csv").read_text(), load_bundle(run.bundle).state_dict
    assert len(history.splitlines()) == 1 + trained
    assert 0 <= run.scores[1.0]["miou"] <= 1
    again = litheseg.train("slimseg", tmp_path / "run", resume=True, **fields)  # as when a notebook's cell runs again
    assert (run.folder / "metrics.csv").read_text() == history and again.scores == run.scores
    assert all(torch.equal(value, weights[name]) for name, value in load_bundle(again.bundle).state_dict.items())


def test_ctrl_c_before_there_is_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted_at(0, monkeypatch)
    try:
        with pytest.raises(Interrupted):
            litheseg.train("slimseg", tmp_path / "run", **TINY)
    finally:
        signal.signal(signal.SIGINT, handler)
