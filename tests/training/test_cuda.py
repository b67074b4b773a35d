"""What only a GPU can tell: that a step waits for nothing, and that it does there what it does on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import tiny_recipe

from litheseg.training import train
from litheseg.training.build import build_data, build_task
from litheseg.training.config import OptimizerConfig
from litheseg.training.optimization import build_optimizer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize(("clip", "fused"), [(0.0, True), (1.0, None)])
def test_the_optimizer_is_one_kernel_unless_gradients_are_clipped(device: str, clip: float, fused: bool | None) -> None:
    optimizer = build_optimizer(torch.nn.Linear(2, 2).to(device), OptimizerConfig(clip=clip))
    assert optimizer.defaults["fused"] is fused


@needs_gpu
def test_a_step_waits_for_nothing() -> None:
    recipe = tiny_recipe("--data.cache=device", "--trainer.accelerator=gpu")
    data = build_data(recipe)
    task = build_task(recipe, data).cuda()
    optimizer = build_optimizer(task.model, recipe.optimizer)

    def step(index: int) -> None:
        raw = data._train_batches()[0, index]
        batch = {name: value.pin_memory().cuda(non_blocking=True) for name, value in raw.items()}
        loss, _ = task.loss(task.begin(data.on_after_batch_transfer(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(0)  # the first fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_run_learns_on_a_gpu_what_it_learns_on_a_cpu(tmp_path: Path) -> None:
    losses = []
    for place in ("cpu", "gpu"):
        recipe = tiny_recipe(f"--trainer.accelerator={place}", "--model.args={dropout: 0.0}")
        train(recipe, tmp_path / place)
        rows = (tmp_path / place / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("train/loss@1")
        losses.append([float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
