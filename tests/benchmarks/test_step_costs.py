"""The scripts that time training steps run with today's recipes, at a tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gradual_cost
import pytest
import step_cost

SMALL = ["--size", "32", "48", "--batch-size", "2", "--rounds", "1", "--device", "cpu"]


@pytest.mark.parametrize("script", [gradual_cost, step_cost])
def test_a_step_is_timed(script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "cost.json"
    monkeypatch.setattr(sys, "argv", ["cost.py", *SMALL, "--output", str(output)])
    script.main()  # type: ignore[attr-defined]
    rows = json.loads(output.read_text())["rows"]
    assert rows and all(row["ratio"] > 0 for row in rows)
