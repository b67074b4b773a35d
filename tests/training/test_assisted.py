"""The teacher that sees the labels, against plain PyTorch; what its label channel shows; what it may not be asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_training import NO_TRAINER, act_at, same_weights, tiny, train_tiny
from torch import Tensor, nn

from litheseg.errors import ModelError, RecipeError, TrainingError
from litheseg.losses.distillation import KL
from litheseg.losses.supervised import CrossEntropy
from litheseg.models import build_model
from litheseg.models.segmenter import segmenter
from litheseg.nn import slim
from litheseg.training import load_recipe
from litheseg.training.assisted import LabelAssisted
from litheseg.training.config import OptimizerConfig
from litheseg.training.horizon import Horizon
from litheseg.training.recipe import Objective
from litheseg.training.streams import LABELLED, UNLABELLED, Step
from litheseg.training.task import SegmentationTask

pytestmark = NO_TRAINER

CLASSES, SIZE = 5, (12, 18)


def student(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return slim(tiny(CLASSES, dropout=0.0), (1.0, 0.5), divisor=4)


def batch_of(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, CLASSES, (2, 1, 4, 6), generator=generator).float()
    mask = F.interpolate(blocks, size=SIZE, mode="nearest")[:, 0].long()
    mask[:, :2, 5:9] = 255
    return {"image": torch.randn(2, 3, *SIZE, generator=generator), "mask": mask}


class Plain(nn.Module):
    """`tiny` by hand, with a first convolution of four inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)

    def forward(self, rows: Tensor) -> Tensor:
        conv = self.network.stem[0]
        x = F.conv2d(rows, conv.weight, conv.bias, stride=2, padding=1)
        logits = self.network.classifier(self.network.body(self.network.stem[1:](x)))
        return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def plain_of(teacher: LabelAssisted) -> Plain:
    return Plain(teacher.model)


