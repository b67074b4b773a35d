"""Losses that recipes name call the pure functions on the right tensors, and fail by name where a tensor is missing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import pytest
import torch

from litheseg import losses
from litheseg.errors import LithesegError, ModelError
from litheseg.losses import LOSSES, StepContext
from litheseg.losses.boundary import BoundaryBand, BoundaryHead, band_of
from litheseg.losses.consistency import PseudoBand, PseudoCrossEntropy
from litheseg.losses.distillation import KL, ChannelWise, ImageLevel, IntraClass, Pairwise, RegionLevel
from litheseg.losses.supervised import CrossEntropy, DeepSupervision, Dice, Lovasz, Ohem

KINDS = [kind for kind in LOSSES.values() if kind.__module__.startswith("litheseg.")]
TAUGHT = [kind for kind in KINDS if kind.needs_teacher]
OF_FEATURES = [RegionLevel, Pairwise, IntraClass]


@pytest.fixture
def context():
    torch.manual_seed(0)
    sizes = {"logits": (4, 12, 16), "aux": (4, 12, 16), "boundary": (1, 12, 16), "features": (5, 6, 8)}
    outputs = {name: torch.randn(3, *size).requires_grad_() for name, size in sizes.items()}
    teacher = {"logits": torch.randn(3, 4, 12, 16), "features": torch.randn(3, 7, 3, 4)}
    mask = torch.randint(0, 4, (3, 12, 16))
    mask[0, :4], mask[1, :, 5:], mask[2, 7:, :9] = 255, 255, 255
    return StepContext(outputs, mask, teacher, class_weights={"log": torch.tensor([1.0, 2.0, 3.0, 4.0])})


def expected(context):
    """Each loss next to what its function gives."""
    (x, aux, border, f), mask, inside = context.outputs.values(), context.mask, context.mask != 255
    t, g, w = context.teacher["logits"], context.teacher["features"], context.class_weights["log"]
    labels, sure = losses.pseudo_labels(t, mask), losses.pseudo_labels(t, mask, 0.5)
    share = (sure != 255).sum() / inside.sum()
    band = losses.boundary_mask
    return [
        (CrossEntropy(), losses.cross_entropy(x, mask, w)),
        (CrossEntropy(class_weights="none"), losses.cross_entropy(x, mask)),
        (Ohem(threshold=0.3), losses.ohem_cross_entropy(x, mask, w, 0.3)),
        (Dice(), losses.dice_loss(x, mask)),
        (Lovasz(), losses.lovasz_softmax(x, mask)),
        (DeepSupervision(), losses.cross_entropy(aux, mask, w)),
        (BoundaryBand(radius=0), losses.cross_entropy(x, mask, w, where=band(mask))),
        (BoundaryHead(radius=0), losses.boundary_head_loss(border, mask, 0)),
        (KL(), losses.kl_divergence(x, t, mask)),
        (KL(temperature=2.0), losses.kl_divergence(x, t, mask, 2.0)),
        (ChannelWise(temperature=3.0), losses.channel_wise_distillation(x, t, 3.0, mask)),
        (ImageLevel(), losses.image_level(x, t, inside)),
        (RegionLevel(grid=2), losses.region_level(f, g, 2, inside)),
        (RegionLevel(), losses.region_level(f, g, 7, inside)),
        (Pairwise(), losses.pairwise_similarity(f, g, 2, inside)),
        (IntraClass(), losses.intra_class_variation(f, g, mask, 4)),
        (PseudoCrossEntropy(), losses.cross_entropy(x, labels, w)),
        (PseudoCrossEntropy(confidence=0.5), share * losses.cross_entropy(x, sure, w)),
        (PseudoBand(radius=1), losses.cross_entropy(x, labels, w, where=band(labels, 1))),
        (PseudoBand(confidence=0.5, radius=1), share * losses.cross_entropy(x, sure, w, where=band(sure, 1))),
    ]


def test_losses_equal_their_functions(context):
    assert {type(loss) for loss, _ in expected(context)} == set(KINDS)
    for loss, value in expected(context):
        assert value > 0, loss
        torch.testing.assert_close(loss(context), value, msg=lambda text, loss=loss: f"{loss}: {text}")


def test_on_unlabelled_images_classes_are_the_teachers(context):
    labels = losses.pseudo_labels(context.teacher["logits"], context.mask)
    value = losses.intra_class_variation(context.outputs["features"], context.teacher["features"], labels, 4)
    assert torch.equal(IntraClass()(replace(context, labelled=False)), value)


@pytest.mark.parametrize("kind", KINDS)
def test_all_ignored(context, kind):
    leaves = list(context.outputs.values())
    value = kind()(replace(context, mask=torch.full_like(context.mask, 255)))
    value.backward()
    assert value.item() == 0
    assert all(x.grad is None or not x.grad.any() for x in leaves)


@pytest.mark.parametrize("kind", TAUGHT)
def test_missing_tensors(context, kind):
    name = "features" if kind in OF_FEATURES else "logits"
    with pytest.raises(ModelError, match=f"the teacher gives no '{name}'"):
        kind()(replace(context, teacher={"aux": context.teacher["logits"]}))
    with pytest.raises(ModelError, match="the model gives no"):
        kind()(replace(context, outputs={"aux": context.outputs["logits"]}))


def test_a_missing_head_is_named(context):
    with pytest.raises(ModelError, match="gives no 'boundary'"):
        BoundaryHead()(replace(context, outputs={"logits": context.outputs["logits"]}))


def test_every_argument_has_a_description():
    for kind in KINDS:
        for item in fields(kind):
            assert f"    {item.name}: " in (kind.__doc__ or ""), f"{kind.__name__}.{item.name}"


def test_a_band_is_found_once_for_all_widths(context):
    first = band_of(context, context.mask, 2)
    assert band_of(replace(context, outputs={}), context.mask, 2) is first
    assert band_of(context, context.mask, 1) is not first
    assert torch.equal(first, losses.boundary_mask(context.mask, 2))


def test_new_labels_need_new_bands(context):
    band_of(context, context.mask, 2)
    assert not band_of(context, torch.zeros_like(context.mask), 2).any()


def test_shared_log_probabilities_give_the_same_kl(context):
    value = losses.kl_divergence(context.outputs["logits"], context.teacher["logits"], context.mask)
    assert torch.allclose(KL()(context), value)
    wide = replace(context, outputs=context.teacher, teacher=None)
    CrossEntropy()(wide)  # what the wider width computed is what the narrower one is taught
    assert torch.allclose(KL()(context), value)
    assert not context.teacher_log_probabilities().requires_grad


def test_pixel_losses_are_shared_by_losses_but_not_by_labels(context):
    assert context.pixel_losses(context.mask) is context.pixel_losses(context.mask)
    other = torch.zeros_like(context.mask)
    assert torch.equal(context.pixel_losses(other), replace(context, mask=other).pixel_losses(other))


def test_teacher_of_other_classes(context):
    other = replace(context, teacher={"logits": torch.randn(3, 5, 12, 16)})
    for loss in (KL(), KL(temperature=2.0), ChannelWise()):
        with pytest.raises(LithesegError, match="same classes"):
            loss(other)


def test_deep_supervision_at_its_own_size_learns_from_the_nearest_labels(context):
    small = torch.randn(3, 4, 4, 16)
    value = DeepSupervision()(replace(context, outputs={"aux": small}))
    weight = context.class_weights["log"]
    assert torch.allclose(value, losses.cross_entropy(small, context.mask[:, 1::3], weight))  # the middle of three rows


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


@pytest.mark.parametrize("kind", [ImageLevel, IntraClass, Pairwise, RegionLevel])
def test_two_processes_give_the_loss_and_gradient_of_one(context, kind, monkeypatch):
    """Three images, of which one process has two; data-parallel training takes the mean of the gradients."""
    whole = kind()(context)
    whole.backward()

    def share(rows):
        outputs = {name: value.detach()[rows].requires_grad_() for name, value in context.outputs.items()}
        teacher = {name: value[rows] for name, value in context.teacher.items()}
        value = kind()(StepContext(outputs, context.mask[rows], teacher))
        value.backward()
        return value.detach(), {name: value.grad for name, value in outputs.items()}

    monkeypatch.setattr("litheseg.losses.loss.dist", Processes())
    with ThreadPoolExecutor(2) as pool:
        (first, mine), (second, yours) = pool.map(share, (slice(0, 1), slice(1, 3)))
    torch.testing.assert_close(first, whole.detach())
    torch.testing.assert_close(second, whole.detach())
    for name, output in context.outputs.items():
        if output.grad is not None:
            torch.testing.assert_close(torch.cat((mine[name], yours[name])) / 2, output.grad)
