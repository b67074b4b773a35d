"""Steps with unlabelled images, against loops in plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_training import NO_TRAINER, tiny
from torch import Tensor

from litheseg.errors import ModelError
from litheseg.losses import pseudo_labels
from litheseg.losses.consistency import PseudoBand, PseudoCrossEntropy
from litheseg.losses.distillation import KL, ImageLevel, RegionLevel
from litheseg.losses.supervised import CrossEntropy
from litheseg.models import SegmentationModel
from litheseg.nn import get_width, slim
from litheseg.training.horizon import Horizon
from litheseg.training.recipe import Objective
from litheseg.training.streams import COMPLEMENTARY, LABELLED, MIXED, PERTURBED, UNLABELLED, FeatureDropout, Step
from litheseg.training.task import CrossPseudoTask, SegmentationTask
from litheseg.training.teachers import Ema, Frozen, Live, NextWider

pytestmark = NO_TRAINER

CLASSES, SIZE = 5, (12, 18)


def network(seed: int) -> SegmentationModel:
    torch.manual_seed(seed)
    return tiny(CLASSES, dropout=0.0)


def batch_of(views: int = 1, ranks: int = 1) -> dict[str, Tensor]:
    """Two labelled and two unlabelled images; `ranks` > 1: a third one is there as the last one's partner only."""
    generator = torch.Generator().manual_seed(7)
    mask = torch.randint(0, CLASSES, (2, *SIZE), generator=generator)
    mask[:, :2] = 255
    rows = 2 if ranks == 1 else 3
    partner = torch.tensor([1, 0] if ranks == 1 else [1, 2])
    weak = torch.randn(rows, 3, *SIZE, generator=generator)
    inside = torch.ones(rows, *SIZE, dtype=torch.bool)
    inside[0, :, 15:] = False
    cut = torch.zeros(views, 2, *SIZE, dtype=torch.bool)
    cut[0, :, 3:9, 2:11] = True
    if views == 2:
        cut[1, 0, 5:, :7] = True
    mixed = torch.stack([torch.where(view[:, None], weak[partner], weak[:2]) for view in cut])
    image = torch.randn(2, 3, *SIZE, generator=generator)
    return {
        "image": image,
        "mask": mask,
        "weak": weak,
        "inside": inside,
        "mixed": mixed,
        "cut": cut,
        "partner": partner,
    }


