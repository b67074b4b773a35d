from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import records
import run

from litheseg.errors import Interrupted
from litheseg.training.recipe import Recipe, load_recipe


class FakeTraining:
    """Stands in for `train`: notes what it is asked, and may run out of time."""

    def __init__(self) -> None:
        self.calls: list[tuple[Recipe, Path, bool]] = []
        self.interrupt_at: int | None = None

    def __call__(self, recipe: Recipe, folder: Path, *, resume: bool) -> Any:
        self.calls.append((recipe, folder, resume))
        folder.mkdir(parents=True, exist_ok=True)
        if len(self.calls) == self.interrupt_at:
            raise Interrupted("stopped in epoch 3 of 40")
        (folder / "metrics.csv").write_text("epoch,step,train/labels@1\n0,10,0.9\n1,20,0.4\n2,30,\n")
        return SimpleNamespace(bundle=folder / "model.safetensors")


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "train", fake)
    metrics = {"1": {"miou": 0.5}}
    monkeypatch.setattr(run, "load_bundle", lambda path: SimpleNamespace(header=SimpleNamespace(metrics=metrics)))
    return fake


def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> None:
    words = ["run.py", "slimseg", "--data", "/data/camvid", "--model", "ddrnet", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*words, *arguments])
    run.main()


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "results/slimseg.jsonl").read_text().splitlines()]


def test_every_row_of_the_table_is_a_valid_recipe(training: FakeTraining) -> None:
    for protocol in ("camvid", "camvid-half"):
        for model in ("ddrnet", "erfnet"):
            for row in run.read_rows("slimseg", protocol, model, [0, 1]):
                recipe = load_recipe(row.recipe, row.arguments("somewhere", Path("runs")))
                assert (recipe.model.name, recipe.data.root, recipe.trainer.seed) == (model, "somewhere", row.seed)
                assert recipe.trainer.keep == "last"


def test_seeds_come_one_after_the_other(training: FakeTraining) -> None:
    found = run.read_rows("slimseg", "camvid-half", "ddrnet", [0, 1])
    assert [row.seed for row in found] == sorted(row.seed for row in found)
    assert len({row.key for row in found}) == len(found)


def test_finished_rows_are_skipped(training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, tmp_path, "--only", "b-slimmable")
    call(monkeypatch, tmp_path, "--only", "b-slimmable", "c-widest")
    assert [folder.name for _, folder, _ in training.calls] == [
        "camvid-half-ddrnet-b-slimmable-seed0",
        "camvid-half-ddrnet-c-widest-seed0",
    ]
    assert len(lines(tmp_path)) == 2


def test_a_row_out_of_time_is_resumed_and_its_minutes_add_up(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.interrupt_at = 1
    with pytest.raises(SystemExit, match="out of time: stopped in epoch 3"):
        call(monkeypatch, tmp_path, "--only", "b-slimmable")
    assert not (tmp_path / "results/slimseg.jsonl").exists()
    folder = training.calls[0][1]
    (folder / "minutes.txt").write_text("30.0")
    call(monkeypatch, tmp_path, "--only", "b-slimmable")
    assert training.calls[1][1:] == (folder, True) and training.calls[0][0] == training.calls[1][0]
    assert lines(tmp_path)[0]["minutes"] == pytest.approx(30.0, abs=0.1)


def test_no_time_left_begins_nothing(training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="the next call goes on"):
        call(monkeypatch, tmp_path, "--minutes", "0")
    assert training.calls == []


def test_the_line_names_everything(training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, tmp_path, "--only", "e-next-wider-band", "--seeds", "2")
    [line] = lines(tmp_path)
    assert line["key"] == "camvid-half-ddrnet-e-next-wider-band-seed2"
    assert (line["protocol"], line["model"], line["id"], line["seed"]) == (
        "camvid-half",
        "ddrnet",
        "e-next-wider-band",
        2,
    )
    assert line["label"] == "(e) + boundary band" and line["metrics"] == {"1": {"miou": 0.5, "train_ce": 0.4}}
    assert line["command"].startswith("litheseg train --recipe slimseg ")
    assert "--objectives.band.weight=0.5" in line["command"] and "/data/camvid" not in json.dumps(line)
    assert set(line["versions"]) == {"torch", "torchvision", "lightning", "timm"}
    for name in ("commit", "hardware", "minutes", "date"):
        assert line[name] is not None


def test_dry_run_only_lists(
    training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, tmp_path, "--only", "b-slimmable")
    call(monkeypatch, tmp_path, "--dry-run")
    output = capsys.readouterr().out
    assert "done     camvid-half-ddrnet-b-slimmable-seed0" in output
    assert "missing  camvid-half-ddrnet-c-widest-seed0" in output
    assert len(training.calls) == 1


def test_an_unknown_model_is_refused(training: FakeTraining) -> None:
    with pytest.raises(SystemExit, match=r"no model 'unet'; choose from segmenter, ddrnet, erfnet"):
        run.read_rows("slimseg", "camvid-half", "unet", [0])
