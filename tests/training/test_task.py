from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_training import NO_TRAINER, tiny
from torch import Tensor, nn

from litheseg.losses import Loss
from litheseg.losses.boundary import BoundaryBand, BoundaryHead
from litheseg.losses.distillation import KL, ChannelWise
from litheseg.losses.supervised import CrossEntropy, DeepSupervision, Dice, Lovasz, Ohem
from litheseg.models import SegmentationModel
from litheseg.nn import extract, get_width, slim
from litheseg.training.config import OptimizerConfig
from litheseg.training.recipe import Objective
from litheseg.training.streams import LABELLED, Step
from litheseg.training.task import SegmentationTask, plan_widths
from litheseg.training.teacher import Teacher
from litheseg.training.teachers import Ema, Frozen, NextWider, Widest

pytestmark = NO_TRAINER

CLASSES, WIDTHS = 5, (1.0, 0.75, 0.5, 0.25)


def elastic(seed: int = 0, **arguments: Any) -> SegmentationModel:
    torch.manual_seed(seed)
    model = slim(tiny(CLASSES, dropout=0.0, **arguments), WIDTHS, divisor=4)
    assert isinstance(model, SegmentationModel)
    return model


def objective(loss: Loss, weight: float = 1.0, **arguments: Any) -> Objective:
    return Objective(loss, teacher="teacher" if loss.needs_teacher else None, weight=weight, **arguments)


def task_of(
    model: SegmentationModel, objectives: dict[str, Objective | Loss], teacher: Teacher | None = None, **k: Any
) -> Any:
    whole = {name: objective(item) if isinstance(item, Loss) else item for name, item in objectives.items()}
    teachers = {"teacher": teacher} if teacher else {}
    return SegmentationTask(model, whole, teachers=teachers, widths=k.pop("widths", WIDTHS), **k).train()


