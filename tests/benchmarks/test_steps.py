"""The programs that time training steps run with today's recipes, at a tiny size; what an MGD step is compared with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from measure import steps
from records import report

SMALL = ["--size", "32", "48", "--batch-size", "2", "--rounds", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("step", ["four-widths", "gradual"])
def test_a_step_is_timed(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "cost.jsonl"
    monkeypatch.setattr(sys, "argv", ["steps", step, *SMALL, "--output", str(output)])
    steps.main()
    rows = report(output)["rows"]
    assert rows and all(row["ratio"] > 0 for row in rows)


def test_a_quick_run_of_mgd_writes_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mgd_cost.jsonl"
    monkeypatch.setattr(sys, "argv", ["benchmarks/measure steps", "mgd", *SMALL, "--output", str(path)])
    steps.main()
    content = report(path)
    [row] = content["rows"]
    parts = row["student_ms"] + row["deep_ms"] + row["wide_ms"]
    assert row["student"] == "ddrnet" and row["sum_ms"] == pytest.approx(parts)
    assert row["ratio"] == pytest.approx(row["step_ms"] / parts) and min(list(row.values())[1:]) > 0
    assert content["target"] == 1.15 and "--batch-size 2" in content["command"] and content["versions"]["torch"]
    assert {json.loads(line)["seed"] for line in path.read_text().splitlines()} == {0}


def test_the_mgd_step_is_the_recipe_on_as_many_images_of_either_kind() -> None:
    options = SimpleNamespace(batch_size=2, size=(32, 48), seed=0, device="cpu", precision="fp32")
    table = {
        "students": {"s": {"model": "ddrnet", "args": {"base": 8}, "weights": {"image": 0.5, "region": 3}}},
    }
    recipe = steps.mgd_recipe(table, "s", options, "--teachers.deep.bundle=a")
    assert (recipe.objectives["image"].weight, recipe.objectives["region"].weight) == (0.5, 3)
    assert recipe.teachers["deep"].bundle == "a"
    assert (recipe.model.name, recipe.model.args) == ("ddrnet", {"base": 8})
    data = steps.build_data(recipe)
    batch = data.train_batch(0, 0)
    assert batch["image"].shape == batch["weak"].shape == (2, 3, 32, 48)  # as many without labels as with
    assert batch["mixed"].shape == (1, 2, 3, 32, 48)
