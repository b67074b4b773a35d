"""Batch size and learning rate by trying: what is found, and that a run keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_camvid import make_camvid
from tiny_training import ARGUMENTS, Tiny, act_at, tiny_recipe

from litheseg.building import finding
from litheseg.building.finding import find_batch_size, find_lr, steepest, with_found
from litheseg.cli import main
from litheseg.errors import RecipeError, TrainingError
from litheseg.training.recipe import Recipe
from litheseg.training.task import SegmentationTask

FOUND = ("--find-batch-size", "--find-lr")


def test_the_steepest_descent_is_found_whatever_the_noise() -> None:
    rates = np.geomspace(1e-6, 10, 100)
    # Falls around 3e-3 by a logistic function of the logarithm, whose slope is largest there; explodes above 1.
    curve = 2.5 - 1.7 / (1 + np.exp(-3 * (np.log10(rates) + 2.5))) + rates**2
    for seed in range(5):
        noisy = curve + np.random.default_rng(seed).normal(0, 0.02, len(rates))
        smooth, best = steepest(rates.tolist(), noisy.tolist())
        assert best is not None and 1e-3 < rates[best] < 1e-2
        assert np.abs(smooth - curve)[10:60].max() < 0.1
    assert steepest(rates.tolist(), np.linspace(1, 2, 100).tolist())[1] is None


def test_the_rate_rises_and_keeps_the_encoders_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, ...]] = []
    step = torch.optim.AdamW.step

    def watch(optimizer: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(sorted({group["lr"] for group in optimizer.param_groups})))
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    monkeypatch.setattr(Tiny, "roles", {"encoder": ("stem.*",)})
    recipe = tiny_recipe("--optimizer.encoder=0.1")
    rate = find_lr(recipe, tmp_path / "run" / "lr.png")
    assert 1e-5 < rate < 1
    assert 20 < len(seen) <= 100 and seen[0][1] == pytest.approx(1e-6)
    assert all(slow == pytest.approx(fast / 10) for slow, fast in seen)
    assert Image.open(tmp_path / "run" / "lr.png").format == "PNG"


def test_the_batch_size_is_bounded_by_images_speed_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speeds = {2: 1.0, 4: 1.0, 8: 1.0, 16: 1.2, 32: 1.25}
    memory = {"free": 1e12}
    monkeypatch.setattr(finding, "free_memory", lambda: memory["free"])
    measure = finding._trial

    def at(recipe: Any, data: Any, task: Any) -> Any:
        found = measure(recipe, data, task)
        return found and finding._Trial(speeds[data.batch_size], found.memory)

    monkeypatch.setattr(finding, "_trial", at)
    folder = make_camvid(tmp_path / "data", frames=43)
    many = tiny_recipe("--data.source=camvid", f"--data.root={folder}", "--data.options={}")
    assert find_batch_size(many) == 16  # 32 is 4 % faster
    assert find_batch_size(tiny_recipe("--data.options={train: 33, val: 2, size: [32, 32]}")) == 8  # 33 / 16 < 4
    assert find_batch_size(tiny_recipe("--data.options={train: 3, val: 2, size: [32, 32]}")) == 2
    memory["free"] = 2 * 3.5 * kept_by_one_image(many)  # half of it holds three images
    assert find_batch_size(many) == 2
    memory["free"] = 2 * 4.5 * kept_by_one_image(many)
    assert find_batch_size(many) == 4


def kept_by_one_image(recipe: Recipe) -> float:
    """Bytes that a step of the tiny network keeps, per image; at least what its convolutions see."""
    data, task = finding._begin(recipe)
    meter = finding._Meter()
    with torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda tensor: tensor):
        finding._take_steps(recipe, data, task, 1, meter)
    # An oracle from below: inputs and outputs of convolutions and norms in float32.
    images, half = recipe.data.batch_size, 12 * 16
    least = images * 4 * (3 * 24 * 32 + 2 * (16 + 8) * half * 2)
    assert least < meter.kept < 20 * least
    return meter.kept / images


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(SegmentationTask, "training_step", act_at(0, full))
    with pytest.raises(TrainingError, match=r"--data\.crop"):
        find_batch_size(tiny_recipe())


def test_an_untrained_teacher_is_named() -> None:
    teacher = "--teachers={deep: {kind: frozen, model: {name: tiny}}}"
    recipe = tiny_recipe(teacher, "--objectives.kl.teacher=deep")
    with pytest.raises(RecipeError, match=r"--teachers\.deep\.bundle"):
        with_found(recipe, Path("nowhere"), lr=True)


def test_a_resumed_run_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finding, "find_batch_size", lambda recipe: 4)
    monkeypatch.setattr(finding, "find_lr", lambda recipe, picture: 0.0042 if recipe.data.batch_size == 4 else 1.0)
    words = ["train", "--recipe", "slimseg", *ARGUMENTS, *FOUND, "--output", str(tmp_path / "run")]
    assert main(words) == 0
    values = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (values["data"]["batch_size"], values["optimizer"]["lr"]) == (4, 0.0042)
    monkeypatch.setattr(finding, "find_batch_size", lambda recipe: 2)
    monkeypatch.setattr(finding, "find_lr", lambda recipe, picture: 1.0)
    (tmp_path / "run" / "model.safetensors").unlink()
    assert main([*words, "--resume"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == values