def batch_of(seed: int = 1, size: tuple[int, int] = (12, 18)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, CLASSES, (2, 1, size[0] // 3, size[1] // 3), generator=generator).float()
    mask = F.interpolate(blocks, size=size, mode="nearest")[:, 0].long()
    mask[:, :2, 5:9] = 255
    return {"image": torch.randn(2, 3, *size, generator=generator), "mask": mask}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


# --- which widths ----------------------------------------------------------------------------------------------------


def test_all_widths_run_widest_first() -> None:
    assert plan_widths((0.25, 1.0, 0.5), None, seed=0, step=3) == (1.0, 0.5, 0.25)


def test_a_sandwich_has_both_ends_and_random_others() -> None:
    widths = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    plans = [plan_widths(widths, 2, seed=0, step=step) for step in range(200)]
    assert all(len(plan) == 4 and plan[0] == 1.0 and plan[-1] == 0.5 for plan in plans)
    assert all(list(plan) == sorted(set(plan), reverse=True) for plan in plans)
    chosen = [width for plan in plans for width in plan[1:-1]]
    assert all(60 < chosen.count(width) < 140 for width in widths[1:-1])  # 100 expected
    assert plans == [plan_widths(widths, 2, seed=0, step=step) for step in range(200)]
    assert plans != [plan_widths(widths, 2, seed=1, step=step) for step in range(200)]


def test_a_sandwich_of_few_widths_is_all_of_them() -> None:
    assert plan_widths((1.0, 0.5, 0.25), 2, seed=0, step=0) == (1.0, 0.5, 0.25)


# --- against a loop in plain PyTorch ---------------------------------------------------------------------------------


def plain_copies(model: SegmentationModel) -> dict[float, SegmentationModel]:
    """One ordinary network per width, with the training heads, which `extract` would drop."""
    whole = copy.deepcopy(model)
    whole.training_only = ()
    return {width: extract(whole, width).train() for width in WIDTHS}  # type: ignore[misc]


def band_by_hand(mask: Tensor, radius: int) -> Tensor:
    labels = mask.numpy()
    edge = np.zeros(labels.shape, bool)
    for n, y, x in np.ndindex(*labels.shape):
        for v, u in ((y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)):
            if 0 <= v < labels.shape[1] and 0 <= u < labels.shape[2]:
                pair = {labels[n, y, x], labels[n, v, u]}
                edge[n, y, x] |= len(pair) == 2 and 255 not in pair
    band = np.zeros_like(edge)
    for n, y, x in zip(*edge.nonzero(), strict=True):
        band[n, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    return torch.from_numpy(band & (labels != 255))


def slimseg_by_hand(models: dict[float, SegmentationModel], batch: dict[str, Tensor], weight: Tensor) -> Tensor:
    mask, losses, wider = batch["mask"], [], None
    band = band_by_hand(mask, 1)
    for width in sorted(models, reverse=True):
        outputs = models[width].outputs(batch["image"])
        logits = F.interpolate(outputs["logits"], mask.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, mask, weight, ignore_index=255)
        coarse = F.interpolate(mask[:, None].float(), outputs["aux"].shape[-2:], mode="nearest-exact")[:, 0].long()
        loss = loss + 0.4 * F.cross_entropy(outputs["aux"], coarse, weight, ignore_index=255)
        loss = loss + 0.5 * F.cross_entropy(logits, mask.masked_fill(~band, 255), weight, ignore_index=255)
        if wider is not None:
            divergence = (wider * (wider.log() - logits.softmax(1).log())).sum(1)
            loss = loss + divergence[mask != 255].mean()
        wider = logits.detach().softmax(1)
        losses.append(loss)
    return sum(losses) / len(losses)


def test_a_slimseg_step_equals_a_plain_loop() -> None:
    model, batch, weight = elastic(), batch_of(), torch.linspace(0.5, 2.0, CLASSES)
    plain = plain_copies(model)
    objectives = {
        "labels": CrossEntropy(),
        "aux": objective(DeepSupervision(), 0.4),
        "band": objective(BoundaryBand(radius=1), 0.5),
        "kl": KL(),
    }
    loss = task_of(model, objectives, NextWider(), class_weights={"log": weight}).training_step(batch, 0)
    loss.backward()
    expected = slimseg_by_hand(plain, batch, weight)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, value in model.named_parameters():  # shared weights: the widths' gradients add up on their slices
        if "norms" not in name:
            total = torch.zeros_like(value)
            for small in plain.values():
                grad = small.get_parameter(name).grad
                total[tuple(slice(0, size) for size in grad.shape)] += grad
            torch.testing.assert_close(value.grad, total, rtol=1e-4, atol=1e-6)


# --- teachers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [NextWider, Widest])
def test_the_teacher_gets_no_gradient_from_its_student(teacher: type[Teacher]) -> None:
    """The widest learns the same whether or not the narrower one imitates it."""
    batch, grads = batch_of(), []
    for weight in (1.0, 1e3):
        model = elastic()
        # Of the narrow width only what its teacher gives remains, so all that its loss could reach is visible.
        labels = objective(CrossEntropy(), widths="widest")
        objectives = {"labels": labels, "kl": objective(KL(), weight), "cwd": ChannelWise()}
        task = task_of(model, objectives, teacher(), widths=(1.0, 0.25))
        task.training_step(batch, 0).backward()
        grads.append(gradients(model))
    wide = [name for name in grads[0] if "norms.0" in name]
    assert wide and all(torch.equal(grads[0][name], grads[1][name]) for name in wide)
    narrow = [name for name in grads[0] if "norms.3" in name]
    assert narrow and not any(torch.equal(grads[0][name], grads[1][name]) for name in narrow)
    # Channels that only the wide network has are moved by the labels alone.
    assert torch.equal(grads[0]["classifier.weight"][:, 4:], grads[1]["classifier.weight"][:, 4:])


def test_who_teaches_whom() -> None:
    model, batch, seen = elastic(), batch_of(), {}

    class Spy(KL, name="spy"):
        def _loss(self, context: Any) -> Tensor:
            seen[WIDTHS[len(seen) + 1]] = context.teacher_output("logits")
            return context.output("logits").sum() * 0

    for teacher, expected in (
        (NextWider(), {0.75: 1.0, 0.5: 0.75, 0.25: 0.5}),
        (Widest(), dict.fromkeys(WIDTHS[1:], 1.0)),
    ):
        seen.clear()
        task_of(model, {"labels": CrossEntropy(), "spy": Spy()}, teacher).training_step(batch, 0)
        plain = plain_copies(model)
        assert seen.keys() == expected.keys()
        for width, wider in expected.items():
            logits = F.interpolate(plain[wider].outputs(batch["image"])["logits"], (12, 18), mode="bilinear")
            torch.testing.assert_close(seen[width], logits)
            assert not seen[width].requires_grad


def test_a_frozen_teacher_stays_as_it_is() -> None:
    own = extract(elastic(seed=3), 0.5)
    assert isinstance(own, SegmentationModel)
    before = copy.deepcopy(own.state_dict())
    task = task_of(elastic(), {"labels": CrossEntropy(), "kl": KL()}, Frozen(own))
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=1.0)
    task.training_step(batch_of(), 0).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert not gradients(own)


def test_a_frozen_teacher_goes_where_the_images_are() -> None:
    """It is no part of the task, so does not move with it; the meta device stands for a GPU."""
    teacher = Frozen(extract(elastic(), 0.5))
    teacher.begin(Step.of({name: value.to("meta") for name, value in batch_of().items()}))
    assert teacher.output(1.0, LABELLED)["logits"].device.type == "meta"


def test_an_ema_teacher_follows_the_student() -> None:
    model = elastic()
    teacher = Ema(model, decay=0.9, width=0.5)
    assert get_width(teacher.model) == 0.5 and get_width(model) == 1.0  # the copy has one dial of its own
    assert (
        len({id(m.dial) for m in teacher.model.modules() if hasattr(m, "dial")} | {id(teacher.model.width_dial)}) == 1
    )
    start = teacher.model.classifier.weight.clone()
    with torch.no_grad():
        model.classifier.weight += 1
    teacher.update(model)
    assert torch.allclose(teacher.model.classifier.weight, start + 10 / 11)  # 1 / 11 at the first of few steps
    for _ in range(200):
        teacher.steps, before = 1000, teacher.model.classifier.weight.clone()
        teacher.update(model)
        assert torch.allclose(teacher.model.classifier.weight, torch.lerp(model.classifier.weight, before, 0.9))
    assert not any(p.requires_grad for p in teacher.model.parameters())
    fresh = Ema(elastic(seed=5), decay=0.9, width=0.5)
    fresh.load_state_dict(teacher.state_dict())
    assert fresh.steps == teacher.steps == 1001


def test_an_identical_teacher_teaches_nothing() -> None:
    model = elastic().eval()
    task = task_of(model, {"kl": KL(), "cwd": ChannelWise()}, Frozen(copy.deepcopy(model)), widths=(1.0,))
    task.eval()
    assert task.training_step(batch_of(), 0).item() == pytest.approx(0.0, abs=1e-6)


# --- terms and widths ------------------------------------------------------------------------------------------------


def test_running_one_width_leaves_the_others_statistics_alone() -> None:
    model = elastic()
    before = copy.deepcopy(model.state_dict())
    task_of(model, {"labels": CrossEntropy()}, widths=(0.5,)).training_step(batch_of(), 0).backward()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".norms.2." in name for name in changed)
    assert {name for name in gradients(model) if "norms" in name} == {
        name for name, _ in model.named_parameters() if ".norms.2." in name
    }


@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), Ohem(), Dice(), Lovasz(), DeepSupervision(), BoundaryBand(), BoundaryHead()],
    ids=lambda loss: loss.name,
)
def test_every_loss_lowers_itself(loss: Loss) -> None:
    model, batch = elastic(boundary_head=True), batch_of()
    task = task_of(model, {"loss": loss}, class_weights={"log": torch.linspace(0.5, 2.0, CLASSES)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        value = task.training_step(batch, 0)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]


def test_labels_of_the_widest_width_alone() -> None:
    seen = []

    class Spy(CrossEntropy, name="spy"):
        def _loss(self, context: Any) -> Tensor:
            seen.append(len(context.outputs["logits"]))
            return super()._loss(context)

    task = task_of(elastic(), {"labels": objective(Spy(), widths="widest"), "kl": KL()}, NextWider())
    _, values = task.loss(task.begin(batch_of()))
    assert len(seen) == 1 and [name for name in values if name.startswith("labels")] == ["labels@1"]


def test_class_weights_follow_the_task_but_stay_out_of_checkpoints() -> None:
    task = task_of(elastic(), {"labels": CrossEntropy()}, class_weights={"log": torch.ones(CLASSES)})
    assert not any("class_weights" in name for name in task.state_dict())
    assert task.to(torch.float64).class_weights_log.dtype == torch.float64


def test_the_optimizer_has_the_students_weights_only() -> None:
    own = extract(elastic(seed=3), 1.0)
    assert isinstance(own, SegmentationModel)
    task = task_of(elastic(), {"kl": KL()}, Frozen(own), optimizer=OptimizerConfig(schedule="constant"))
    task._trainer = type("FakeTrainer", (), {"estimated_stepping_batches": 10})()
    groups = task.configure_optimizers()["optimizer"].param_groups
    inside = {id(parameter) for group in groups for parameter in group["params"]}
    assert inside == {id(parameter) for parameter in task.model.parameters()}
