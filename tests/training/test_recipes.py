from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse.typing import NonNegativeInt
from safetensors.torch import save_file
from tiny_training import ARGUMENTS, tiny_recipe

from litheseg.errors import ModelError, RecipeError, WidthError
from litheseg.losses import LOSSES
from litheseg.losses.boundary import BoundaryBand
from litheseg.losses.distillation import KL
from litheseg.losses.supervised import CrossEntropy, DeepSupervision
from litheseg.nn import available_widths
from litheseg.training import load_recipe, recipe_names, train
from litheseg.training.build import build_data, build_elastic_model, build_task
from litheseg.training.recipe import Objective, Recipe, check_recipe, recipe_to_dict, recipe_yaml
from litheseg.training.task import SegmentationTask
from litheseg.training.teacher import TEACHERS, Teacher, TeacherConfig
from litheseg.training.teachers import NextWider


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_comes_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    assert load_recipe(str(copy)) == recipe


def test_slimseg_is_what_the_paper_says() -> None:
    recipe = load_recipe("slimseg")
    assert recipe.widths == (1.0, 0.75, 0.5, 0.25)
    assert [teacher.kind for teacher in recipe.teachers.values()] == ["next-wider"]
    assert recipe.objectives == {
        "labels": Objective(CrossEntropy()),
        "aux": Objective(DeepSupervision(), weight=0.4),
        "kl": Objective(KL(), teacher="wider"),
        "band": Objective(BoundaryBand(), weight=0.5),
    }


def test_equal_recipes_share_nothing() -> None:
    one, other = (tiny_recipe("--data.options={train: 8, ids: {1: a}}") for _ in range(2))
    assert one == other
    one.data.options["ids"]["1"] = "b"
    one.model.args["base"] = 1
    assert other.data.options["ids"] == {1: "a"} and "base" not in other.model.args
    assert tiny_recipe("--data.options={train: 8, ids: {'1': a}}").data.options["ids"] == {"1": "a"}
    for value, kind in ((1, int), (1.0, float), (True, bool)):
        assert type(tiny_recipe(f"--model.args={{base: {str(value).lower()}}}").model.args["base"]) is kind


