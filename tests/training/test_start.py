"""Training that begins with a trained model, at its own and other widths, for its own and other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import ARGUMENTS

from litheseg.cli import main
from litheseg.errors import ModelError
from litheseg.masks.classes import Classes
from litheseg.models import SegmentationModel, build_model
from litheseg.models.bundle import Bundle, BundleHeader, load_bundle, save_bundle
from litheseg.nn import set_width, slim
from litheseg.training.build import build_elastic_model
from litheseg.training.config import ModelConfig
from litheseg.training.recipe import load_recipe

CLASSES = Classes(("sky", "road", "car"), ((70, 130, 180), (128, 64, 128), (0, 0, 142)))
ARGS = {"base": 8, "head_channels": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(3)
    model = slim(build_model("ddrnet", 3, **ARGS), (1.0, 0.5), divisor=4)
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # each width has batch norms of its own
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    architecture = {"name": "ddrnet", "args": ARGS}
    header = BundleHeader(architecture, CLASSES, widths=(1.0, 0.5), divisor=4, size=(32, 32))
    return save_bundle(path, model, header)  # type: ignore[arg-type]


def started(trained: Bundle, widths: tuple[float, ...], classes: int, **changes: object) -> SegmentationModel:
    fields = {"name": "ddrnet", "args": {**ARGS, "aux_head": True}, "weights": str(trained.path), "divisor": 4}
    return build_elastic_model(ModelConfig(**{**fields, **changes}), widths, classes).eval()  # type: ignore[arg-type]


def test_it_computes_what_the_trained_model_does(trained: Bundle) -> None:
    network, image = started(trained, (1.0, 0.5), 3), torch.randn(1, 3, 32, 48)
    for width in (1.0, 0.5):
        set_width(network, width)
        torch.testing.assert_close(network(image), trained.plain(width)(image))


def test_other_classes_begin_anew_and_all_else_does_not(trained: Bundle) -> None:
    state, given = started(trained, (1.0, 0.5), 5).state_dict(), trained.state_dict
    fresh = {name for name, value in state.items() if name not in given or not torch.equal(value, given[name])}
    last = {name for name in given if given[name].shape != state[name].shape}
    assert last and fresh == last | {name for name in state if name.startswith("aux_head.")}


def test_other_widths_begin_with_their_neighbours(trained: Bundle) -> None:
    state, given = started(trained, (1.0, 0.75, 0.25), 3).state_dict(), trained.state_dict
    names = [name for name in given if name.endswith("norms.0.running_var")]
    name = next(name for name in names if len(given[name]) == 32).removesuffix("0.running_var")
    wide, half = given[f"{name}0.running_var"], given[f"{name}1.running_var"]
    between, narrow = state[f"{name}1.running_var"], state[f"{name}2.running_var"]
    torch.testing.assert_close(between[: len(half)], (wide[: len(half)] + half) / 2)
    torch.testing.assert_close(between[len(half) :], wide[len(half) : len(between)])
    assert len(narrow) < len(half) and torch.equal(narrow, half[: len(narrow)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": {**ARGS, "head_channels": 8}}, "has other channels at width 1; leave out --model options"),
        ({"args": {**ARGS, "rep_blocks": True}}, "has the shape .* here, and no such weight there"),
        ({"name": "erfnet", "args": {}}, "no such weight there"),
        ({"divisor": 8}, r"has other channels at width 0\.5"),
    ],
)
def test_another_network(trained: Bundle, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.safetensors is another network: .*{message}"):
        started(trained, (1.0, 0.5), 3, **changes)


def test_a_wider_network(trained: Bundle, tmp_path: Path) -> None:
    narrow = slim(build_model("ddrnet", 3, **ARGS), (0.5,), divisor=4)
    header = BundleHeader({"name": "ddrnet", "args": ARGS}, CLASSES, widths=(0.5,), divisor=4, size=(32, 32))
    bundle = save_bundle(tmp_path / "narrow.safetensors", narrow, header)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"narrow\.safetensors has no width 1 or wider to start from"):
        started(bundle, (1.0, 0.5), 3)


def test_a_recipe_takes_the_network_of_the_model(trained: Bundle) -> None:
    recipe = load_recipe("slimseg", ["--model.args.aux_head=true"], init=str(trained.path))
    assert (recipe.model.name, recipe.model.divisor, recipe.model.weights) == ("ddrnet", 4, str(trained.path))
    assert recipe.model.args == {**ARGS, "aux_head": True} and len(recipe.widths) == 4


def test_the_command(trained: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [word for word in ARGUMENTS if not word.startswith(("--model", "--trainer.epochs"))]
    words = [*options, "--trainer.epochs=1", "--optimizer.lr=1e-9", "--optimizer.weight_decay=0"]
    assert main(["train", "--init", str(trained.path), *words, "--output", str(tmp_path / "run")]) == 0
    bundle = load_bundle(tmp_path / "run" / "model.safetensors")
    assert bundle.header.architecture["name"] == "ddrnet" and bundle.header.num_classes > 3
    weights = {name: value for name, value in bundle.state_dict.items() if value.ndim == 4}
    other = [name for name, value in weights.items() if value.shape != trained.state_dict[name].shape]
    assert len(other) == 1, "the last layer"
    assert all(
        torch.allclose(weights[name], trained.state_dict[name], atol=1e-6) for name in weights if name not in other
    )
