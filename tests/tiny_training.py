"""A network and a recipe that train in a second, in this process or, as a script, in another.

python tests/tiny_training.py FOLDER [--resume] [--die-at STEP] [--die-writing NAME] [--die-rank RANK] [overrides]

A process that dies kills itself: at a training step, or when half of a file has been written for the second time.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from litheseg.cli.printing import complain
from litheseg.errors import LithesegError
from litheseg.models import MODELS, SegmentationModel
from litheseg.models.bundle import load_bundle
from litheseg.progress import shown
from litheseg.training import Recipe, TrainResult, load_recipe, train
from litheseg.training.task import SegmentationTask

# For tests that run the steps of a task themselves: what Lightning then says of the absent trainer.
NO_TRAINER = pytest.mark.filterwarnings("ignore:.*self.log.*no trainer.*|.*not registered.*")

IMAGES, BATCH = 8, 2
STEPS = IMAGES // BATCH  # per epoch
ARGUMENTS = (
    "--model.name=tiny",
    "--data.source=streets",
    f"--data.options={{train: {IMAGES}, val: 2, size: [32, 32]}}",
    f"--data.batch_size={BATCH}",
    "--widths=[1.0, 0.5]",
    "--trainer.epochs=2",
    "--trainer.accelerator=cpu",
    "--trainer.val_every=1",
    "--trainer.threads=1",
    "--trainer.loggers=[csv]",
)


class Tiny(SegmentationModel):
    """Two convolutions, dropout (so that seeding shows), and both training heads."""

    training_only = ("aux_head", "boundary_head")
    encoder_ends = ("body",)

    def __init__(
        self, num_classes: int, norm: str, dropout: float, aux_head: bool, boundary_head: bool, in_channels: int = 3
    ) -> None:
        super().__init__(num_classes, in_channels)
        norms = [nn.BatchNorm2d(16) if norm == "batch" else nn.GroupNorm(2, 16) for _ in range(2)]
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, 2, 1), norms[0], nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), norms[1], nn.ReLU(), nn.Dropout2d(dropout))
        self.classifier = nn.Conv2d(16, num_classes, 1)
        self.aux_head = nn.Conv2d(16, num_classes, 1) if aux_head else None
        self.boundary_head = nn.Conv2d(16, 1, 1) if boundary_head else None

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        early = self.stem(image)
        features = self.body(early)
        result = {"logits": self.classifier(features), "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head(early)
        if self.training and self.boundary_head is not None:
            result["boundary"] = self.boundary_head(features)
        return result


def tiny(
    num_classes: int,
    *,
    norm: str = "batch",
    dropout: float = 0.1,
    aux_head: bool = True,
    boundary_head: bool = False,
    in_channels: int = 3,
) -> Tiny:
    """The network, for `MODELS`."""
    return Tiny(num_classes, norm, dropout, aux_head, boundary_head, in_channels)


MODELS["tiny"] = tiny


def tiny_recipe(*overrides: str, name: str = "slimseg") -> Recipe:
    return load_recipe(name, [*ARGUMENTS, *overrides])


def train_tiny(folder: Path, *overrides: str, name: str = "slimseg", resume: bool = False) -> TrainResult:
    return train(tiny_recipe(*overrides, name=name), folder, resume=resume)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_bundle(folder / "model.safetensors").state_dict


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def act_at(step: int, action: Any) -> Any:
    """A `training_step` that lets `action(loss)` replace the loss from this global step on."""
    original = SegmentationTask.training_step

    def training_step(self: SegmentationTask, batch: Any, batch_idx: int) -> Tensor:
        loss = original(self, batch, batch_idx)
        return action(loss) if self.global_step >= step else loss

    return training_step


def environment() -> dict[str, str]:
    """For a child process: it finds the package and takes no part in a distributed run of this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCAL_", "MASTER_", "PL_"))}
    places = (Path(__file__).parent, Path(__file__).parents[1])
    return {**kept, "PYTHONPATH": os.pathsep.join([*map(str, places), *filter(None, [kept.get("PYTHONPATH")])])}


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_writing(name: str) -> Any:
    """A `Path.write_bytes` that dies within the second file whose path holds `name`."""
    write, seen = Path.write_bytes, []

    def write_bytes(path: Path, content: Any) -> int:
        seen.extend([path] if name in path.name else [])
        if len(seen) < 2:
            return write(path, content)
        write(path, bytes(content)[: len(content) // 2])
        die()
        raise AssertionError

    return write_bytes


def taken(arguments: list[str], option: str) -> str | None:
    """The value of an option, which is taken out."""
    if option not in arguments:
        return None
    at = arguments.index(option)
    value = arguments[at + 1]
    del arguments[at : at + 2]
    return value


def main(arguments: list[str]) -> int:
    step, name, rank = (taken(arguments, f"--die-{what}") for what in ("at", "writing", "rank"))
    if rank in (None, os.environ.get("LOCAL_RANK", "0")):
        if step is not None:
            SegmentationTask.training_step = act_at(int(step), die)
        if name is not None:
            Path.write_bytes = die_writing(name)
    try:
        overrides = [part for part in arguments[1:] if part != "--resume"]
        with shown():
            train_tiny(Path(arguments[0]), *overrides, resume="--resume" in arguments)
    except LithesegError as error:
        return complain(str(error), error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