def full(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


@torch.no_grad()
def answers(model: SegmentationModel, image: Tensor) -> dict[str, Tensor]:
    """What a teacher makes of images, by hand."""
    outputs = copy.deepcopy(model).eval().outputs(image)
    return {"logits": full(outputs["logits"]), "features": outputs["features"]}


def mixed_by_hand(values: Tensor, batch: dict[str, Tensor], view: int = 0) -> Tensor:
    result = values[:2].clone()
    for n in range(2):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                if batch["cut"][view, n, y, x]:
                    result[n, ..., y, x] = values[batch["partner"][n], ..., y, x]
    return result


def gradients(model: SegmentationModel) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def mgd_objectives() -> dict[str, Objective]:
    return {
        "labels": Objective(CrossEntropy()),
        "pixel-deep": Objective(PseudoCrossEntropy(), "deep", "all"),
        "pixel-wide": Objective(PseudoCrossEntropy(), "wide", "all"),
        "image": Objective(ImageLevel(), "deep", weight=0.02),
        "region": Objective(RegionLevel(grid=3), "wide", weight=10.0),
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_mgd_step_equals_the_papers_formula(ranks: int) -> None:
    batch, student, deep, wide = batch_of(ranks=ranks), network(0), network(1), network(2)
    batch["inside"][:] = True  # the paper has no padding
    plain = copy.deepcopy(student).train()
    asked = (LABELLED, UNLABELLED, MIXED)
    teachers = {"deep": Frozen(deep, asked), "wide": Frozen(wide, asked)}
    task = SegmentationTask(student, mgd_objectives(), teachers=teachers).train()
    task.training_step(batch, 0).backward()

    x, y, u, m = batch["image"], batch["mask"], batch["weak"], batch["mixed"][0]
    outputs = plain.outputs(torch.cat([x, m]))
    logits = full(outputs["logits"])
    loss = F.cross_entropy(logits[:2], y, ignore_index=255)
    for teacher in (deep, wide):
        labels = answers(teacher, x)["logits"].argmax(1).masked_fill(y == 255, 255)
        loss = loss + F.cross_entropy(logits[:2], labels, ignore_index=255)
        labels = mixed_by_hand(answers(teacher, u)["logits"], batch).argmax(1)
        loss = loss + F.cross_entropy(logits[2:], labels)
    means = logits[2:].mean((2, 3)), answers(deep, m)["logits"].mean((2, 3))
    loss = loss + 0.02 * (means[0] - means[1]).abs().sum(1).mean()
    tables = []
    for features in (outputs["features"][2:], answers(wide, m)["features"]):
        vectors = F.normalize(F.adaptive_avg_pool2d(features, 3).flatten(2), dim=1)
        tables.append(vectors.transpose(1, 2) @ vectors)
    loss = loss + 10.0 * (tables[0] - tables[1]).square().mean()
    loss.backward()
    expected = gradients(plain)
    assert expected.keys() <= gradients(student).keys() | {"aux_head.weight"}
    for name, value in expected.items():
        torch.testing.assert_close(student.get_parameter(name).grad, value, rtol=1e-4, atol=1e-6)
    assert not gradients(deep) and not gradients(wide)
    torch.testing.assert_close(student.stem[1].running_mean, plain.stem[1].running_mean)  # one pass, and one only


def test_padding_and_void_are_left_out() -> None:
    """What is beyond the image, or labelled void, moves nothing."""
    batch, grads = batch_of(), []
    for noise in (0.0, 100.0):
        student, teacher = network(0), Frozen(network(1), (LABELLED, UNLABELLED))
        step = Step.of(batch)
        teacher.begin(step)
        for stream in (LABELLED, UNLABELLED):
            outside = (step.masks[stream] == 255)[:, None]
            outputs = teacher.output(1.0, stream)
            assert outputs is not None and outside.any()
            outputs["logits"].add_(noise * outside * torch.arange(CLASSES)[:, None, None])
        teacher.begin = lambda step: None  # type: ignore[method-assign]
        objectives = {"pixel": mgd_objectives()["pixel-deep"], "soft": Objective(KL(), "deep", "unlabelled")}
        SegmentationTask(student, objectives, teachers={"deep": teacher}).train().training_step(batch, 0).backward()
        grads.append(gradients(student))
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_unimatch_by_hand() -> None:
    """Two mixed views and one with dropped features, each against the sure labels of the images as they are."""
    batch, student = batch_of(views=2), network(0)
    before = answers(student, batch["weak"])["logits"]
    threshold = float(before.softmax(1).amax(1).median())
    sure = PseudoCrossEntropy(confidence=threshold)
    objectives = {
        "labels": Objective(CrossEntropy()),
        "pseudo": Objective(sure, "self", weight=0.5),
        "perturbed": Objective(sure, "self", "perturbed", weight=0.5),
    }
    plain = copy.deepcopy(student)
    task = SegmentationTask(student, objectives, teachers={"self": Live(student, 1.0, (UNLABELLED, PERTURBED))}).train()
    torch.manual_seed(3)
    loss = task.training_step(batch, 0)

    torch.manual_seed(3)
    rows = torch.cat([batch["image"], batch["mixed"][0], batch["mixed"][1], batch["weak"]])
    encoded = plain.train().body(plain.stem(rows))
    kept = torch.ones(len(rows), 16, 1, 1)
    kept[6:] = F.dropout(kept[6:], 0.5)
    logits = full(plain.classifier(encoded * kept))
    expected = F.cross_entropy(logits[:2], batch["mask"], ignore_index=255)
    views = [mixed_by_hand(before, batch, view) for view in (0, 1)]
    insides = [mixed_by_hand(batch["inside"], batch, view) for view in (0, 1)]
    for ours, theirs, inside in (
        (logits[2:6], torch.cat(views), torch.cat(insides)),
        (logits[6:], before, batch["inside"]),
    ):
        labels, counted = theirs.argmax(1), inside & (theirs.softmax(1).amax(1) >= threshold)
        assert 0 < counted.sum() < inside.sum()
        each = F.cross_entropy(ours, labels, reduction="none")
        expected = expected + 0.5 * (each * counted).sum() / inside.sum()
    torch.testing.assert_close(loss, expected)


def test_unimatch_v2_by_hand() -> None:
    """Two mixed views, each with the features that the other drops, against the sure labels of the average."""
    batch, student, average = batch_of(views=2), network(0), network(1)
    before = answers(average, batch["weak"])["logits"]
    threshold = float(before.softmax(1).amax(1).median())
    objectives = {
        "labels": Objective(CrossEntropy()),
        "pseudo": Objective(PseudoCrossEntropy(confidence=threshold), "average", "complementary"),
    }
    seen: list[Tensor] = []
    student.body.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    task = SegmentationTask(student, objectives, teachers={"average": Ema(average, 0.99, 1.0, (UNLABELLED,))}).train()
    student.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    plain = copy.deepcopy(network(0)).train()
    loss = task.training_step(batch, 0)

    factors = (seen[1].sum((2, 3)) / seen[0].sum((2, 3)))[:, :, None, None]
    assert seen[0].shape[0] == 6 and (factors[:2] == 1).all()  # labelled ones, then both views; the latter run once
    first, second = factors[2:4], factors[4:6]
    torch.testing.assert_close(first + second, torch.full_like(first, 2.0))
    whole = (first == 1).all(1).flatten()
    assert whole.sum() == 1  # one of the two images keeps all in both views
    halved = first[~whole]
    torch.testing.assert_close(halved * (2 - halved), torch.zeros_like(halved))  # each factor is 0 or 2
    assert 2 <= (halved > 1).sum() <= 14  # of 16 channels; 8 expected

    rows = torch.cat([batch["image"], batch["mixed"][0], batch["mixed"][1]])
    logits = full(plain.classifier(plain.body(plain.stem(rows)) * factors))
    expected = F.cross_entropy(logits[:2], batch["mask"], ignore_index=255)
    theirs = torch.cat([mixed_by_hand(before, batch, view) for view in (0, 1)])
    inside = torch.cat([mixed_by_hand(batch["inside"], batch, view) for view in (0, 1)])
    counted = inside & (theirs.softmax(1).amax(1) >= threshold)
    assert 0 < counted.sum() < inside.sum()
    each = F.cross_entropy(logits[2:], theirs.argmax(1), reduction="none")
    torch.testing.assert_close(loss, expected + (each * counted).sum() / inside.sum())


def test_only_what_objectives_learn_from_is_run() -> None:
    batch = batch_of(views=2)
    for streams, rows in (
        ((LABELLED,), 2),
        ((LABELLED, UNLABELLED), 6),
        ((LABELLED, COMPLEMENTARY), 6),
        ((COMPLEMENTARY, PERTURBED, UNLABELLED), 12),
    ):
        step = Step.of(batch, streams)
        assert len(step.image) == rows == sum(len(mask) for mask in step.masks.values())
        for stream in streams:
            assert len(step.part({"logits": step.image}, stream)["logits"]) == len(step.masks[stream])


def test_whole_images_on_complementary_views_are_compared_with_the_teachers_mixed_ones() -> None:
    assert Objective(ImageLevel(), "deep", "complementary").view(COMPLEMENTARY) == MIXED
    assert Objective(KL(), "deep", "complementary").view(COMPLEMENTARY) == UNLABELLED


def test_dropped_features_concern_their_rows_only() -> None:
    model, image = network(0).train(), torch.randn(4, 3, *SIZE)
    whole = copy.deepcopy(model).outputs(image)["logits"]
    dropout = FeatureDropout(model)
    seen: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    plain = copy.deepcopy(model)
    with dropout.on({PERTURBED: slice(2, 4)}):
        logits = model.outputs(image)["logits"]
    assert torch.equal(logits[:2], whole[:2]) and not torch.equal(logits[2:], whole[2:])
    gone = (seen[-1][2:] == 0).all(3).all(2)
    assert 4 <= gone.sum() <= 28 and not (seen[-1][:2] == 0).all(3).all(2).any()  # of 32 channels; 16 expected
    assert torch.equal(plain.outputs(image)["logits"], whole)  # a copy, and the model itself afterwards, are whole

    nameless = network(1)
    nameless.encoder_ends = ()
    with pytest.raises(
        ModelError, match=r"Tiny .*encoder_ends.*leave out objectives on perturbed or complementary images"
    ):
        FeatureDropout(nameless)


# --- teachers --------------------------------------------------------------------------------------------------------


def test_a_live_teacher_is_the_network_as_it_is_and_leaves_it_so() -> None:
    model = slim(network(0), (1.0, 0.5), divisor=4).train()
    before = copy.deepcopy(model.state_dict())
    teacher, step = Live(model, 1.0), Step.of(batch_of())
    model.width_dial.turn(0.5)
    teacher.begin(step)
    outputs = teacher.output(0.5, UNLABELLED)
    assert outputs is not None and not outputs["logits"].requires_grad
    assert get_width(model) == 0.5 and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not teacher.state_dict() and not list(teacher.parameters())
    model.width_dial.turn(1.0)
    torch.testing.assert_close(
        outputs["logits"], mixed_by_hand(answers(model, batch_of()["weak"])["logits"], batch_of())
    )


def test_a_teacher_runs_only_what_it_is_asked_about() -> None:
    step, counts = Step.of(batch_of(), (LABELLED, UNLABELLED, PERTURBED)), []
    for asked in ((LABELLED,), (UNLABELLED,), (LABELLED, PERTURBED), (UNLABELLED, MIXED)):
        own = network(1)
        own.stem.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
        teacher = Frozen(own, asked)
        teacher.begin(step)
        views = (LABELLED, UNLABELLED, PERTURBED, MIXED)
        assert {view for view in views if teacher.output(1.0, view) is not None} == set(asked)
    assert counts == [2, 2, 4, 4]


def test_a_teacher_in_half_precision_says_nearly_the_same() -> None:
    step, outputs, asked = Step.of(batch_of()), [], (LABELLED, UNLABELLED, MIXED)
    for bfloat16 in (False, True):
        teacher = Frozen(network(1), asked, bfloat16=bfloat16)
        teacher.begin(step)
        outputs.append({view: teacher.output(1.0, view) for view in asked})
    exact, rounded = outputs
    for view in asked:
        ours, true = rounded[view]["logits"], exact[view]["logits"]
        assert ours.dtype == torch.float32 and 0 < (ours - true).norm() / true.norm() < 0.02


def test_next_wider_teaches_on_every_stream() -> None:
    model = slim(network(0), (1.0, 0.5), divisor=4)
    seen = {}

    class Spy(KL, name="spy"):
        def _loss(self, context: Any) -> Tensor:
            seen[0.5, len(context.mask)] = context.teacher_output("logits")
            return super()._loss(context)

    objectives = {"labels": Objective(CrossEntropy()), "kl": Objective(Spy(), "wider")}
    batch = batch_of(views=2)
    task = SegmentationTask(model, objectives, teachers={"wider": NextWider()}, widths=(1.0, 0.5)).train()
    task.training_step(batch, 0).backward()
    model.width_dial.turn(1.0)
    logits = full(model.outputs(torch.cat([batch["image"], *batch["mixed"]]))["logits"])
    assert seen.keys() == {(0.5, 2), (0.5, 4)}
    torch.testing.assert_close(seen[0.5, 2], logits[:2])
    torch.testing.assert_close(seen[0.5, 4], logits[2:])


def test_an_average_of_the_student_teaches_on_unlabelled_images() -> None:
    student = network(0)
    teacher = Ema(student, 0.9, 1.0, (UNLABELLED,))
    objectives = {"pseudo": Objective(PseudoCrossEntropy(), "ema")}
    batch = batch_of()
    labels = mixed_by_hand(answers(student, batch["weak"])["logits"], batch).argmax(1)
    loss = SegmentationTask(student, objectives, teachers={"ema": teacher}).train().training_step(batch, 0)
    labels = labels.masked_fill(~mixed_by_hand(batch["inside"], batch), 255)
    ours = full(copy.deepcopy(student).train().outputs(torch.cat([batch["image"], batch["mixed"][0]]))["logits"])
    torch.testing.assert_close(loss, F.cross_entropy(ours[2:], labels, ignore_index=255))


# --- two networks ----------------------------------------------------------------------------------------------------


def test_cross_pseudo_supervision_by_hand() -> None:
    batch, networks = batch_of(), (network(0), network(1))
    plain = [copy.deepcopy(model).train() for model in networks]
    said = [mixed_by_hand(answers(model, batch["weak"])["logits"], batch) for model in networks]

    def side(mine: int) -> SegmentationTask:
        objectives = {
            "labels": Objective(CrossEntropy()),
            "pseudo": Objective(PseudoCrossEntropy(), "peer", weight=5.0),
        }
        return SegmentationTask(networks[mine], objectives, teachers={"peer": Live(networks[1 - mine], 1.0)})

    task = CrossPseudoTask(side(0), side(1)).train()
    task.training_step(batch, 0).backward()
    assert task.model is networks[0] and len(list(task.parameters())) == 2 * len(list(networks[0].parameters()))
    for mine in (0, 1):
        labels = said[1 - mine].argmax(1).masked_fill(~mixed_by_hand(batch["inside"], batch), 255)
        logits = full(plain[mine].outputs(torch.cat([batch["image"], batch["mixed"][0]]))["logits"])
        loss = F.cross_entropy(logits[:2], batch["mask"], ignore_index=255)
        (loss + 5 * F.cross_entropy(logits[2:], labels, ignore_index=255)).backward()
        for name, value in gradients(plain[mine]).items():
            torch.testing.assert_close(networks[mine].get_parameter(name).grad, value, rtol=1e-4, atol=1e-6)


# --- pseudo-labels ---------------------------------------------------------------------------------------------------


def test_pseudo_labels_are_the_sure_ones_of_known_pixels() -> None:
    logits = torch.tensor([[0.0, 4.0, 0.0, 9.0], [0.1, 0.0, 4.0, 0.0]])[None, :, None]
    mask = torch.tensor([[[0, 0, 0, 255]]])
    assert pseudo_labels(logits, mask).tolist() == [[[1, 0, 1, 255]]]
    assert pseudo_labels(logits, mask, 0.95).tolist() == [[[255, 0, 1, 255]]]  # 1 / (1 + e^-4) is 0.98
    objectives = {"none": Objective(PseudoCrossEntropy(confidence=0.999), "t")}
    task = SegmentationTask(network(0), objectives, teachers={"t": Frozen(network(1), (UNLABELLED,))})
    value = task.train().training_step(batch_of(), 0)
    value.backward()
    assert value == 0 and all(torch.isfinite(grad).all() for grad in gradients(task.model).values())


def test_borders_of_pseudo_labels_weigh_more() -> None:
    batch, student = batch_of(), network(0)
    batch["inside"][:] = True
    teacher = network(1)
    objectives = {"band": Objective(PseudoBand(radius=0), "t")}
    task = SegmentationTask(student, objectives, teachers={"t": Frozen(teacher, (UNLABELLED,))})
    logits = full(copy.deepcopy(student).train().outputs(torch.cat([batch["image"], batch["mixed"][0]]))["logits"])[2:]
    labels = mixed_by_hand(answers(teacher, batch["weak"])["logits"], batch).argmax(1)
    border = torch.zeros_like(labels, dtype=torch.bool)
    for n, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(SIZE[0]), torch.arange(SIZE[1])).tolist():
        for v, u in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
            if 0 <= v < SIZE[0] and 0 <= u < SIZE[1]:
                border[n, y, x] |= labels[n, y, x] != labels[n, v, u]
    assert border.any() and not border.all()
    expected = F.cross_entropy(logits, labels.masked_fill(~border, 255), ignore_index=255)
    torch.testing.assert_close(task.train().training_step(batch, 0), expected)


def test_a_warm_up_raises_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, teacher = batch_of(), Frozen(network(1), (UNLABELLED,))
    losses = []
    for step in (0, 4, 9, 50):
        objectives = {"pseudo": Objective(PseudoCrossEntropy(), "t", warmup=0.1)}
        task = SegmentationTask(network(0), objectives, teachers={"t": teacher}, horizon=Horizon(100)).train()
        monkeypatch.setattr(SegmentationTask, "global_step", step)
        losses.append(float(task.training_step(batch, 0).detach()))
    assert losses == pytest.approx([losses[-1] * share for share in (0.1, 0.5, 1.0, 1.0)])
