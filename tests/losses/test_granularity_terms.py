"""The terms call the distillation losses on the right tensors, and mean the same however a batch is dealt out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from litheseg import losses
from litheseg.errors import ModelError
from litheseg.losses import StepContext

KINDS = (losses.ImageLevelTerm, losses.IntraClassTerm, losses.PairwiseTerm, losses.RegionLevelTerm)


@pytest.fixture
def context():
    torch.manual_seed(0)
    outputs = {"logits": torch.randn(3, 4, 12, 16), "features": torch.randn(3, 5, 6, 8)}
    teacher = {"logits": torch.randn(3, 4, 12, 16), "features": torch.randn(3, 7, 3, 4)}
    mask = torch.randint(0, 4, (3, 12, 16))
    mask[0, :4], mask[1, :, 5:], mask[2, 7:, :9] = 255, 255, 255
    return StepContext({name: value.requires_grad_() for name, value in outputs.items()}, teacher, mask)


def expected(context, logits="logits", features="features"):
    """Each term next to what its function gives for the named tensors of the teacher."""
    (x, f), mask, inside = context.outputs.values(), context.mask, context.mask != 255
    t, g = context.teacher[logits], context.teacher[features]
    return [
        (losses.ImageLevelTerm(), losses.image_level(x, t, inside)),
        (losses.IntraClassTerm(), losses.intra_class_variation(f, g, mask, 4)),
        (losses.PairwiseTerm(), losses.pairwise_similarity(f, g, 2, inside)),
        (losses.PairwiseTerm(3, "average"), losses.pairwise_similarity(f, g, 3, inside, pooling="average")),
        (losses.RegionLevelTerm(), losses.region_level(f, g, 7, inside)),
        (losses.RegionLevelTerm(grid=2), losses.region_level(f, g, 2, inside)),
    ]


def test_terms_equal_their_functions(context):
    assert {type(term) for term, _ in expected(context)} == set(KINDS)
    for term, value in expected(context):
        assert value > 0 and torch.equal(term(context), value), term


def test_what_the_teacher_made_of_the_mixed_image_comes_first(context):
    context.teacher["mixed_logits"] = torch.randn(3, 4, 12, 16)
    for term, value in expected(context, logits="mixed_logits"):
        assert torch.equal(term(context), value), term
    context.teacher["mixed_features"] = torch.randn(3, 7, 3, 4)
    for term, value in expected(context, "mixed_logits", "mixed_features"):
        assert torch.equal(term(context), value), term


@pytest.mark.parametrize("kind", KINDS)
def test_scale(context, kind):
    torch.testing.assert_close(kind(scale=3.0)(context), 3.0 * kind()(context))


@pytest.mark.parametrize("kind", KINDS)
def test_all_ignored(context, kind):
    value = kind()(replace(context, mask=torch.full_like(context.mask, 255)))
    value.backward()
    assert value.item() == 0
    assert all(x.grad is None or not x.grad.any() for x in context.outputs.values())


@pytest.mark.parametrize("kind", KINDS)
def test_missing_tensors(context, kind):
    assert kind.needs_teacher and kind()(replace(context, teacher=None)).item() == 0
    name = "logits" if kind is losses.ImageLevelTerm else "features"
    with pytest.raises(ModelError, match=f"the teacher gives no '{name}'"):
        kind()(replace(context, teacher={"aux": context.teacher["logits"]}))
    with pytest.raises(ModelError, match="the model gives no"):
        kind()(replace(context, outputs={"aux": context.outputs["logits"]}))


class Processes:
    """Two threads that stand for two processes: what `torch.distributed` does for a loss, without starting any."""

    def __init__(self):
        self._barrier, self._values = threading.Barrier(2, timeout=10), []

    def is_available(self):
        return True

    is_initialized = is_available

    def get_world_size(self):
        return 2

    def all_reduce(self, value):
        self._values.append(value.clone())
        self._barrier.wait()
        total = torch.stack(self._values).sum(0)
        if self._barrier.wait() == 0:
            self._values.clear()
        self._barrier.wait()
        value.copy_(total)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_loss_and_gradient_of_one(context, kind, monkeypatch):
    """Three images, of which one process has two; data-parallel training takes the mean of the gradients."""
    whole = kind()(context)
    whole.backward()

    def share(rows):
        outputs = {name: value.detach()[rows].requires_grad_() for name, value in context.outputs.items()}
        teacher = {name: value[rows] for name, value in context.teacher.items()}
        value = kind()(StepContext(outputs, teacher, context.mask[rows]))
        value.backward()
        return value.detach(), {name: value.grad for name, value in outputs.items()}

    monkeypatch.setattr("litheseg.losses.segmentation.dist", Processes())
    with ThreadPoolExecutor(2) as pool:
        (first, mine), (second, yours) = pool.map(share, (slice(0, 1), slice(1, 3)))
    torch.testing.assert_close(first, whole.detach())
    torch.testing.assert_close(second, whole.detach())
    for name, output in context.outputs.items():
        if output.grad is not None:
            torch.testing.assert_close(torch.cat((mine[name], yours[name])) / 2, output.grad)
