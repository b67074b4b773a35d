"""Distributed runs in which a process dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny_training
import torch
import warm
from tiny_training import STEPS

from litheseg.errors import RankError
from litheseg.training import ranks


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [tiny_training.__file__, folder, "--trainer.devices=2", *options]
    return warm.start(command, env=tiny_training.environment())


def test_of_a_killed_rank_one_line_says_which_and_how_to_go_on(tmp_path: Path) -> None:
    process = start(tmp_path, "--die-at", str(STEPS + 1), "--die-rank", "1")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.search(r"process of rank 1 \(pid \d+\) was killed by SIGKILL.*last\.ckpt is safe.*--resume", line)
    assert "Traceback" not in said and "gloo" not in said
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == STEPS
    assert not list(tmp_path.glob(".*"))


def test_others_do_not_outlive_a_killed_first_process(tmp_path: Path) -> None:
    process = start(tmp_path, "--die-at", str(STEPS + 1), "--die-rank", "0")
    _, said = process.communicate(timeout=300)  # which waits for the other one too: it has the same pipes
    assert process.returncode == -signal.SIGKILL
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.search(rf"first process of the run \(pid {process.pid}\) was killed.*--resume", line)
    assert "Traceback" not in said


def test_sigterm_of_one_rank_stops_all_and_saves(tmp_path: Path) -> None:
    """As Ctrl-C does; a scheduler sends it to any process."""
    process = start(tmp_path, "--trainer.epochs=10000")
    deadline = time.monotonic() + 240
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("the system does not list a process's children")
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.search(r"stopped in epoch \d+ of 10000; everything is saved", line) and "Traceback" not in said


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="of its own") as caught, ranks.one_voice(lambda: ""):
        raise RuntimeError("of its own")
    assert not isinstance(caught.value, RankError)
