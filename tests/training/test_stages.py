"""Whole runs with unlabelled images: baselines, teachers that are trained first, resuming, bad input."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from PIL import Image
from tiny_training import act_at, same_weights, tiny_recipe, train_tiny, weights

from litheseg.data.datamodule import SegmentationData
from litheseg.data.folder import write_folder
from litheseg.data.streets import Streets
from litheseg.errors import DataError, LithesegError, RecipeError, TrainingError
from litheseg.masks.classes import Classes
from litheseg.models.bundle import load_bundle, save_bundle
from litheseg.training import load_recipe
from litheseg.training.cross_pseudo import CrossPseudoTask
from litheseg.training.stages import labels_alone, missing_teachers, teacher_folder, teacher_recipe
from litheseg.training.task import SegmentationTask

FEW = ("--data.labelled=2", "--data.absent_classes=true", "--trainer.epochs=1")
PLAIN = (*FEW, "--widths.values=[1.0]", "--model.args={}")
TEACHERS = (
    "--mgd.deep.model={name: tiny, args: {}}",
    "--mgd.wide.model={name: tiny, args: {dropout: 0.2}}",
)
STREETS = Streets(train=1, val=1, size=(32, 32)).classes.names
STEPS = 3  # 6 unlabelled images, 2 at a time


def curves(folder: Path) -> dict[str, float]:
    """The last value of each curve."""
    last: dict[str, float] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            last |= {name: float(value) for name, value in row.items() if value}
    return last


@pytest.fixture(scope="module")
def mgd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mgd") / "run"
    train_tiny(folder, *PLAIN, *TEACHERS, name="mgd")
    return folder


def test_mgd_trains_what_it_needs_first(mgd_run: Path) -> None:
    found = sorted(path.name.rsplit("-", 1)[0] for path in (mgd_run.parent / "teachers").iterdir())
    assert found == ["cps-tiny", "cps-tiny"]
    teacher = next((mgd_run.parent / "teachers").iterdir())
    assert {"train/pseudo@1", "train/peer/pseudo@1"} <= curves(teacher).keys()
    assert {
        "train/main@1",
        *(f"train/{name}_{lesson}@1" for name in ("deep", "wide") for lesson in ("pixel", "pixel_unlabelled")),
        "train/deep_image@1",
        "train/wide_region@1",
    } <= curves(mgd_run).keys()
    assert curves(mgd_run)["step"] + 1 == STEPS == curves(mgd_run / "labelled-only")["step"] + 1


def test_teachers_that_are_trained_first_see_images_as_the_student_does(mgd_run: Path) -> None:
    student = load_bundle(mgd_run / "model.safetensors").header
    for folder in (mgd_run.parent / "teachers").iterdir():
        teacher = load_bundle(folder / "model.safetensors").header
        for name in ("mean", "std", "size", "resizes"):
            assert getattr(teacher, name) == getattr(student, name)


def test_the_baseline_stands_beside_the_result(mgd_run: Path) -> None:
    alone = load_bundle(mgd_run / "labelled-only" / "model.safetensors").header
    header = load_bundle(mgd_run / "model.safetensors").header
    assert header.metrics["1"]["labels_alone"] == alone.metrics["1"]["miou"]
    assert header.recipe["data"]["unlabelled"] == "rest" and alone.recipe["data"]["unlabelled"] is None
    assert "labels_alone" not in alone.metrics["1"]
    assert header.recipe["mgd"]["deep"]["bundle"].endswith("model.safetensors")  # what taught is on record


def test_teachers_are_found_again(mgd_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = mgd_run.parent / "again"
    train_tiny(again, *PLAIN, *TEACHERS, "--optimizer.clip=1", "--trainer.baseline=false", name="mgd")
    assert len(list((mgd_run.parent / "teachers").iterdir())) == 4  # another optimizer, other teachers
    third = mgd_run.parent / "third"
    capsys.readouterr()
    train_tiny(third, *PLAIN, *TEACHERS, "--mgd.wide.region=5", "--trainer.baseline=false", name="mgd")
    shown = capsys.readouterr().out
    assert len(list((mgd_run.parent / "teachers").iterdir())) == 4
    assert shown.count("Done before: the deep teacher") == shown.count("Done before: the wide teacher") == 1
    assert not (third / "labelled-only").exists()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_that_dies_in_any_stage_resumes(
    mgd_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Baseline, deep teacher, wide teacher, student: the run dies in the second step of one of them."""
    calls = [0]

    def die(loss: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == stage * STEPS + 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    options = (*PLAIN, *TEACHERS)
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="not enough memory"):
        patch.setattr(SegmentationTask, "training_step", act_at(0, die))
        original = CrossPseudoTask.training_step
        patch.setattr(CrossPseudoTask, "training_step", lambda self, batch, index: die(original(self, batch, index)))
        train_tiny(tmp_path / "run", *options, name="mgd")
    train_tiny(tmp_path / "run", *options, name="mgd", resume=True)
    assert same_weights(mgd_run, tmp_path / "run")


