"""Terms call the losses on the right tensors, and fail by name where a tensor is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from litheseg import losses
from litheseg.errors import LithesegError, ModelError, TrainingError
from litheseg.losses import StepContext

KINDS = (
    losses.AuxTerm,
    losses.BoundaryBandTerm,
    losses.BoundaryHeadTerm,
    losses.ChannelWiseTerm,
    losses.CrossEntropyTerm,
    losses.DiceTerm,
    losses.KLTerm,
    losses.LovaszTerm,
    losses.OhemTerm,
)


@pytest.fixture
def context():
    torch.manual_seed(0)
    outputs = {name: torch.randn(2, k, 6, 7, requires_grad=True) for name, k in (("logits", 3), ("aux", 3))}
    outputs["boundary"] = torch.randn(2, 1, 6, 7, requires_grad=True)
    mask = torch.randint(0, 3, (2, 6, 7))
    mask[:, :2] = 255
    return StepContext(outputs, {"logits": torch.randn(2, 3, 6, 7)}, mask, 0.5)


def test_terms_equal_their_functions(context):
    x, t, m, w = context.outputs, context.teacher, context.mask, torch.tensor([1.0, 2.0, 3.0])
    expected = {
        "ce": (losses.CrossEntropyTerm(w), losses.cross_entropy(x["logits"], m, w)),
        "ohem": (losses.OhemTerm(w, 0.3, 4), losses.ohem_cross_entropy(x["logits"], m, w, 0.3, 4)),
        "dice": (losses.DiceTerm(), losses.dice_loss(x["logits"], m)),
        "lovasz": (losses.LovaszTerm(), losses.lovasz_softmax(x["logits"], m)),
        "aux": (losses.AuxTerm(w), 0.4 * losses.cross_entropy(x["aux"], m, w)),
        "band": (losses.BoundaryBandTerm(w, 0), losses.band_weighted_cross_entropy(x["logits"], m, w, 0)),
        "boundary": (losses.BoundaryHeadTerm(0), losses.boundary_head_loss(x["boundary"], m, 0)),
        "kl": (losses.KLTerm(2.0), losses.kl_divergence(x["logits"], t["logits"], m, 2.0)),
        "cwd": (losses.ChannelWiseTerm(3.0), losses.channel_wise_distillation(x["logits"], t["logits"], 3.0, m)),
    }
    assert {type(term) for term, _ in expected.values()} == set(KINDS)
    for name, (term, value) in expected.items():
        assert torch.allclose(term(context), value), name


@pytest.mark.parametrize("term", KINDS)
def test_scale(context, term):
    assert torch.allclose(term(scale=3.0)(context), 3.0 * term(scale=1.0)(context))
    assert term(scale=0.0)(context).item() == 0


@pytest.mark.parametrize("term", KINDS)
def test_all_ignored(context, term):
    empty = replace(context, mask=torch.full_like(context.mask, 255))
    leaves = list(context.outputs.values())
    value = term()(empty)
    value.backward()
    assert value.item() == 0
    assert all(x.grad is None or not x.grad.any() for x in leaves)


def test_no_teacher(context):
    alone = replace(context, teacher=None)
    assert losses.KLTerm()(alone).item() == 0 and losses.ChannelWiseTerm()(alone).item() == 0
    assert {kind for kind in KINDS if kind.needs_teacher} == {losses.KLTerm, losses.ChannelWiseTerm}
    with pytest.raises(TrainingError, match="no teacher"):
        alone.taught("logits")


def test_missing_output(context):
    with pytest.raises(ModelError, match="gives no 'boundary'"):
        losses.BoundaryHeadTerm()(replace(context, outputs={"logits": context.outputs["logits"]}))


def test_band_is_computed_once_for_all_widths(context):
    first = context.band(2)
    assert replace(context, width=0.25).band(2) is first
    assert context.band(1) is not first and torch.equal(first, losses.boundary_mask(context.mask, 2))


def test_new_mask_needs_new_bands(context):
    context.band(2)
    other = replace(context, mask=torch.zeros_like(context.mask))
    assert not other.band(2).any()


def test_class_weights_follow_the_model_but_stay_out_of_checkpoints():
    term = losses.CrossEntropyTerm(torch.ones(3))
    assert not term.state_dict() and term.to(torch.float64).class_weights.dtype == torch.float64


def test_shared_log_probabilities_give_the_same_kl(context):
    expected = losses.kl_divergence(context.outputs["logits"], context.teacher["logits"], context.mask)
    assert torch.allclose(losses.KLTerm(1.0)(context), expected)
    wide = replace(context, outputs=context.teacher, teacher=None, width=1.0)
    losses.CrossEntropyTerm()(wide)  # what the wider width computed is what the narrower one is taught
    assert torch.allclose(losses.KLTerm(1.0)(context), expected)
    assert not context.taught_log_probabilities().requires_grad


def test_pixel_losses_are_shared_by_terms_but_not_by_masks(context):
    assert context.pixel_losses() is context.pixel_losses()
    other = replace(context, mask=torch.zeros_like(context.mask))
    expected = losses.cross_entropy(context.outputs["logits"], other.mask)
    assert torch.allclose(losses.CrossEntropyTerm()(other), expected)


def test_teacher_of_other_classes(context):
    other = replace(context, teacher={"logits": torch.randn(2, 5, 6, 7)})
    for term in (losses.KLTerm(1.0), losses.KLTerm(2.0), losses.ChannelWiseTerm()):
        with pytest.raises(LithesegError, match="same classes"):
            term(other)


def test_aux_at_its_own_size_learns_from_the_nearest_labels(context):
    small = torch.randn(2, 3, 2, 7)
    labels = context.mask[:, 1::3]  # the middle of every three rows
    term = losses.AuxTerm(scale=1.0)(replace(context, outputs={"aux": small}))
    assert torch.allclose(term, losses.cross_entropy(small, labels))
