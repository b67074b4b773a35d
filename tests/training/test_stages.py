"""Whole runs with unlabelled images: baselines, teachers that are trained first, resuming, bad input."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
import warm
from PIL import Image
from tiny_training import act_at, same_weights, tiny_recipe, train_tiny, weights

from litheseg.data.loading.datamodule import SegmentationData
from litheseg.data.sources.folder import write_folder
from litheseg.data.sources.streets import Streets
from litheseg.errors import DataError, LithesegError, RecipeError, TrainingError
from litheseg.losses import LOSSES
from litheseg.losses.consistency import PseudoCrossEntropy
from litheseg.masks.classes import Classes
from litheseg.models.bundle import load_bundle, save_bundle
from litheseg.progress import shown
from litheseg.training import load_recipe
from litheseg.training.stages import labels_alone, missing_teachers, teacher_folder, teacher_recipe
from litheseg.training.task import CrossPseudoTask, SegmentationTask

FEW = ("--data.labelled=2", "--data.absent_classes=true", "--trainer.epochs=1")
PLAIN = (*FEW, "--widths=[1.0]", "--model.args={}")
TEACHERS = (
    "--teachers.deep.model={name: tiny, args: {}}",
    "--teachers.wide.model={name: tiny, args: {dropout: 0.2}}",
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
    names = ("labels", "pixel-deep", "pixel-wide", "image", "region")
    assert {f"train/{name}@1" for name in names} <= curves(mgd_run).keys()
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
    assert header.recipe["teachers"]["deep"]["bundle"].endswith("model.safetensors")  # what taught is on record


def test_teachers_are_found_again(mgd_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = mgd_run.parent / "again"
    train_tiny(again, *PLAIN, *TEACHERS, "--optimizer.clip=1", "--trainer.baseline=false", name="mgd")
    assert len(list((mgd_run.parent / "teachers").iterdir())) == 4  # another optimizer, other teachers
    third = mgd_run.parent / "third"
    with shown():
        train_tiny(third, *PLAIN, *TEACHERS, "--objectives.region.weight=5", "--trainer.baseline=false", name="mgd")
    said = capsys.readouterr().err
    assert len(list((mgd_run.parent / "teachers").iterdir())) == 4
    assert said.count("Done before: the deep teacher") == said.count("Done before: the wide teacher") == 1
    assert not (third / "labelled-only").exists()


@pytest.mark.parametrize("stage", [0, 2, 3])
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
    teachers = (f"--teachers.deep.bundle={bundle}", f"--teachers.wide.bundle={bundle}")
    options = ("--model.efficient.groups=2", "--grouping.shape=cosine", "--grouping.start=0.2")
    result = train_tiny(tmp_path / "run", *FEW, "--model.args={}", *teachers, *options, name="lithe")
    assert result.scores.keys() == result.labels_alone.keys() == {1.0, 0.5}
    logged = curves(tmp_path / "run")
    for width in ("1", "0.5"):
        assert {f"train/{name}@{width}" for name in ("pixel-deep", "region", "pseudo-band")} <= logged.keys()
    assert "train/kl@0.5" in logged and "train/kl@1" not in logged
    groups = [layer.groups for layer in load_bundle(result.bundle).plain(1.0).modules() if hasattr(layer, "groups")]
    assert 2 in groups


@pytest.mark.parametrize("name", ["cps", "unimatch", "unimatch-v2", "mean-teacher"])
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


@pytest.mark.parametrize("loss", ["kl", "channel-wise", "pairwise", "intra-class"])
def test_other_distillers_learn_from_unlabelled_images(
    loss: str, tmp_path: Path, mgd_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = f"--teachers.big={{kind: frozen, bundle: {mgd_run / 'model.safetensors'}}}"
    objective = f"--objectives.it={{loss: {loss}, teacher: big, weight: 3}}"
    seen, original = set(), LOSSES[loss].__call__

    def spy(self: Any, context: Any) -> torch.Tensor:
        seen.add(context.labelled)
        return original(self, context)

    monkeypatch.setattr(LOSSES[loss], "__call__", spy)
    train_tiny(
        tmp_path, *PLAIN, "--data.unlabelled=rest", "--trainer.baseline=false", teacher, objective, name="supervised"
    )
    assert curves(tmp_path)["train/it@1"] > 0 and seen == {True, False}


def test_two_processes_train_as_one_on_unlabelled_images(tmp_path: Path, mgd_run: Path) -> None:
    """The global batch and its CutMix partners, dealt to two processes."""
    bundle = mgd_run / "model.safetensors"
    options = (
        *("--name=mgd", "--model.args={norm: group, dropout: 0}", "--widths=[1.0, 0.5]", "--trainer.epochs=1"),
        *("--data.labelled=2", "--data.unlabelled=rest", "--data.absent_classes=true", "--trainer.baseline=false"),
        *(f"--teachers.{name}={{kind: frozen, bundle: {bundle}}}" for name in ("deep", "wide")),
        *(f"--objectives.pixel-{name}={{loss: pseudo-labels, teacher: {name}, on: all}}" for name in ("deep", "wide")),
        "--objectives.image={loss: image-level, teacher: deep, weight: 0.1}",
        "--objectives.region={loss: region-level, teacher: wide, weight: 10}",
        "--objectives.pseudo-band={loss: pseudo-band, teacher: deep, weight: 0.5}",
        *("--data.views.jitter=0.8", "--optimizer.name=sgd", "--optimizer.lr=0.05", "--optimizer.clip=1"),
    )
    train_tiny(tmp_path / "one", *options)
    script = [tiny_training.__file__, tmp_path / "two", *options, "--trainer.devices=2"]
    done = warm.run(script, env=tiny_training.environment())
    assert done.returncode == 0, done.stderr
    trained = weights(tmp_path / "two")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


# --- recipes of stages -----------------------------------------------------------------------------------------------


def test_a_teachers_recipe_takes_over_images_and_labels() -> None:
    options = ("--objectives.labels.loss=ohem", "--teachers.wide.epochs=7", "--teachers.deep.recipe=unimatch-v2")
    recipe = tiny_recipe(*PLAIN, *TEACHERS, *options, name="mgd")
    missing = missing_teachers(recipe)
    first = teacher_recipe(recipe, missing["wide"])
    assert first.model == missing["wide"].model and first.trainer.epochs == 7
    assert first.objectives["labels"].loss.name == "ohem"
    assert [teacher.kind for teacher in first.teachers.values()] == ["peer"] and first.objectives["pseudo"].weight == 5
    assert replace(first.data, views=recipe.data.views) == recipe.data and first.optimizer == recipe.optimizer
    other = teacher_recipe(recipe, missing["deep"])
    assert other.data.views.count == 2 and other.objectives["pseudo"].loss == PseudoCrossEntropy(confidence=0.95)
    assert [teacher.kind for teacher in other.teachers.values()] == ["ema"]
    folder = teacher_folder(first, Path("runs/mgd"))
    assert folder.parent == Path("runs/teachers") and folder.name.startswith("cps-tiny-")
    quiet = replace(first, trainer=replace(first.trainer, loggers=(), val_every=50))
    assert teacher_folder(quiet, Path("runs/mgd")) == folder
    assert teacher_folder(replace(first, model=replace(first.model, divisor=4)), Path("runs/mgd")) != folder
    assert set(missing) == {"deep", "wide"}


def test_labels_alone_keeps_teachers_within_the_network() -> None:
    alone = labels_alone(tiny_recipe(*FEW, "--model.args={}", *TEACHERS, name="lithe"), steps=43)
    assert list(alone.teachers) == ["wider"] and alone.widths == (1.0, 0.5)
    assert list(alone.objectives) == ["labels", "aux", "kl", "band"]
    assert alone.data.unlabelled is None and alone.data.steps == 43
    alone = labels_alone(tiny_recipe(*PLAIN, name="unimatch"), steps=43)
    assert not alone.teachers and list(alone.objectives) == ["labels", "aux"]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("mgd", "--data.unlabelled=null", r"objectives\.image learns from unlabelled images.*--data\.unlabelled"),
        ("unimatch", "--data.unlabelled=null", r"objectives\.pseudo learns from unlabelled images"),
        ("supervised", "--data.unlabelled=rest", r"no objective learns from; add one, such as .*pseudo-labels"),
        ("mgd", "--objectives.image.weight=-1", r"--objectives\.image\.weight -1 is out of range; give at least 0"),
        ("mgd", "--objectives.region.grid=0", r"--objectives\.region\.grid 0 is out of range; give at least 1"),
        ("cps", "--grouping.shape=cosine", r"two peers cannot turn into grouped"),
        (
            "slimseg",
            "--data.unlabelled=rest --objectives.kl.on=perturbed",
            r"objectives\.kl: on perturbed images a teacher must see whole features",
        ),
        (
            "unimatch-v2",
            "--data.views.count=1",
            r"objectives\.pseudo is on complementary images.*views\.count is 1; set --data\.views\.count 2, or",
        ),
        ("lithe", "--objectives.kl.on=complementary", r"on complementary images a teacher must see whole features"),
        ("mgd", "--data.views.area=[0.5,0.2]", r"area"),
        ("unimatch", "--objectives.pseudo.confidence=1", r"--objectives\.pseudo\.confidence 1 .*below 1"),
        ("unimatch", "--teachers.itself.width=0.5", r"teachers\.itself\.width 0\.5 is not among"),
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
        *("--data.absent_classes=true", "--trainer.epochs=1", "--widths=[1.0]", "--model.args={}"),
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
    teacher = f"--teachers.big={{kind: frozen, bundle: {tmp_path / 'other.safetensors'}}}"
    options = (*PLAIN, "--data.unlabelled=rest", "--objectives.kl={loss: kl, teacher: big}", "--trainer.baseline=false")
    with pytest.raises(RecipeError, match=rf"other\.safetensors knows 'ocean' where the data has '{STREETS[0]}'"):
        train_tiny(tmp_path / "run", *options, teacher, name="supervised")
