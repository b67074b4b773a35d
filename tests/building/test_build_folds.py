"""A cross-validation within a build: when there is one, what it costs, and that each image is scored once, unseen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from test_plan import FACTS, planned
from test_whole_build import FIELDS, build

from litheseg.building import folds, stages
from litheseg.building.folds import plan_folds
from litheseg.building.plan import read_plan
from litheseg.building.result import BuildResult
from litheseg.building.validation import hold_out
from litheseg.data.doctor.diagnosis import diagnose
from litheseg.data.sources.folder import FolderSource
from litheseg.data.sources.streets import make_streets
from litheseg.errors import LithesegError
from litheseg.models.bundle import load_bundle
from litheseg.progress import shown
from litheseg.report.card import card_sections, to_markdown
from litheseg.runtime.predictor import Predictor

__all__ = ["build"]

FEW = replace(FACTS, train=20, val=4, holds_out=True, sequences={"": 24})


@pytest.mark.parametrize(("steps", "each"), [(2400, 400), (4000, 500), (2399, 0), (400_000, 20_000)])
def test_folds_take_half_of_the_steps_at_most(steps: int, each: int) -> None:
    plan = plan_folds(FEW, None, steps=steps, widths=1)
    assert (plan.count, plan.steps) == ((3, each) if each else (0, 0))
    assert plan.count * plan.steps <= steps / 2


def test_who_has_folds_and_how_to_overrule() -> None:
    with_time: dict[str, Any] = {"steps": 5000, "widths": 1}
    for facts in (replace(FEW, train=45, val=5), replace(FEW, holds_out=False), replace(FEW, train=4, val=1)):
        plan = plan_folds(facts, None, **with_time)
        assert not plan.count and "--folds 3" in plan.because
        assert plan_folds(facts, 3, **with_time).count == 3
    assert plan_folds(FEW, None, steps=3000, widths=4).count == 3
    assert not plan_folds(FEW, None, steps=2700, widths=4).count, "the network needs 400 steps for each width"
    assert not plan_folds(FEW, 1, **with_time).count and "--folds 0" in plan_folds(FEW, None, **with_time).because
    with pytest.raises(LithesegError, match="--folds 30: there are 24 images"):
        plan_folds(FEW, 30, **with_time)
    with pytest.raises(LithesegError, match="leave 16 training steps for each fold; give more --minutes, or"):
        plan_folds(FEW, 3, steps=100, widths=1)


def test_the_plan_shares_the_minutes() -> None:
    _, values = planned(FEW, step=0.1, minutes=40)
    _, alone = planned(FEW, step=0.1, minutes=40, folds=0)
    assert values["folds"] == 3 and alone["folds"] == 0
    whole = alone["trainer.minutes"]
    assert values["trainer.minutes"] + 3 * values["folds.minutes"] == pytest.approx(whole, abs=0.05)
    assert whole / 2 <= values["trainer.minutes"] < 0.7 * whole
    assert values["folds.epochs"] * (24 * 2 // 3 // values["data.batch_size"]) >= 400
    assert not [option for option in planned(FEW, step=0.1, minutes=40)[0].overrides if option.startswith("--folds")]


def test_a_plan_that_was_edited_to_have_folds_says_how_long_they_are() -> None:
    text = planned(FEW, step=0.1, minutes=40, folds=0)[0].text()
    edited = read_plan(text.replace("  folds: 0", "  folds: 2\n  folds.epochs: 7\n  folds.minutes: 1.5"))
    assert edited.folds == (2, ["--trainer.epochs=7", "--trainer.minutes=1.5"])
    with pytest.raises(LithesegError, match=r"add folds\.epochs and folds\.minutes"):
        assert read_plan(text.replace("  folds: 0", "  folds: 3")).folds


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in one folder, without a val split."""
    folder = tmp_path_factory.mktemp("photos") / "data"
    make_streets(folder, train=9, val=1, size=(32, 32))
    for kind in ("images", "masks"):
        for file in (folder / kind / "train").iterdir():
            file.rename(folder / kind / file.name)
        shutil.rmtree(folder / kind / "train")
        shutil.rmtree(folder / kind / "val")
    return folder


def confusion(network: Path, source: FolderSource, names: set[str]) -> np.ndarray:
    """Counted one by one, through the predictor."""
    predict, classes = Predictor(str(network)), len(source.classes)
    counts = np.zeros((classes, classes), np.int64)
    for sample in source.samples("train"):
        if sample.id in names:
            mask, found = source.read_mask(sample), predict(source.read_image(sample))
            np.add.at(counts, (mask[mask != 255], found[mask != 255]), 1)
    return counts


