from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_training import tiny

from litheseg.errors import RecipeError
from litheseg.models.segmenter import segmenter
from litheseg.nn import slim
from litheseg.training.config import OptimizerConfig
from litheseg.training.optimization import build_optimizer, schedule


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_and_biases_do_not_decay(name: Any) -> None:
    model = slim(tiny(4), (1.0, 0.5))
    optimizer = build_optimizer(model, OptimizerConfig(name=name, weight_decay=0.1))
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decaying}
    assert names == {"stem.0.weight", "body.0.weight", "classifier.weight", "aux_head.weight"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_weights_without_gradient_are_left_out() -> None:
    model = tiny(4)
    model.stem.requires_grad_(False)
    inside = {id(p) for group in build_optimizer(model, OptimizerConfig()).param_groups for p in group["params"]}
    assert inside == {id(p) for p in model.parameters() if p.requires_grad}


def test_warm_up_then_poly() -> None:
    factor = schedule(OptimizerConfig(schedule="poly", warmup=0.1), 100)
    assert [factor(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.5**0.9)
    assert 0 < factor(99) < 0.03 and factor(100) == 0


def test_cosine_constant_and_one_cycle() -> None:
    cosine = schedule(OptimizerConfig(schedule="cosine", warmup=0.0), 100)
    assert [cosine(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])
    assert cosine(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    constant = schedule(OptimizerConfig(schedule="constant", warmup=0.0), 100)
    assert {constant(step) for step in range(100)} == {1.0}
    cycle = schedule(OptimizerConfig(schedule="one-cycle"), 100)
    rates = [cycle(step) for step in range(100)]
    assert rates.index(max(rates)) == 29 and rates[:30] == sorted(rates[:30]) and rates[30:] == sorted(rates[30:])[::-1]


def test_a_run_of_one_step_still_learns() -> None:
    for name in ("poly", "cosine", "one-cycle", "constant"):
        assert schedule(OptimizerConfig(schedule=name), 1)(0) > 0  # type: ignore[arg-type]


def test_momentum_of_both() -> None:
    model = torch.nn.Linear(2, 2)
    sgd = build_optimizer(model, OptimizerConfig(name="sgd", momentum=0.0))
    assert not sgd.param_groups[0]["nesterov"]
    assert build_optimizer(model, OptimizerConfig(momentum=0.8)).param_groups[0]["betas"] == (0.8, 0.999)


def test_an_encoder_learns_at_a_rate_of_its_own() -> None:
    model = slim(segmenter(3, encoder="test_efficientnet", pretrained="none", channels=16), (1.0, 0.5))
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1, encoder=0.01, weight_decay=0.1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.001 if name.startswith("encoder.") else 0.1)
        assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)
    model.pretrained_encoder = True  # as its factory says where it found weights
    rates = {
        len(group["params"]): group["lr"] for group in build_optimizer(model, OptimizerConfig(decoder=2)).param_groups
    }
    assert sorted(set(rates.values())) == [pytest.approx(0.001), pytest.approx(0.002)]
    with pytest.raises(RecipeError, match=r"optimizer\.encoder: Tiny names no encoder.*leave it at 1"):
        build_optimizer(tiny(4), OptimizerConfig(encoder=0.1))
