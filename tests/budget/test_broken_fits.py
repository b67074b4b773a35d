"""Fits that are killed, and two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training

from litheseg.budget import choose
from litheseg.budget.measure import store_folder
from litheseg.cli import main
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, load_bundle

KILLED = """
import os, signal, sys
import tiny_budget
from litheseg.budget import choose, fit, measure
from litheseg.cli import main

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

choose.PROOF_MS = 1
where, save = sys.argv[1], measure.Store.save_samples
if where == "timing":
    measure.Store.save_samples = lambda self: (save(self), die())
else:
    fit.FitResult.draw = die
main(sys.argv[2:])
"""


def words(bundle: Bundle, tmp_path: Path) -> list[str]:
    fast = [
        "--budget",
        "10s",
        "--percentile",
        "50",
        "--sizes",
        "32x48",
        "--threads",
        "1",
        "--runtime",
        "torch",
        "--widths",
        "1,.5",
    ]
    return ["fit", str(bundle.path), *fast, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]


@pytest.mark.parametrize("where", ["timing", "writing"])
def test_a_killed_fit_goes_on_with_the_same_command(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(choose, "PROOF_MS", 1)
    command = words(bundle, tmp_path)
    script = [sys.executable, "-c", KILLED, where, *command]
    killed = subprocess.run(script, capture_output=True, text=True, timeout=300, env=tiny_training.environment())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [timings] = (tmp_path / "cache").rglob("timings-*.json")
    assert json.loads(timings.read_text())["entries"]  # whole, and remembered
    assert not (tmp_path / "out" / "fit.json").exists()
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["litheseg"] == "fit"
    assert load_bundle(tmp_path / "out" / "model.safetensors").header.widths == bundle.header.widths
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("what", ["output", "cache"])
def test_two_fits_do_not_share(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    held = tmp_path / "out" if what == "output" else store_folder(bundle, tmp_path / "cache")
    with folder_lock(held):
        assert main(words(bundle, tmp_path)) == 2
    assert f"{held} is in use by process {os.getpid()}" in capsys.readouterr().err
