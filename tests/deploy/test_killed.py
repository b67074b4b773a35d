"""Saving and exporting while the process is killed or the disk is full: what was there stays, the next run works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_and_full(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    here = Path(__file__)
    places = os.pathsep.join([str(here.parents[1]), str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(here.with_name("killed_writers.py")), str(tmp_path)]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr  # whatever was left could be read, and written again
    trials = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(trials) == 4 + 4 + 2
    assert {trial["ended"] for trial in trials if trial["seconds"] is not None} == {"killed"}
    assert {trial["ended"] for trial in trials if trial["seconds"] is None} == {"explained"}
    assert all(name.startswith(".") for trial in trials for name in trial["left"])