def test_lithe_teaches_every_width_on_both_kinds_of_images(tmp_path: Path, mgd_run: Path) -> None:
    bundle = mgd_run / "model.safetensors"
    teachers = (f"--mgd.deep.bundle={bundle}", f"--mgd.wide.bundle={bundle}")
    options = ("--model.efficient.groups=2", "--grouping.shape=cosine", "--grouping.start=0.2")
    result = train_tiny(tmp_path / "run", *FEW, "--model.args={}", *teachers, *options, name="lithe")
    assert result.scores.keys() == result.labels_alone.keys() == {1.0, 0.5}
    logged = curves(tmp_path / "run")
    for width in ("1", "0.5"):
        assert {
            f"train/{name}@{width}" for name in ("deep_pixel_unlabelled", "wide_region", "deep_boundary")
        } <= logged.keys()
    assert "train/kl_unlabelled@0.5" in logged and "train/kl_unlabelled@1" not in logged
    groups = [layer.groups for layer in load_bundle(result.bundle).plain(1.0).modules() if hasattr(layer, "groups")]
    assert 2 in groups


@pytest.mark.parametrize("name", ["cps", "unimatch", "mean-teacher"])
def test_the_other_recipes_resume_exactly(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*PLAIN, "--trainer.epochs=2", "--trainer.baseline=false")
    whole = train_tiny(tmp_path / "whole", *options, name=name)
    assert whole.labels_alone == {} and not (tmp_path / "whole" / "labelled-only").exists()
    original = SegmentationTask.loss

    def fail(self: SegmentationTask, step: Any) -> Any:
        if self.global_step == STEPS + 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, step)

    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr(SegmentationTask, "loss", fail)
        train_tiny(tmp_path / "broken", *options, name=name)
    train_tiny(tmp_path / "broken", *options, name=name, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize(
    "terms", [("--loss.kl=1",), ("--loss.channel_wise=3",), ("--loss.pairwise=1",), ("--loss.intra_class=10",)]
)
def test_other_distillers_learn_from_unlabelled_images(terms: tuple[str], tmp_path: Path, mgd_run: Path) -> None:
    teacher = ("--teacher.kind=frozen", f"--teacher.bundle={mgd_run / 'model.safetensors'}")
    options = ("--data.unlabelled=rest", "--trainer.baseline=false", *teacher, *terms)
    train_tiny(tmp_path, *PLAIN, *options, name="supervised")
    name = re.sub(r"--loss\.(\w+)=.*", r"\1", terms[0])
    logged = curves(tmp_path)
    assert logged[f"train/{name}@1"] > 0 and logged[f"train/{name}_unlabelled@1"] > 0


def test_two_processes_train_as_one_on_unlabelled_images(tmp_path: Path, mgd_run: Path) -> None:
    """The global batch and its CutMix partners, dealt to two processes."""
    bundle = mgd_run / "model.safetensors"
    options = (
        *("--name=mgd", "--model.args={norm: group, dropout: 0}", "--widths.values=[1.0, 0.5]", "--trainer.epochs=1"),
        *("--data.labelled=2", "--data.unlabelled=rest", "--data.absent_classes=true", "--trainer.baseline=false"),
        *(f"--mgd.{name}.{lesson}=1" for name in ("deep", "wide") for lesson in ("pixel_labelled", "pixel_unlabelled")),
        *("--mgd.deep.image=0.1", "--mgd.wide.region=10", "--mgd.deep.boundary=0.5"),
        *("--data.views.jitter=0.8", "--optimizer.name=sgd", "--optimizer.lr=0.05", "--optimizer.clip=1"),
        *(f"--mgd.{name}.bundle={bundle}" for name in ("deep", "wide")),
    )
    train_tiny(tmp_path / "one", *options)
    script = [sys.executable, tiny_training.__file__, str(tmp_path / "two"), *options, "--trainer.devices=2"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=900, env=tiny_training.environment())
    assert done.returncode == 0, done.stderr
    trained = weights(tmp_path / "two")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


# --- recipes of stages -----------------------------------------------------------------------------------------------


def test_a_teachers_recipe_takes_over_images_and_labels() -> None:
    recipe = tiny_recipe(*PLAIN, *TEACHERS, "--loss.main=ohem", "--mgd.teacher_epochs=7", name="mgd")
    first = teacher_recipe(recipe, recipe.mgd.wide)
    assert first.model == recipe.mgd.wide.model and first.trainer.epochs == 7 and first.loss.main == "ohem"
    assert first.teacher.kind == "peer" and first.loss.pseudo == 5 and not first.mgd.tutors
    assert replace(first.data, views=recipe.data.views) == recipe.data and first.optimizer == recipe.optimizer
    other = teacher_recipe(replace(recipe, mgd=replace(recipe.mgd, train_with="unimatch")), recipe.mgd.wide)
    assert other.data.views.count == 2 and other.loss.confidence == 0.95
    folder = teacher_folder(recipe, first, Path("runs/mgd"))
    assert folder.parent == Path("runs/teachers") and folder.name.startswith("cps-tiny-")
    quiet = replace(first, trainer=replace(first.trainer, loggers=(), val_every=50))
    assert teacher_folder(recipe, quiet, Path("runs/mgd")) == folder
    assert teacher_folder(recipe, replace(first, widths=replace(first.widths, divisor=4)), Path("runs/mgd")) != folder
    assert set(missing_teachers(recipe)) == {"deep", "wide"}


def test_labels_alone_keeps_teachers_within_the_network() -> None:
    alone = labels_alone(tiny_recipe(*FEW, "--model.args={}", *TEACHERS, name="lithe"), steps=43)
    assert alone.teacher.kind == "next-wider" and alone.loss.kl == 1 and alone.widths.values == (1.0, 0.5)
    assert alone.data.unlabelled is None and alone.data.steps == 43 and not alone.mgd.tutors
    alone = labels_alone(tiny_recipe(*PLAIN, name="unimatch"), steps=43)
    assert alone.teacher.kind == "none" and alone.loss.pseudo == alone.loss.perturbed == 0


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (
            "mgd",
            "--data.unlabelled=null",
            r"mgd\.deep\.pixel_unlabelled learns from unlabelled images.*--data\.unlabelled",
        ),
        ("unimatch", "--data.unlabelled=null", r"loss\.pseudo learns from unlabelled images"),
        ("supervised", "--data.unlabelled=rest", r"no term learns from; set --loss\.pseudo 1"),
        ("mgd", "--mgd.labels=soft --mgd.threshold=0.5", r"mgd\.threshold chooses among hard labels"),
        ("mgd", "--mgd.deep.image=-1", r"--mgd\.deep\.image -1"),
        ("cps", "--grouping.shape=cosine", r"two peers cannot turn into grouped"),
        ("cps", "--mgd.deep.image=1", r"do not go with --teacher\.kind peer"),
        ("slimseg", "--data.unlabelled=rest --loss.perturbed=1", r"loss\.perturbed needs a teacher that sees whole"),
        ("mgd", "--data.views.area=[0.5,0.2]", r"area"),
        ("unimatch", "--loss.confidence=1", r"--loss\.confidence 1"),
        ("unimatch", "--teacher.width=0.5", r"teacher\.width 0\.5 is not among"),
    ],
)
def test_choices_that_do_not_go_together(recipe: str, override: str, message: str) -> None:
    with pytest.raises(LithesegError, match=message):
        load_recipe(recipe, override.split())