def test_overrides_are_typed() -> None:
    recipe = load_recipe("slimseg", ["--widths=[1,.5]", "--data.size", "[90,120]", "--optimizer.lr=3e-4"])
    assert recipe.widths == (1.0, 0.5)
    assert recipe.data.size == (90, 120)
    assert recipe.optimizer.lr == 3e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--trainer.epoch=3", r"unknown option --trainer\.epoch\..*'--trainer\.epochs'"),
        ("--optimiser.lr=3", r"unknown option --optimiser\.lr"),
        ("--epochs=3", r"unknown option --epochs\. Did you mean --trainer\.epochs\?"),
        ("--lr 3", r"unknown option --lr\. Did you mean --optimizer\.lr\?"),
        ("--out runs/mine", r"unknown option --out\. Did you mean --output\?"),
        ("--zzz", r"unknown option --zzz\. `litheseg train --help`"),
        ("--trainer.epochs=many", r"trainer\.epochs"),
        ("--teachers.wider.kind=widset", r"teachers\.wider\.kind 'widset' does not exist.*'widest'"),
        ("--trainer.epochs", r"--trainer\.epochs needs a value"),
        ("trainer.epochs=3", r"'trainer\.epochs=3' is no option"),
        ("--trainer.epochs=0", r"--trainer\.epochs 0 is out of range; give at least 1"),
        ("--optimizer.lr=0", r"--optimizer\.lr 0 is out of range; give above 0"),
        ("--optimizer.lr=nan", r"optimizer\.lr"),
        ("--optimizer.warmup=1", r"--optimizer\.warmup 1 .*at least 0 and below 1"),
        ("--objectives.kl.temperature=0", r"--objectives\.kl\.temperature 0 is out of range; give above 0"),
        ("--objectives.kl.wieght=2", r"--objectives\.kl\.wieght: there is no 'wieght' here\. Did you mean 'weight'"),
        ("--objectives.labels.loss=ohme", r"objectives\.labels\.loss 'ohme' does not exist\. Did you mean 'ohem'"),
        ("--objectives.k.weight=3", r"objectives\.k does not name its loss.*--objectives\.k\.loss"),
        ("--objectives.kl.teacher=widr", r"learns from 'widr', which is none of the teachers\. Did you mean 'wider'"),
        ("--objectives.labels.teacher=wider", r"labels: cross-entropy learns from the labels.*pseudo-labels"),
        ("--objectives.labels=null --objectives.aux=null --objectives.band=null", r"nothing that the widest width"),
        ("--loss.kl=3", r"unknown option --loss\.kl"),
        ("--trainer.seed=4294967296", r"--trainer\.seed 4294967296 is out of range"),
        ("--trainer.ema=1", r"--trainer\.ema"),
        ("--widths=[]", r"widths is empty"),
        ("--calibrate=[0.1]", r"calibrate has 0\.1.*0\.25 to 1"),
        ("--objectives.kl=null", r"teachers\.wider teaches nothing.*--teachers\.wider=null"),
        ("--objectives.kl.weight=0", r"teachers\.wider teaches nothing"),
        ("--teachers.wider=null", r"objectives\.kl learns from 'wider'.*--objectives\.kl=null"),
        ("--objectives.kl.teacher=null --teachers.wider=null", r"objectives\.kl: kl needs a teacher"),
        ("--teachers.wider.kind=frozen", r"no teachers\.wider\.bundle; give the path of a model file"),
        ("--teachers.wider.kind=ema --teachers.wider.width=0.3", r"wider\.width 0\.3 is not among the widths"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("slimseg", override.split())


@pytest.mark.parametrize("width", ["0", "-1", "1.5"])
def test_widths_outside_their_range(width: str) -> None:
    with pytest.raises(WidthError, match=r"outside \(0, 1\]"):
        load_recipe("slimseg", [f"--widths=[1,{width}]"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainer: {epoch: 3}", r"trainer: unknown key 'epoch'\. Did you mean 'epochs'"),
        ("trainers: {}", r"unknown key 'trainers'\. Did you mean 'trainer'"),
        ("trainer: 3", r"'trainer' must be a section"),
        ("- 1", r"must be a mapping"),
        ("loss: {kl: 3}", r"mine\.yaml: unknown key 'loss'"),
        (
            "objectives: {labels: {loss: cross-entropi}}",
            r"'cross-entropi' does not exist\. Did you mean",
        ),
        ("a: [", r"no valid YAML"),
    ],
)
def test_bad_recipe_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


@pytest.mark.parametrize("kind", [*LOSSES.values(), *TEACHERS.values()], ids=lambda kind: kind.__name__)
def test_every_argument_of_a_loss_and_of_a_teacher_is_of_its_type(kind: type) -> None:
    section, key = ("teachers", "kind") if issubclass(kind, TeacherConfig) else ("objectives", "loss")
    name = kind.kind if issubclass(kind, TeacherConfig) else kind.name
    for item in fields(kind):
        bad = "-1" if isinstance(item.default, (int, float)) else "[[]]"
        if item.name != "width":  # which is checked against those that are trained
            with pytest.raises(RecipeError, match=rf"{section}\.it\.{item.name}\b"):
                load_recipe("slimseg", [f"--{section}.it={{{key}: {name}, {item.name}: {bad}}}"])


def test_unknown_recipes() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'slimsge'\. Did you mean 'slimseg'"):
        recipe_yaml("slimsge")
    with pytest.raises(RecipeError, match=r"cannot read recipe absent\.yaml"):
        recipe_yaml("absent.yaml")


def test_recipes_made_in_python_are_checked_too() -> None:
    recipe = Recipe(**{**vars(Recipe()), "data": type(Recipe().data)(batch_size=0)})
    with pytest.raises(RecipeError, match=r"--data\.batch_size 0 is out of range; give at least 1"):
        check_recipe(recipe)


# --- what is built from one ------------------------------------------------------------------------------------------


def objectives_of(*overrides: str, name: str = "slimseg") -> dict[str, Objective]:
    recipe = tiny_recipe(*overrides, name=name)
    task = build_task(recipe, build_data(recipe))
    assert isinstance(task, SegmentationTask)
    return task.objectives


def test_an_objective_is_left_out_by_null_or_weight_zero() -> None:
    assert set(objectives_of("--objectives.aux=null", "--objectives.band.weight=0")) == {"labels", "kl"}


def test_deep_supervision_needs_a_head() -> None:
    assert "aux" in objectives_of() and "aux" not in objectives_of("--model.args={aux_head: false}")


def test_every_loss_on_labels_can_be_named() -> None:
    names = ("dice", "lovasz", "boundary-head")
    found = objectives_of(*(f"--objectives.my-{name}={{loss: {name}, weight: 0.3}}" for name in names))
    assert {name: found[f"my-{name}"].weight for name in names} == dict.fromkeys(names, 0.3)


def test_on_is_no_boolean(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = "teachers: {big: {kind: frozen, bundle: x}}\ndata: {unlabelled: rest}\n"
    path.write_text(f"{text}objectives: {{labels: {{loss: dice}}, kl: {{loss: kl, teacher: big, on: unlabelled}}}}")
    assert load_recipe(str(path)).objectives["kl"].streams == ("unlabelled",)


def test_a_loss_from_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class in one file, and YAML that names it: nothing else is needed for a new loss."""
    (tmp_path / "squared.py").write_text(
        """
from dataclasses import dataclass
from jsonargparse.typing import NonNegativeFloat
from litheseg.losses import Loss, StepContext

@dataclass(frozen=True)
class SquaredError(Loss, name="squared-error"):
    needs_teacher = True
    on = "all"
    margin: NonNegativeFloat = 0.0

    def _loss(self, context: StepContext):
        gap = context.output("logits") - context.teacher_output("logits")
        return (gap.abs() - self.margin).clamp_min(0).square().mean()
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("squared")
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
widths: [1, 0.5]
teachers: {wider: {kind: next-wider}}
objectives:
  labels: {loss: cross-entropy}
  near: {loss: squared-error, teacher: wider, weight: 2, margin: 0.01}
"""
    )
    try:
        train(load_recipe(str(path), [*ARGUMENTS, "--trainer.epochs=1"]), tmp_path / "run")
        assert "train/near@0.5" in (tmp_path / "run" / "metrics.csv").read_text()
        with pytest.raises(RecipeError, match=r"--objectives\.near\.margin -1 is out of range; give at least 0"):
            load_recipe(str(path), ["--objectives.near.margin=-1"])
    finally:
        del LOSSES["squared-error"]


def test_a_kind_of_teacher_from_another_file() -> None:
    @dataclass(frozen=True)
    class Narrowest(TeacherConfig, kind="next-wider-late"):
        within = True
        after: NonNegativeInt = 0

        def build(self, setting: Any) -> Teacher:
            return NextWider()

    try:
        overrides = ("--teachers.wider={kind: next-wider-late, after: 3}",)
        assert tiny_recipe(*overrides).teachers == {"wider": Narrowest(3)}
        assert "kl" in objectives_of(*overrides)
    finally:
        del TEACHERS["next-wider-late"]


def test_labels_can_be_taken_in_part() -> None:
    for text, count in (("1/4", 2), ("0.25", 2), ("3", 3)):
        data = build_data(tiny_recipe(f"--data.labelled={text}"))
        assert len(data._samples("train")) == count


def test_weights_to_start_from(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = build_elastic_model(recipe.model, recipe.widths, 11)
    assert available_widths(model) == (1.0, 0.5)
    save_file(model.state_dict(), tmp_path / "start.safetensors")
    torch.save(model.state_dict(), tmp_path / "start.pt")
    for name in ("start.safetensors", "start.pt"):
        config = tiny_recipe(f"--model.weights={tmp_path / name}")
        other = build_elastic_model(config.model, config.widths, 11)
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    for name in ("bad.pt", "absent.safetensors"):
        config = tiny_recipe(f"--model.weights={tmp_path / name}")
        with pytest.raises(ModelError, match=f"{name}: these weights cannot be loaded"):
            build_elastic_model(config.model, config.widths, 11)
