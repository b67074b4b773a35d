"""A search over recipes: what it may vary, that it goes on where it was killed, and that poor runs end early."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_camvid import make_camvid
from tiny_training import ARGUMENTS, act_at

from litheseg.building import tuning
from litheseg.building.tuning import SearchedField, TuneResult, parse_search, tune
from litheseg.cli import main
from litheseg.errors import DataError, MissingExtraError, RecipeError, TrainingError, WidthError
from litheseg.evaluation.metrics import Scores, SegmentationMetrics
from litheseg.training.recipe import load_recipe
from litheseg.training.task import SegmentationTask

SEARCH = ["optimizer.lr=1e-4:1e-2:log", "data.batch_size=2,3"]


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = make_camvid(tmp_path_factory.mktemp("data"), frames=2)
    return [*ARGUMENTS, "--data.source=camvid", f"--data.root={folder}", "--data.options={}", "--trainer.epochs=1"]


@pytest.fixture(scope="module")
def found(fields: list[str], tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    pytest.importorskip("optuna")
    return tune("slimseg", *fields, search=SEARCH, trials=3, output=tmp_path_factory.mktemp("tuned") / "whole")


def comparable(result: TuneResult) -> list[Any]:
    return [(trial.folder.name, trial.values, trial.state, trial.score) for trial in result.trials]


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("optimizer.lr=1e-4:1e-2:log", SearchedField("optimizer.lr", (), 1e-4, 1e-2, True)),
        ("--trainer.epochs=5:20", SearchedField("trainer.epochs", (), 5, 20)),
        ("trainer.ema=0:0.9", SearchedField("trainer.ema", (), 0, 0.9)),
        ("data.batch_size=4,8,16", SearchedField("data.batch_size", ("4", "8", "16"))),
        ("data.size=[90,120],[180,240]", SearchedField("data.size", ("[90,120]", "[180,240]"))),
        ("model.args={a: 1, b: 2},{a: 3}", SearchedField("model.args", ("{a: 1, b: 2}", "{a: 3}"))),
    ],
)
def test_ranges_and_choices(text: str, search: SearchedField) -> None:
    assert parse_search(text) == search


@pytest.mark.parametrize("text", ["optimizer.lr", "optimizer.lr=1", "=1:2", "a=2:1", "a=0:1:log", "a=1:2:3", "a=1,,2"])
def test_what_cannot_be_searched(text: str) -> None:
    with pytest.raises(RecipeError, match="LOW:HIGH"):
        parse_search(text)


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"litheseg\[tune\]"):
        tune("slimseg", search=SEARCH, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_best_recipe_is_that_of_the_best_score(found: TuneResult) -> None:
    assert len(found.trials) == 3 and {trial.state for trial in found.trials} == {"complete"}
    best = max(found.trials, key=lambda trial: trial.score or 0)
    recipe = load_recipe(str(found.best))
    assert recipe.optimizer.lr == float(best.values["optimizer.lr"])
    assert recipe.data.batch_size == int(best.values["data.batch_size"])
    assert found.table.rows[0][0] == best.folder.name
    assert (best.folder / "model.safetensors").exists() and not (best.folder / "checkpoints").exists()


def test_a_search_that_was_killed_goes_on(
    found: TuneResult, fields: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died, report = [], tuning._Pruning.on_validation_end

    def die(pruning: Any, *arguments: Any) -> None:
        report(pruning, *arguments)
        if pruning._trial.number == 1 and not died:
            died.append(True)
            raise ZeroDivisionError

    monkeypatch.setattr(tuning._Pruning, "on_validation_end", die)
    with pytest.raises(ZeroDivisionError):
        tune("slimseg", *fields, search=SEARCH, trials=3, output=tmp_path / "broken")
    again = tune("slimseg", *fields, search=SEARCH, trials=3, output=tmp_path / "broken")
    assert comparable(again) == comparable(found)


def test_the_command_on_a_search_that_is_over(
    found: TuneResult, fields: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    search = [word for text in SEARCH for word in ("--search", text)]
    command = ["tune", *search, *fields, "--trials", "3", "--output", str(found.best.parent)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "mIoU@1 (%)" in text and f"litheseg train --recipe {found.best}" in text
    assert main([*command, "--optimizer.momentum=0.5"]) == 2
    assert "another optimizer" in capsys.readouterr().err


def test_poor_runs_end_early_and_bad_values_fail(
    fields: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    compute, calls = SegmentationMetrics.compute, []

    def worse_each_time(metrics: SegmentationMetrics) -> Scores:
        calls.append(metrics)
        return dataclasses.replace(compute(metrics), miou=1 / len(calls))

    monkeypatch.setattr(SegmentationMetrics, "compute", worse_each_time)
    monkeypatch.setattr(tuning, "_UNPRUNED", 1)
    result = tune("slimseg", *fields, search=["data.batch_size=2,99"], trials=5, width=0.5, output=tmp_path / "tuned")
    states = {(trial.values["data.batch_size"], trial.state) for trial in result.trials}
    assert states == {("2", "complete"), ("2", "pruned"), ("99", "fail")}


def test_what_every_run_fails_for_is_said(fields: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(SegmentationTask, "training_step", act_at(0, lambda loss: loss * float("nan")))
    with pytest.raises(TrainingError, match=r"3 runs failed and none succeeded.*--optimizer\.lr"):
        tune("slimseg", *fields, search=SEARCH, output=tmp_path / "tuned")


def test_wrong_wishes(fields: list[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    for search, width, error in (
        (["optimizer.lrr=1:2"], None, RecipeError),
        (["optimizer.lr=-1:1"], None, RecipeError),
        ([], None, RecipeError),
        (SEARCH, 0.3, WidthError),
    ):
        with pytest.raises(error):
            tune("slimseg", *fields, search=search, width=width, output=tmp_path / "tuned")
    with pytest.raises(DataError, match="nowhere"):
        tune("slimseg", *fields, "--data.root=nowhere", search=SEARCH, output=tmp_path / "tuned")
    with pytest.raises(RecipeError, match="devices"):
        tune("slimseg", *fields, "--trainer.devices=2", search=SEARCH, output=tmp_path / "tuned")
