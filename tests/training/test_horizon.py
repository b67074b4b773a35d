"""The end of a run may move: in time, or because other epochs are asked for; its schedules end with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import STEPS, tiny_recipe, train_tiny

from litheseg.errors import Interrupted, TrainingError
from litheseg.progress import shown
from litheseg.training.config import TrainerConfig
from litheseg.training.horizon import Deadline, Horizon
from litheseg.training.storage import read_checkpoint
from litheseg.training.task import SegmentationTask
from litheseg.training.trainer import _StopOnInterrupt

CONSTANT_DROP = ("--optimizer.warmup=0", "--optimizer.schedule=poly")


def rate(folder: Path) -> float:
    """The learning rate after the last step of a run's checkpoint."""
    return float(read_checkpoint(folder / "checkpoints" / "last.ckpt")["lr_schedulers"][0]["_last_lr"][0])


def epochs_of(folder: Path) -> int:
    return int(read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]) // STEPS


def interrupted(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """A run that Ctrl-C stops after a step."""
    with monkeypatch.context() as patch:
        start = SegmentationTask.on_train_batch_start

        def ask(task: SegmentationTask, batch: object, index: int) -> None:
            if task.global_step == step - 1:
                next(c for c in task.trainer.callbacks if isinstance(c, _StopOnInterrupt))._asked = True
            start(task, batch, index)

        patch.setattr(SegmentationTask, "on_train_batch_start", ask)
        with pytest.raises(Interrupted):
            train_tiny(folder, *options, name="supervised")


def test_the_plan_is_the_run_until_the_end_moves() -> None:
    horizon = Horizon(10)
    assert [horizon.at(step) for step in range(-1, 12)] == [*range(-1, 11), 10]
    horizon.move_end(after=4, end=7)  # 6 steps of the plan in 3 of the run
    assert [horizon.at(step) for step in (3, 4, 5, 6, 7)] == [3, 4, 6, 8, 10]
    horizon.move_end(after=5, end=9)  # from 6 to 10 in 4
    assert [horizon.at(step) for step in (4, 5, 6, 9, 10)] == [4, 6, 7, 10, 10]
    copy = Horizon(99)
    copy.restore(horizon.state())
    assert (copy.end, copy.total) == (9, 10) and copy.at(7) == horizon.at(7)


def test_a_run_ends_in_time_with_its_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--trainer.epochs=5000", "--trainer.minutes=0.06", "--trainer.val_every=5000")
    with shown():
        train_tiny(tmp_path, *options, name="supervised")
    assert 1 <= epochs_of(tmp_path) < 5000
    assert rate(tmp_path) == pytest.approx(0.0, abs=1e-9)
    assert "would take longer than 0.06 minutes" in capsys.readouterr().err


class _Run:
    """Stands in for a trainer; time is what `pass_epoch` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.global_step, self.current_epoch = 1.0, 0, 0
        self.fit_loop = SimpleNamespace(max_epochs=20)
        self.strategy = SimpleNamespace(broadcast=lambda value: value)
        self.horizon = Horizon(200)
        self.deadline = Deadline(TrainerConfig(epochs=20, minutes=1), self.horizon, 10, 0.0)
        monkeypatch.setattr("litheseg.training.horizon.time.monotonic", lambda: self.now)
        self._call("on_train_start")

    @property
    def max_epochs(self) -> int:
        return int(self.fit_loop.max_epochs)

    def _call(self, name: str, *arguments: object) -> None:
        getattr(self.deadline, name)(self, None, *arguments)

    def pass_epoch(self, seconds: float) -> None:
        self._call("on_train_epoch_start")
        for index in range(10):
            self.now, self.global_step = self.now + seconds / 10, self.global_step + 1
            self._call("on_train_batch_end", None, None, index)
        self._call("on_train_epoch_end")
        self.current_epoch += 1


def test_epochs_that_were_given_up_are_trained_after_all_once_steps_are_fast_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = _Run(monkeypatch)
    run.pass_epoch(10)
    assert run.max_epochs == 6  # of a minute
    run.pass_epoch(1)
    assert run.max_epochs == run.horizon.end // 10 == 20  # as were asked for, and not more
    before = run.horizon.at(run.global_step)
    run.pass_epoch(1)
    assert 0 < run.horizon.at(run.global_step) - before < 10  # the rest of the plan, more slowly than planned
    while run.current_epoch < run.max_epochs:
        run.pass_epoch(1)
    assert run.max_epochs == 20 and run.horizon.at(run.global_step) == 200


def test_too_few_minutes_for_an_epoch_are_refused(tmp_path: Path) -> None:
    options = ("--data.options={train: 40, val: 2, size: [32, 32]}", "--trainer.minutes=0.0001")
    with pytest.raises(TrainingError, match=r"an epoch takes about .* and trainer.minutes is 0.0001; give at least"):
        train_tiny(tmp_path, *options, name="supervised")


def test_an_interrupted_run_goes_on_with_fewer_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, STEPS + 1, monkeypatch, "--trainer.epochs=4", *CONSTANT_DROP)
    before = rate(tmp_path)
    assert before == pytest.approx(1e-3 * (1 - (STEPS + 1) / (4 * STEPS)) ** 0.9)
    train_tiny(tmp_path, "--trainer.epochs=2", *CONSTANT_DROP, name="supervised", resume=True)
    assert epochs_of(tmp_path) == 2 and rate(tmp_path) == pytest.approx(0.0, abs=1e-9)


def test_other_epochs_change_nothing_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, STEPS + 1, monkeypatch, "--trainer.epochs=2", *CONSTANT_DROP)
    before = rate(tmp_path)
    train_tiny(tmp_path, "--trainer.epochs=3", *CONSTANT_DROP, name="supervised", resume=True)
    assert epochs_of(tmp_path) == 3 and rate(tmp_path) == pytest.approx(0.0, abs=1e-9) and before > 0


def test_a_run_that_has_ended_is_not_trained_at_no_rate(tmp_path: Path) -> None:
    train_tiny(tmp_path, "--trainer.epochs=1", name="supervised")
    with pytest.raises(TrainingError, match=r"has ended, after 1 epochs.*--init"):
        train_tiny(tmp_path, "--trainer.epochs=2", name="supervised", resume=True)


def test_what_differs_is_named(tmp_path: Path) -> None:
    train_tiny(tmp_path, "--trainer.epochs=1", name="supervised")
    with pytest.raises(
        TrainingError, match=r"other settings: optimizer.lr was 0.001 and is 0.5, trainer.seed was 0 and"
    ):
        train_tiny(
            tmp_path, "--trainer.epochs=1", "--optimizer.lr=0.5", "--trainer.seed=3", name="supervised", resume=True
        )


def test_grouping_ends_with_a_run_that_is_cut_short() -> None:
    from litheseg.training.gradual import GradualGrouping

    recipe = tiny_recipe("--grouping.shape=linear", name="supervised")
    horizon = Horizon(100)
    callback = GradualGrouping(recipe.grouping, horizon)
    horizon.move_end(after=20, end=40)
    assert callback._at(20) == (0, pytest.approx(1 - 0.1 / 0.4))  # as planned so far
    assert callback._at(39) == (0, 0.0)
    assert torch.isfinite(torch.tensor(callback._at(30)[1]))
