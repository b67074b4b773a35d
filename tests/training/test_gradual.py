"""Gradual grouping in a run: the schedule, what is logged, resuming, the safeguards, and what comes out."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from tiny_training import STEPS, act_at, same_weights, tiny_recipe, train_tiny, weights
from torch import nn

from litheseg.errors import LithesegError, ModelError, RecipeError, TrainingError
from litheseg.models import build_model
from litheseg.models.bundle import load_bundle
from litheseg.nn import set_width
from litheseg.nn.efficient import Efficient
from litheseg.nn.grouping import GradualConv2d, fade
from litheseg.training.config import GroupingConfig
from litheseg.training.convert import convert_run, cut_bundle
from litheseg.training.gradual import GradualGrouping, alpha_at, damage
from litheseg.training.horizon import Horizon

ONE = ("--widths=[1.0]", "--trainer.epochs=4")
GROUPED = ("--model.efficient.groups=4", "--model.efficient.where=body.0", "--model.efficient.shuffle=false")
RUN = (*ONE, *GROUPED)


def train(folder: Path, *overrides: str, resume: bool = False):
    """The gradual recipe on the tiny network."""
    return train_tiny(folder, *RUN, *overrides, name="gradual-grouping", resume=resume)


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", {0.25: 0.75, 0.5: 0.5, 0.75: 0.25}),
        ("cosine", {0.25: 0.5 + 0.5 * math.sqrt(0.5), 0.5: 0.5, 0.75: 0.5 - 0.5 * math.sqrt(0.5)}),
        ("exponential", {0.5: (0.1 - 0.01) / 0.99}),
        ("step", {0.1: 1.0, 0.25: 0.75, 0.3: 0.75, 0.5: 0.5, 0.9: 0.25}),
    ],
)
def test_shapes(shape: str, values: dict[float, float]) -> None:
    config = GroupingConfig(shape=shape, start=0.2, length=0.5)  # type: ignore[arg-type]
    for position, alpha in {-0.3: 1.0, 0.0: 1.0, 1.0: 0.0, 1.4: 0.0, **values}.items():
        stage, actual = alpha_at(config, 0.2 + 0.5 * position)
        assert stage == 0
        assert actual == pytest.approx(alpha, abs=1e-9)


def test_alpha_never_rises() -> None:
    for shape in ("linear", "cosine", "exponential", "step"):
        config = GroupingConfig(shape=shape)  # type: ignore[arg-type]
        values = [alpha_at(config, share / 1000)[1] for share in range(1000)]
        assert values == sorted(values, reverse=True)
        assert values[0] == 1.0 and values[-1] == 0.0


def test_stages_follow_one_another_with_a_pause() -> None:
    config = GroupingConfig(shape="linear", stages=(2, 4), start=0.1, length=0.2, hold=0.1)
    expected = {0.0: (0, 1), 0.2: (0, 0.5), 0.35: (0, 0), 0.5: (1, 0.5), 0.65: (1, 0), 0.8: (2, 0.5), 0.95: (2, 0)}
    for share, (stage, alpha) in expected.items():
        assert alpha_at(config, share) == (stage, pytest.approx(alpha, abs=1e-9))
    assert config.end == pytest.approx(0.9)


def test_one_shot_falls_at_once() -> None:
    config = GroupingConfig(shape="step", start=0.5, length=0.0)
    assert [alpha_at(config, share)[1] for share in (0.0, 0.49, 0.5, 0.9)] == [1.0, 1.0, 0.0, 0.0]


def test_a_run_ends_grouped(tmp_path: Path) -> None:
    result = train(tmp_path)
    bundle = load_bundle(result.bundle)
    assert bundle.header.architecture["efficient"]["groups"] == 4
    plain = bundle.plain(1.0)
    assert plain.body[0].groups == 4
    assert not any(isinstance(layer, GradualConv2d) for layer in plain.modules())
    assert bundle.state_dict["body.0.weight"].shape == (16, 4, 3, 3)
    target = build_model(
        "tiny", bundle.header.num_classes, efficient=Efficient(groups=4, shuffle=False, where="body.0")
    )
    own = [p for name, p in target.named_parameters() if not name.startswith("aux_head")]
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in own)


def test_what_is_logged(tmp_path: Path) -> None:
    train(tmp_path, "--grouping.shape=linear", "--grouping.start=0", "--grouping.length=0.5")
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["grouping/alpha"]]
    last_steps = [STEPS * epoch - 1 for epoch in (1, 2, 3, 4)]
    expected = [max(0.0, 1 - step / (0.5 * 4 * STEPS)) for step in last_steps]
    assert [float(row["grouping/alpha"]) for row in rows] == pytest.approx(expected)
    cut = [float(row["grouping/damage/body.0"]) for row in rows]
    assert 0 < cut[1] < cut[0] < 1 and cut[2:] == [0, 0]
    assert all(float(row["grouping/off_block_norm"]) > 0 for row in rows)


def test_damage_is_what_a_cut_takes_away() -> None:
    torch.manual_seed(0)
    layer = GradualConv2d(8, 4, 3, stages=(2,))
    fade(layer, 0, 0.3)
    weight = layer.weight.detach().double()
    grouped = weight.clone()
    grouped[:2, 4:] = 0
    grouped[2:, :4] = 0
    now = torch.where(grouped == 0, 0.3 * weight, weight)
    assert damage(layer.weight.detach(), layer.grouping) == pytest.approx(float((now - grouped).norm() / now.norm()))


@pytest.mark.parametrize("at", [5, 9])  # within the fall; after it
def test_resuming_in_mid_schedule_is_exact(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = (
        "--grouping.start=0.1",
        "--grouping.length=0.4",
        "--grouping.assignment=magnitude",
        "--grouping.refresh=2",
    )
    train(tmp_path / "whole", *schedule)

    def die(loss: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("litheseg.training.task.SegmentationTask.training_step", act_at(at, die))
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "broken", *schedule)
    train(tmp_path / "broken", *schedule, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("kind", ["project", "decay", "free"])
def test_what_keeps_fading_weights_small(kind: str) -> None:
    torch.manual_seed(0)
    layer = GradualConv2d(8, 8, 3, stages=(2,))
    inside = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()
    with torch.no_grad():
        layer.weight[~inside] *= 5
    before = layer.weight.detach().clone()
    fade(layer, 0, 0.5)
    config = GroupingConfig(shape="linear", off_block=kind, off_block_decay=0.25)  # type: ignore[arg-type]
    GradualGrouping(config, Horizon(100)).on_train_batch_end(None, layer, None, None, 0)  # type: ignore[arg-type]
    after = layer.weight.detach()
    assert torch.equal(after[inside], before[inside])
    size = {"project": before[inside].square().mean().sqrt(), "decay": 0.75 * before[~inside].square().mean().sqrt()}
    expected = size.get(kind, before[~inside].square().mean().sqrt())
    torch.testing.assert_close(after[~inside].square().mean().sqrt(), expected)
    torch.testing.assert_close(after[~inside] / before[~inside], (after / before)[~inside][:1].expand(32, 3, 3))


def test_gradual_and_slimmable_in_one_run(tmp_path: Path) -> None:
    taught = ("--teachers.wider.kind=next-wider", "--objectives.kl={loss: kl, teacher: wider}")
    result = train(tmp_path, "--widths=[1.0,0.5]", *taught, "--model.divisor=4")
    bundle = load_bundle(result.bundle)
    model = bundle.model()
    image = torch.rand(1, 3, 32, 32)
    for width, groups in ((1.0, 4), (0.5, 2)):
        set_width(model, width)
        small = bundle.plain(width)
        assert small.body[0].groups == groups
        with torch.no_grad():
            torch.testing.assert_close(small(image), model(image), rtol=1e-5, atol=1e-5)


def test_batch_norm_is_measured_when_alpha_reaches_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import litheseg.training.gradual as gradual

    seen: list[float] = []
    original = gradual.recalibrate

    def recalibrate(model: nn.Module, batches: object, widths: tuple[float, ...]) -> None:
        seen.append(next(layer for layer in model.modules() if isinstance(layer, GradualConv2d)).grouping.alpha)
        original(model, batches, widths)  # type: ignore[arg-type]

    monkeypatch.setattr(gradual, "recalibrate", recalibrate)
    train(tmp_path / "yes")
    assert seen == [0.0]
    train(tmp_path / "no", "--grouping.recalibrate=false")
    assert seen == [0.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--grouping.start=0.7", "--grouping.length=0.4"), "longer than the run.*below 1"),
        (("--grouping.stages=[2]", "--grouping.length=0.5"), "longer than the run"),
        (("--trainer.keep=best",), "keep best"),
        (("--trainer.early_stop=3",), "early_stop"),
        (("--grouping.assignment=magnitude", "--trainer.ema=0.9"), "relabels channels"),
        (("--grouping.steps=0",), "grouping.steps"),
    ],
)
def test_choices_that_do_not_fit(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(*RUN, *overrides, name="gradual-grouping")


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        (("--grouping.length=0.89", "--trainer.epochs=1"), RecipeError, "no step is left at alpha 0"),
        (("--model.efficient.groups=1",), ModelError, "grouped convolutions to end in"),
        (("--model.efficient.groups=5",), ModelError, r"'body.0': 5 groups do not divide its 16.*2, 4, 8, 16 would"),
        (("--model.efficient.where=neck",), ModelError, "'neck' matches no convolution"),
        (("--grouping.where=5x5",), ModelError, "'5x5' matches no convolution"),
    ],
)
def test_runs_that_cannot_begin(tmp_path: Path, overrides: tuple[str, ...], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        train(tmp_path, *overrides)


# --- conversion ------------------------------------------------------------------------------------------------------


def test_a_stopped_run_is_converted_once_alpha_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(loss: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("killed")

    for at, folder in ((5, "early"), (13, "late")):  # epochs of 4 steps: checkpoints after 4 and 12
        with monkeypatch.context() as patch:
            patch.setattr("litheseg.training.task.SegmentationTask.training_step", act_at(at, die))
            with pytest.raises(RuntimeError, match="killed"):
                train(tmp_path / folder)
    with pytest.raises(TrainingError, match=r"cannot be converted yet: alpha is 0\.\d+ .*0 from epoch 3 of 4"):
        convert_run(tmp_path / "early", tmp_path / "early.safetensors")
    scores = convert_run(tmp_path / "late", tmp_path / "late.safetensors")
    assert set(scores) == {1.0}
    assert load_bundle(tmp_path / "late.safetensors").plain(1.0).body[0].groups == 4
    with pytest.raises(LithesegError, match="exists already"):
        convert_run(tmp_path / "late", tmp_path / "late.safetensors")


def test_runs_that_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run with a checkpoint"):
        convert_run(tmp_path, tmp_path / "out.safetensors")
    train_tiny(tmp_path / "plain", "--trainer.epochs=1")
    with pytest.raises(TrainingError, match="not gradual"):
        convert_run(tmp_path / "plain", tmp_path / "out.safetensors")


@pytest.mark.parametrize("assignment", ["contiguous", "magnitude"])
def test_a_dense_model_is_cut(tmp_path: Path, assignment: str) -> None:
    dense = load_bundle(train_tiny(tmp_path, *ONE).bundle)
    efficient = Efficient(groups=2, shuffle=False, where="body.0")
    cut = cut_bundle(dense, tmp_path / "cut.safetensors", efficient, assignment=assignment)  # type: ignore[arg-type]
    old, new = dense.plain(1.0), cut.bundle.plain(1.0)
    assert new.body[0].groups == 2
    assert 0 < cut.kept["body.0"] < 1
    whole = old.body[0].weight.square().sum()
    share = float(new.body[0].weight.square().sum() / whole)
    assert share == pytest.approx(cut.kept["body.0"], rel=1e-5)
    if assignment == "contiguous":
        assert torch.equal(new.body[0].weight[:8], old.body[0].weight[:8, :8])
        assert torch.equal(new.body[0].weight[8:], old.body[0].weight[8:, 8:])
        assert torch.equal(new.stem[0].weight, old.stem[0].weight)
    else:
        blocks = old.body[0].weight[:8, :8].square().sum() + old.body[0].weight[8:, 8:].square().sum()
        assert share > float(blocks / whole)
    assert set(cut.bundle.header.metrics) == {"1"}
    with pytest.raises(ModelError, match="grouped already"):
        cut_bundle(cut.bundle, tmp_path / "again.safetensors", efficient)


def test_cuts_that_cannot_be(tmp_path: Path) -> None:
    dense = load_bundle(train_tiny(tmp_path, *ONE, "--trainer.epochs=1").bundle)
    with pytest.raises(ModelError, match="without shuffle"):
        cut_bundle(dense, tmp_path / "x.safetensors", Efficient(groups=2, where="body.0"))
    with pytest.raises(ModelError, match="3 groups do not divide"):
        cut_bundle(dense, tmp_path / "x.safetensors", Efficient(groups=3, shuffle=False, where="body.0"))
    assert not (tmp_path / "x.safetensors").exists()


def test_weights_are_those_of_the_run(tmp_path: Path) -> None:
    """What a run writes at its end is what `convert` makes of its last checkpoint."""
    train(tmp_path)
    convert_run(tmp_path, tmp_path / "again.safetensors")
    again = load_bundle(tmp_path / "again.safetensors").state_dict
    assert all(torch.equal(value, again[name]) for name, value in weights(tmp_path).items())
