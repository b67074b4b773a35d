"""Saving and exporting while the process is killed or the disk is full: what was there stays, the next run works."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import warm


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_and_full(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    result = warm.run([Path(__file__).with_name("killed_writers.py"), tmp_path])
    assert result.returncode == 0, result.stderr  # whatever was left could be read, and written again
    trials = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(trials) == 4 + 4 + 2
    assert {trial["ended"] for trial in trials if trial["seconds"] is not None} == {"killed"}
    assert {trial["ended"] for trial in trials if trial["seconds"] is None} == {"explained"}
    assert all(name.startswith(".") for trial in trials for name in trial["left"])
