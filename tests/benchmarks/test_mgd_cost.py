"""The cost of an MGD step: what is measured, and the report's form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mgd_cost
import pytest
import torch


def test_a_quick_run_writes_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, path = torch.get_num_threads(), tmp_path / "report.json"
    words = ["mgd_cost.py", "--size", "32", "48", "--batch-size", "2", "--rounds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(path)])
    try:
        mgd_cost.main()
    finally:
        torch.set_num_threads(threads)
    report = json.loads(path.read_text())
    [row] = report["rows"]
    parts = row["student_ms"] + row["deep_ms"] + row["wide_ms"]
    assert row["student"] == "ddrnet" and row["sum_ms"] == pytest.approx(parts)
    assert row["ratio"] == pytest.approx(row["step_ms"] / parts) and min(list(row.values())[1:]) > 0
    assert report["target"] == 1.15 and "--batch-size 2" in report["command"] and report["versions"]["torch"]


def test_the_step_is_the_recipe_on_as_many_images_of_either_kind() -> None:
    options = SimpleNamespace(batch_size=2, size=(32, 48), seed=0, device="cpu", precision="fp32")
    table = {
        "students": {"s": {"model": "ddrnet", "args": {"base": 8}, "weights": {"image": 0.5, "region": 3}}},
    }
    recipe = mgd_cost.recipe_of(table, "s", options, "--mgd.deep.bundle=a")
    assert (recipe.mgd.deep.image, recipe.mgd.wide.region, recipe.mgd.deep.bundle) == (0.5, 3, "a")
    assert (recipe.model.name, recipe.model.args) == ("ddrnet", {"base": 8})
    data = mgd_cost.build_data(recipe)
    batch = data.train_batch(0, 0)
    assert batch["image"].shape == batch["weak"].shape == (2, 3, 32, 48)  # as many without labels as with
    assert batch["mixed"].shape == (1, 2, 3, 32, 48)