def mean_iou(counts: np.ndarray) -> float:
    held = counts.sum(1) > 0
    return float(np.mean((np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts)).clip(1))[held]))


def test_each_image_is_scored_unseen_also_by_a_build_that_was_stopped_in_a_fold(
    build: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, train = tmp_path / "out", list[str](), folds.train

    def failing(recipe: Any, folder: Path, **options: Any) -> Any:
        calls.append(folder.name)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        done = train(recipe, folder, **options)
        shutil.copy(done.bundle, tmp_path / f"{folder.name}.safetensors")
        return done

    monkeypatch.setattr(folds, "train", failing)
    begin = partial(build, photos, *FIELDS, minutes=30.0, budget=1000.0)
    with pytest.raises(RuntimeError, match="power cut"):
        begin(folds=3)
    before = load_bundle(out / "training" / "model.safetensors").state_dict
    with pytest.raises(LithesegError, match="training has begun, without time for other folds"):
        begin(folds=4)
    monkeypatch.setattr(stages, "train", None)  # the network is there
    result: BuildResult = begin(folds=3)
    assert calls == ["fold1", "fold2", "fold2", "fold3"], "the first one is not trained again"
    assert sorted(path.name for path in (out / "folds").iterdir()) == [f"fold{number}.json" for number in (1, 2, 3)]
    assert all((value == before[name]).all() for name, value in load_bundle(result.bundle).state_dict.items())

    seed = load_bundle(result.bundle).header.recipe["data"]["options"].get("seed", 0)
    source, counts, seen = FolderSource(photos, val_fraction=0, seed=seed), [], list[str]()
    names = [sample.id for sample in source.samples("train")]
    for number, fold in enumerate(source.folds(names, 3), 1):
        network = tmp_path / f"fold{number}.safetensors"
        assert load_bundle(network).header.recipe["data"]["fold"] == f"{number}/3" and len(fold) == 3
        counts.append(confusion(network, source, fold))
        seen += fold
    assert sorted(seen) == sorted(names)
    found = result.cross_validated[1.0]
    assert found.images == 9 and found.miou == pytest.approx(mean_iou(sum(counts)), abs=0.01)
    assert list(found.folds) == pytest.approx([mean_iou(count) for count in counts], abs=0.01)

    chosen = result.cross_validated[result.promise["width"]]
    words = f"cross-validated over 3 folds, 9 images: mIoU {100 * chosen.miou:.1f} % (worst class "
    assert str(chosen).startswith(words)
    assert f"to expect: {chosen}" in repr(result).splitlines()
    assert words in (out / "report.html").read_text() and "cross-validated" in str(result.scores)
    assert json.loads((out / "build.json").read_text())["cross_validated"] == str(chosen)
    card = to_markdown("tiny", card_sections(load_bundle(result.bundle).header, name="tiny"))
    assert "cross-validated over 3 folds, 9 images" in card


def test_leaks_that_the_plan_avoids_are_not_warned_of(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "make_plan", Mock(side_effect=LithesegError("far enough")))
    data, draw = tmp_path / "data", np.random.default_rng(0)
    (data / "images").mkdir(parents=True)
    (data / "masks").mkdir()
    (data / "classes.yaml").write_text("classes: [ground, thing]\n")
    for scene in range(6):
        picture = Image.fromarray(draw.integers(0, 250, (6, 8, 3)).astype(np.uint8)).resize((64, 48))
        for shot in range(2):
            name = f"{scene + 6 * shot:02}.png"
            Image.fromarray(np.asarray(picture) + np.uint8(shot)).save(data / "images" / name)
            Image.fromarray((np.indices((48, 64)).sum(0) // 16 % 2).astype(np.uint8)).save(data / "masks" / name)
    assert "near-leak" in {item.code for item in diagnose(FolderSource(data)).findings}
    with shown(), pytest.raises(LithesegError, match="far enough"):
        build(data, minutes=5.0)
    assert "nearly equal" not in capsys.readouterr().err
    facts = stages.make_plan.call_args.args[0]
    assert [len(group) for group in facts.groups] == [2] * 6
    assert hold_out(facts)[0] == {"hold_out": "groups", "val_fraction": 0.15}
