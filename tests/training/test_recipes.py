from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_training import tiny_recipe

from litheseg.errors import ModelError, RecipeError, WidthError
from litheseg.nn import available_widths
from litheseg.training import load_recipe, recipe_names
from litheseg.training.build import build_data, build_elastic_model, build_task
from litheseg.training.checks import check_recipe
from litheseg.training.config import Recipe
from litheseg.training.recipe import recipe_to_dict, recipe_yaml


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_comes_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    assert load_recipe(str(copy)) == recipe


def test_slimseg_is_what_the_paper_says() -> None:
    recipe = load_recipe("slimseg")
    assert recipe.widths.values == (1.0, 0.75, 0.5, 0.25)
    assert recipe.teacher.kind == "next-wider" and recipe.loss.kl > 0 and recipe.loss.hard_labels
    assert recipe.loss.boundary_band > 0


def test_overrides_are_typed() -> None:
    recipe = load_recipe("slimseg", ["--widths.values=[1,.5]", "--data.size", "[90,120]", "--optimizer.lr=3e-4"])
    assert recipe.widths.values == (1.0, 0.5)
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
        ("--teacher.kind=widset", r"teacher\.kind"),
        ("--trainer.epochs=0", r"--trainer\.epochs 0 is out of range; give at least 1"),
        ("--optimizer.lr=0", r"--optimizer\.lr 0\.0 is out of range; give above 0"),
        ("--optimizer.lr=nan", r"optimizer\.lr"),
        ("--optimizer.warmup=1", r"--optimizer\.warmup 1\.0 .*at least 0 and below 1"),
        ("--loss.ohem_threshold=2", r"--loss\.ohem_threshold 2\.0 .*above 0 and at most 1"),
        ("--loss.class_weight_offset=1", r"class_weight_offset"),
        ("--trainer.ema=1", r"--trainer\.ema"),
        ("--widths.values=[]", r"widths\.values is empty"),
        ("--widths.calibrate=[0.1]", r"widths\.calibrate has 0\.1.*0\.25 to 1"),
        ("--loss.kl=0", r"no term learns from it; set --loss\.kl 1"),
        ("--teacher.kind=none", r"loss\.kl needs a teacher; set --teacher\.kind"),
        ("--teacher.kind=frozen", r"teacher\.bundle names no model"),
        ("--teacher.kind=ema --teacher.width=0.3", r"teacher\.width 0\.3 is not among the widths"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("slimseg", override.split())


@pytest.mark.parametrize("width", ["0", "-1", "1.5"])
def test_widths_outside_their_range(width: str) -> None:
    with pytest.raises(WidthError, match=r"outside \(0, 1\]"):
        load_recipe("slimseg", [f"--widths.values=[1,{width}]"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainer: {epoch: 3}", r"trainer: unknown key 'epoch'\. Did you mean 'epochs'"),
        ("trainers: {}", r"unknown key 'trainers'\. Did you mean 'trainer'"),
        ("trainer: 3", r"'trainer' must be a section"),
        ("- 1", r"must be a mapping"),
        ("a: [", r"no valid YAML"),
    ],
)
def test_bad_recipe_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_unknown_recipes() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'slimsge'\. Did you mean 'slimseg'"):
        recipe_yaml("slimsge")
    with pytest.raises(RecipeError, match=r"cannot read recipe absent\.yaml"):
        recipe_yaml("absent.yaml")


def test_recipes_made_in_python_are_checked_too() -> None:
    recipe = Recipe(**{**vars(Recipe()), "data": type(Recipe().data)(batch_size=0)})
    with pytest.raises(RecipeError, match=r"--data\.batch_size 0"):
        check_recipe(recipe)


# --- what is built from one ------------------------------------------------------------------------------------------


def terms_of(*overrides: str) -> dict[str, Any]:
    recipe = tiny_recipe(*overrides)
    return dict(build_task(recipe, build_data(recipe)).terms.items())


def test_a_weight_of_zero_leaves_a_term_out() -> None:
    assert set(terms_of("--loss.aux=0", "--loss.boundary_band=0")) == {"main", "kl"}


def test_every_term_can_be_switched_on() -> None:
    names = ("dice", "lovasz", "boundary_head", "channel_wise")
    terms = terms_of("--loss.main=ohem", "--loss.class_weights=median", *(f"--loss.{name}=0.3" for name in names))
    assert set(terms) == {"main", "aux", "kl", "boundary_band", *names}
    assert type(terms["main"]).__name__ == "OhemTerm" and terms["main"].class_weights.shape == (11,)
    assert all(terms[name].scale == 0.3 for name in names)


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
