"""Which memory format a network is trained in, and that its gradients are right there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from litheseg.models import build_model
from litheseg.nn import slim
from litheseg.nn.grouping import densify
from litheseg.training.config import TrainerConfig
from litheseg.training.layout import lay_out


def _separable(groups: int = 32, dilation: int = 4) -> nn.Sequential:
    dilated = nn.Conv2d(32, 32, 3, padding=dilation, dilation=dilation, groups=groups)
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), dilated, nn.ReLU(), nn.Conv2d(32, 5, 1))


def _format(model: nn.Module, precision: str, accelerator: str = "cpu") -> torch.memory_format:
    lay_out(model, TrainerConfig(precision=precision, accelerator=accelerator))
    weight = next(value for value in model.parameters() if value.ndim == 4 and min(value.shape) > 1)
    return torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


@pytest.mark.parametrize(
    ("precision", "accelerator", "expected"),
    [
        ("32-true", "cpu", torch.channels_last),
        ("bf16-mixed", "cpu", torch.contiguous_format),
        ("bf16-mixed", "gpu", torch.channels_last),
    ],
)
def test_dilated_groups_in_bfloat16_on_a_cpu_keep_the_usual_format(
    precision: str, accelerator: str, expected: torch.memory_format
) -> None:
    model = build_model("erfnet-d*", num_classes=5)
    assert _format(model, precision, accelerator) == expected


@pytest.mark.parametrize("elastic", [False, True])
def test_layers_on_their_way_to_dilated_groups_count_as_such(elastic: bool) -> None:
    model = _separable(groups=8)
    densify(model, ["1"])
    if elastic:
        model = slim(model, (1.0, 0.5), divisor=1)
    assert _format(model, "bf16-mixed") == torch.contiguous_format


def test_dense_dilated_and_undilated_grouped_layers_stay_in_channels_last() -> None:
    assert _format(_separable(groups=1), "bf16-mixed") == torch.channels_last
    assert _format(_separable(dilation=1), "bf16-mixed") == torch.channels_last


@pytest.mark.parametrize("groups", [1, 4, 16, 32])
def test_gradients_in_bfloat16_are_those_of_float64(groups: int) -> None:
    """In channels_last some were infinite, on CPUs with AVX-512: a run ended in nan within four epochs."""
    torch.manual_seed(0)
    model = _separable(groups)
    exact = copy.deepcopy(model).double()
    image, pull = torch.randn(2, 3, 23, 30), torch.randn(2, 5, 23, 30)
    exact(image.double()).backward(pull.double())
    lay_out(model, TrainerConfig(precision="bf16-mixed", accelerator="cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(image)
    logits.float().backward(pull)
    for (name, value), true in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = (value.grad.double() - true.grad).norm() / true.grad.norm()
        assert error < 0.15, f"{name} is off by {error:.3g}"