def test_a_class_without_a_label_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [part for part in PLAIN if "absent" not in part]
    monkeypatch.setattr(SegmentationData, "absent_classes", lambda self: ("tram", "tree"))
    with pytest.raises(RecipeError, match=r"no labelled training image shows tram, tree.*--data\.absent_classes true"):
        train_tiny(tmp_path / "run", *options, "--trainer.baseline=false", name="cps")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_two_folders(tmp_path: Path) -> None:
    """The user's case: one folder with masks, one without, a broken file in it."""
    labelled = write_folder(Streets(train=4, val=2, size=(32, 32), seed=0), tmp_path / "labelled")
    photos = tmp_path / "photos"
    photos.mkdir()
    scenes = Streets(train=12, val=1, size=(48, 40), seed=5)
    for index, sample in enumerate(scenes.samples("train")):
        size = (40, 48) if index % 2 else (64, 32)
        Image.fromarray(scenes.read_image(sample)).resize(size).save(photos / f"{index}.jpg")
    (photos / "11.jpg").write_bytes((photos / "11.jpg").read_bytes()[:200])
    options = (
        *("--data.source=folder", f"--data.root={labelled}", "--data.options={}", "--data.size=[32,32]"),
        *("--data.absent_classes=true", "--trainer.epochs=1", "--widths.values=[1.0]", "--model.args={}"),
    )
    with pytest.warns(UserWarning, match=r"11\.jpg"):
        result = train_tiny(tmp_path / "run", *options, f"--data.unlabelled={photos}", name="unimatch")
    assert curves(tmp_path / "run")["step"] + 1 == 5 and result.labels_alone.keys() == {1.0}
    images = next(path for path in (labelled / "images").rglob("*") if path.is_dir() and path.name == "train")
    with pytest.raises(DataError, match=r"labelled"):
        train_tiny(tmp_path / "overlap", *options, f"--data.unlabelled={images}", name="unimatch")


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, mgd_run: Path) -> None:
    bundle = load_bundle(mgd_run / "model.safetensors")
    names = ("ocean", *bundle.header.classes.names[1:])
    classes = Classes(names, bundle.header.classes.colors)
    save_bundle(tmp_path / "other.safetensors", bundle.model(), replace(bundle.header, classes=classes))
    options = (*PLAIN, "--data.unlabelled=rest", "--loss.kl=1", "--trainer.baseline=false", "--teacher.kind=frozen")
    with pytest.raises(RecipeError, match=rf"other\.safetensors knows 'ocean' where the data has '{STREETS[0]}'"):
        train_tiny(tmp_path / "run", *options, f"--teacher.bundle={tmp_path / 'other.safetensors'}", name="supervised")