def rows_seen(teacher: LabelAssisted) -> list[Tensor]:
    """What the first convolution is given from now on."""
    seen: list[Tensor] = []
    teacher.model.stem[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    return seen


def apart(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Channel-wise distillation at temperature 4, as Shu et al. (ICCV 2021) write it, over labelled pixels."""
    total = torch.zeros(())
    for n in range(len(mask)):
        inside = mask[n] != 255
        for k in range(CLASSES):
            p, q = ((logits[n, k][inside] / 4).softmax(0) for logits in (theirs.detach(), ours))
            total = total + (p * (p.log() - q.log())).sum()
    return 16 * total / (len(mask) * CLASSES)


def test_its_loss_by_hand() -> None:
    batch, teacher = batch_of(), LabelAssisted(student(), 1.0, consistency=5.0)
    plain, seen = plain_of(teacher), rows_seen(teacher)
    loss = teacher.loss(Step.of(batch))
    loss.backward()

    (rows,) = seen
    assert torch.equal(rows[:, :3], torch.cat([batch["image"]] * 2))
    logits, mask = plain.train()(rows), batch["mask"]
    first, second = logits[:2], logits[2:]
    expected = sum(F.cross_entropy(part, mask, ignore_index=255) for part in (first, second))
    expected = expected + 5 * (apart(first, second, mask) + apart(second, first, mask))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, value in plain.network.named_parameters():
        torch.testing.assert_close(teacher.model.get_parameter(name).grad, value.grad, rtol=1e-4, atol=1e-6)


def test_each_image_shows_each_class_by_a_number_of_its_own() -> None:
    batch, teacher = batch_of(), LabelAssisted(student(), 1.0, noise=0.01)
    seen, mask = rows_seen(teacher), torch.cat([batch_of()["mask"]] * 2)
    teacher.loss(Step.of(batch))
    numbers = []
    for shown, labels in zip(seen[0][:, 3], mask, strict=True):
        for label in labels.unique():  # 255, the ignored ones, among them
            assert shown[labels == label].std() < 0.03
            numbers.append(shown[labels == label].mean())
    assert torch.stack(numbers).diff().abs().min() > 1e-4 and 0.5 < torch.stack(numbers).std() < 1.6


def test_what_it_says_by_hand() -> None:
    """In evaluation mode, without gradient, with evenly spread numbers; the student itself sees no label."""
    batch, model = batch_of(), student()
    teacher = LabelAssisted(model, 1.0, noise=0.0)
    plain, seen = plain_of(teacher), rows_seen(teacher)
    teacher.begin(Step.of(batch))
    outputs = teacher.output(0.5, LABELLED)
    assert outputs is not None and teacher.output(0.5, UNLABELLED) is None
    numbers = {255: 1.0, **{label: -1 + 2 * label / CLASSES for label in range(CLASSES)}}
    shown = batch["mask"].double().apply_(lambda label: numbers[int(label)]).float()
    torch.testing.assert_close(seen[0][:, 3], shown)
    expected = plain.eval()(torch.cat([batch["image"], shown[:, None]], 1))
    torch.testing.assert_close(outputs["logits"], expected)
    assert not outputs["logits"].requires_grad and model.stem[0].weight.shape[1] == 3


def test_it_learns_in_the_students_steps_and_the_student_from_it() -> None:
    batch, model = batch_of(), student()
    objectives = {"labels": Objective(CrossEntropy()), "kl": Objective(KL(), "assisted", "labelled")}
    teacher = LabelAssisted(model, 1.0)
    task = SegmentationTask(
        model, objectives, teachers={"assisted": teacher}, widths=(1.0, 0.5), horizon=Horizon(9)
    ).train()
    task.optimizer_config = OptimizerConfig(lr=0.01, schedule="constant")
    optimizer = task.configure_optimizers()["optimizer"]
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert inside == {id(p) for p in task.parameters()}
    found = []
    for _ in range(8):
        loss, values = task.loss(task.begin(batch))
        assert {"assisted", "kl@1", "kl@0.5", "labels@1", "labels@0.5"} <= values.keys()
        addends = (values["loss@1"] + values["loss@0.5"]) / 2 + values["assisted"]
        torch.testing.assert_close(loss.detach(), addends)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(values["assisted"]))
    assert found[-1] < 0.9 * found[0]
    assert teacher.model.classifier.weight.grad is not None


def test_labels_alone_do_not_tell_it_the_classes() -> None:
    """On images that are all alike it learns no more than how often each class occurs: nothing can be copied."""
    generator = torch.Generator().manual_seed(0)
    teacher = LabelAssisted(student(), 1.0, consistency=0.0)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=0.01)
    torch.manual_seed(0)
    losses = []
    for _ in range(120):
        mask = torch.randint(0, CLASSES, (8, 1, 2, 3), generator=generator).float()
        mask = F.interpolate(mask, size=SIZE, mode="nearest")[:, 0].long()
        loss = teacher.loss(Step.of({"image": torch.zeros(8, 3, *SIZE), "mask": mask}))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / 2)
    assert sum(losses[-20:]) / 20 > 0.9 * torch.tensor(float(CLASSES)).log()


@pytest.mark.parametrize(
    "model",
    [
        lambda: build_model("erfnet", num_classes=CLASSES),
        lambda: build_model("ddrnet", num_classes=CLASSES, base=8, head_channels=8),
        lambda: segmenter(CLASSES, encoder="test_vit", channels=16, pretrained="none"),
        lambda: segmenter(CLASSES, encoder="tf_efficientnet_lite0", channels=16, pretrained="none"),
    ],
    ids=["erfnet", "ddrnet", "vit", "same-padding"],
)
def test_any_network_can_see_labels(model: Any) -> None:
    network = model()
    teacher = LabelAssisted(slim(network, (1.0,)), 1.0)
    batch = batch_of()
    step = Step.of({name: value.repeat_interleave(4, -1).repeat_interleave(4, -2) for name, value in batch.items()})
    teacher.loss(step).backward()
    wide = next(value for value in teacher.parameters() if value.ndim == 4 and value.shape[1] == 4)
    assert wide.grad[:, 3].abs().sum() > 0
    copied = copy.deepcopy(teacher)  # as an average of the run's weights is
    copied.begin(step)
    assert copied.output(1.0, LABELLED)["logits"].shape == (2, CLASSES, 48, 72)


def test_a_run_with_it_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_tiny(tmp_path / "whole", "--model.args={}", name="label-assisted")
    assert whole.scores.keys() == {1.0, 0.5}

    def die(loss: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="not enough memory"):
        patch.setattr(SegmentationTask, "training_step", act_at(5, die))
        train_tiny(tmp_path / "broken", "--model.args={}", name="label-assisted")
    train_tiny(tmp_path / "broken", "--model.args={}", name="label-assisted", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


def test_unlabelled_images_have_no_labels_to_show() -> None:
    options = ["--teachers.a.kind=label-assisted", "--objectives.kl={loss: kl, teacher: a}"]
    load_recipe("supervised", options)  # all images are labelled
    message = r"objectives\.kl: a \(label-assisted\) sees the labels beside an image.*--objectives\.kl\.on labelled"
    with pytest.raises(RecipeError, match=message):
        load_recipe("supervised", [*options, "--data.unlabelled=rest"])
    load_recipe("unimatch", [*options, "--objectives.kl.on=labelled"])


def test_a_network_that_does_not_convolve_its_image() -> None:
    network = tiny(CLASSES)
    network.stem[0] = nn.Conv2d(6, 16, 3, 2, 1)
    with pytest.raises(ModelError, match=r"Tiny has no convolution that reads .*use another teacher"):
        LabelAssisted(slim(network, (1.0,)), 1.0)
