"""Runs that meet a full disk or are killed while they write, and what a second process finds."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
import warm
from tiny_training import ARGUMENTS, STEPS, act_at, same_weights, train_tiny

from litheseg import cli
from litheseg.errors import FolderInUseError, TrainingError
from litheseg.training import run as room
from litheseg.training import storage
from litheseg.training.run import finish
from litheseg.training.task import SegmentationTask

TENSORBOARD = "--trainer.loggers=[csv,tensorboard]"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_tiny(folder)
    return folder


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system itself refuses to write more than `size` bytes to any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def step_of(folder: Path) -> int:
    step = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert isinstance(step, int)
    return step


# --- full disks ------------------------------------------------------------------------------------------------------


def test_a_bundle_that_cannot_be_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(*args: Any, **options: Any) -> Any:
        with largest_file(10_000):
            return finish(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(room, "finish", limited)
        with pytest.raises(TrainingError, match=r"cannot write .*model\.safetensors.*last\.ckpt is safe.*--resume"):
            train_tiny(tmp_path)
    assert step_of(tmp_path) == 2 * STEPS and not drafts(tmp_path) and not (tmp_path / "model.safetensors").exists()
    train_tiny(tmp_path, resume=True)
    assert same_weights(whole, tmp_path)


def test_a_checkpoint_that_cannot_be_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(loss: torch.Tensor) -> torch.Tensor:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        return loss

    try:
        with monkeypatch.context() as patch:
            patch.setattr(SegmentationTask, "training_step", act_at(STEPS + 1, fill))
            with pytest.raises(TrainingError, match=r"cannot write .*\.ckpt.*last\.ckpt is safe.*--resume"):
                train_tiny(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert step_of(tmp_path) == STEPS and not drafts(tmp_path)
    train_tiny(tmp_path, resume=True)
    assert same_weights(whole, tmp_path)


def test_curves_that_cannot_be_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage.csv.DictWriter, "writerows", no_space)
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(TrainingError, match=r"cannot write .*metrics\.csv: No space left on device"):
            train_tiny(tmp_path)
    assert not drafts(tmp_path) and signal.getsignal(signal.SIGTERM) is handler
    train_tiny(tmp_path, resume=True)
    assert same_weights(whole, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tensorboard_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", no_space)
        with pytest.raises(TrainingError, match="No space left on device; mend that"):
            train_tiny(tmp_path, TENSORBOARD)
    train_tiny(tmp_path, TENSORBOARD, resume=True)
    assert (tmp_path / "model.safetensors").exists()


def test_a_report_that_cannot_be_written_does_not_hide_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", *ARGUMENTS, "--trainer.epochs=1", "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", no_space)
        assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"error: cannot write .*png: No space.*model is whole, .*model\.safetensors.*--resume writes", said
    )
    assert cli.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run" / "report.html").exists()


# --- killed ----------------------------------------------------------------------------------------------------------


def test_killed_while_it_writes_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    script = [tiny_training.__file__, tmp_path, "--die-writing", ".last"]
    killed = warm.run(script, env=tiny_training.environment())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert step_of(tmp_path) == STEPS
    assert [path.name[:6] for path in drafts(tmp_path / "checkpoints")] == [".last."]
    train_tiny(tmp_path, resume=True)
    assert same_weights(whole, tmp_path)
    assert not drafts(tmp_path)


def test_what_a_user_keeps_in_the_folder_is_no_draft(tmp_path: Path) -> None:
    kept = (".gitignore", ".notes.yaml", "a.0123abcd.ckpt", ".last.01.ckpt")
    for name in (*kept, ".last.0123abcd.ckpt"):
        (tmp_path / name).touch()
    storage.remove_drafts(tmp_path, tmp_path / "absent")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


# --- two at once -----------------------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without --resume, while the first one trains; which then ends as if nothing had been."""
    seen = []

    def another(loss: torch.Tensor) -> torch.Tensor:
        monkeypatch.undo()
        for resume in (False, True):
            with pytest.raises(FolderInUseError, match=f"in use by process {os.getpid()} .*stop it"):
                train_tiny(tmp_path, "--trainer.epochs=1", resume=resume)
            seen.append(resume)
        return loss

    monkeypatch.setattr(SegmentationTask, "training_step", act_at(1, another))
    train_tiny(tmp_path, "--trainer.epochs=1")
    assert seen == [False, True] and not drafts(tmp_path)


def test_the_command_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from litheseg.locks import folder_lock

    with folder_lock(tmp_path / "run"):
        assert cli.main(["train", *ARGUMENTS, "--output", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / 'run'} is in use by process {os.getpid()}")


def test_ranks_on_other_machines_do_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a second machine is not the first of the run, which holds the shared folder."""
    monkeypatch.setenv("NODE_RANK", "1")
    with room._own_folder(tmp_path, tiny_training.tiny_recipe(), False):
        assert not drafts(tmp_path)
