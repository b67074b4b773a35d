from __future__ import annotations

import csv
import dataclasses
import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
import warm
from tiny_training import STEPS, act_at, same_weights, tiny_recipe, train_tiny, weights
from torch import nn

from litheseg.errors import DataError, Interrupted, MissingExtraError, TrainingError
from litheseg.evaluation.metrics import Scores, SegmentationMetrics
from litheseg.models.bundle import load_bundle
from litheseg.nn import extract, slim
from litheseg.progress import shown
from litheseg.training import layout
from litheseg.training.build import build_data, build_task
from litheseg.training.run import plain_norms, train
from litheseg.training.streams import LABELLED, Step
from litheseg.training.task import SegmentationTask
from litheseg.training.trainer import build_trainer

EMA = "--trainer.ema=0.5"


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """Whatever started the tests may have them ignore Ctrl-C, as a shell does with a command in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two epochs, with averaged weights."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_tiny(folder, EMA)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def make_scores_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each score that is computed is lower than the one before."""
    compute, calls = SegmentationMetrics.compute, []

    def worse_each_time(metrics: SegmentationMetrics) -> Scores:
        calls.append(metrics)
        return dataclasses.replace(compute(metrics), miou=1 / len(calls))

    monkeypatch.setattr(SegmentationMetrics, "compute", worse_each_time)


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_bundle_checkpoints_and_curves(finished: Path) -> None:
    header = load_bundle(finished / "model.safetensors").header
    assert header.widths == (1.0, 0.5)
    assert set(header.metrics) == {"1", "0.5"}
    assert 0 <= header.metrics["0.5"]["miou"] <= 1 and header.metrics["0.5"]["params"] > 0
    assert [row["epoch"] for row in rows(finished)] == ["0", "1"]
    assert all(float(row["val/miou@0.5"]) >= 0 and float(row["train/kl@0.5"]) >= 0 for row in rows(finished))
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert not leftovers(finished)


def test_the_same_recipe_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    train_tiny(tmp_path / "again", EMA)
    assert same_weights(finished, tmp_path / "again")


def test_averaged_weights_are_validated_and_kept(finished: Path) -> None:
    last, best = checkpoint(finished), checkpoint(finished, "best")
    kept = weights(finished)
    name = "classifier.weight"
    assert torch.equal(kept[name], last["state_dict"][f"model.{name}"])
    assert not torch.equal(kept[name], last["current_model_state"][f"model.{name}"])
    assert not torch.equal(best["state_dict"][f"model.{name}"], best["current_model_state"][f"model.{name}"])
    statistics = "stem.1.norms.1.running_mean"
    assert not torch.equal(kept[statistics], last["current_model_state"][f"model.{statistics}"])
    scores = load_bundle(finished / "model.safetensors").header.metrics
    assert float(rows(finished)[-1]["val/miou@0.5"]) == pytest.approx(scores["0.5"]["miou"], abs=1e-6)


def test_the_best_epoch_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scores_fall(monkeypatch)
    train_tiny(tmp_path, "--trainer.keep=best")
    best = checkpoint(tmp_path, "best")
    assert best["epoch"] == 0
    assert torch.equal(weights(tmp_path)["classifier.weight"], best["state_dict"]["model.classifier.weight"])


def test_the_last_epoch_is_always_validated(tmp_path: Path) -> None:
    train_tiny(tmp_path, "--trainer.epochs=3", "--trainer.val_every=2", name="supervised")
    assert [bool(row["val/miou"]) for row in rows(tmp_path)] == [False, True, True]


def test_training_stops_early_and_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scores_fall(monkeypatch)
    options = ("--trainer.epochs=9", "--trainer.early_stop=2")
    train_tiny(tmp_path, *options)
    assert len(rows(tmp_path)) == 3
    before = weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    train_tiny(tmp_path, *options, resume=True)
    assert len(rows(tmp_path)) == 3
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())


@pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU.*")
@pytest.mark.parametrize(
    "options",
    [
        ("--trainer.precision=bf16-mixed", "--trainer.channels_last=false", "--optimizer.clip=1"),
        ("--trainer.precision=16-mixed", "--optimizer.name=sgd", "--optimizer.schedule=one-cycle"),
        (
            "--objectives.labels.loss=ohem",
            "--objectives.dice.loss=dice",
            "--objectives.lovasz.loss=lovasz",
            "--objectives.head.loss=boundary-head",
            "--objectives.cwd={loss: channel-wise, teacher: wider, weight: 3}",
        ),
        ("--teachers.wider.kind=ema", "--objectives.labels.widths=widest", "--calibrate=[0.75]", "--model.divisor=4"),
        ("--widths=[1,.75,.5,.25]", "--sandwich=1", "--model.divisor=4"),
    ],
    ids=lambda options: options[0],
)
def test_options_train(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = train_tiny(tmp_path, "--trainer.epochs=1", *options)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())
    assert len(result.scores) == 3 if "calibrate" in str(options) else len(result.scores) in (2, 4)


def taught_by(run: Path) -> str:
    return f"--teachers.wider={{kind: frozen, bundle: {run / 'model.safetensors'}}}"


def test_a_bundle_teaches(finished: Path) -> None:
    recipe = tiny_recipe(taught_by(finished), "--teachers.wider.width=0.5")
    teacher = build_task(recipe, build_data(recipe)).teachers["wider"].model.state_dict()
    own = extract(load_bundle(finished / "model.safetensors").model(), 0.5).state_dict()
    assert teacher.keys() == own.keys()
    assert all(torch.equal(teacher[name], value) for name, value in own.items())


@pytest.mark.parametrize("averaged", [(), (EMA,)], ids=["plain", "averaged"])
def test_checkpoints_leave_a_finished_teacher_out(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, averaged: tuple[str, ...]
) -> None:
    """It has a file of its own, and may be many times the student."""
    options = (taught_by(finished), *averaged)
    train_tiny(tmp_path / "whole", *options)
    saved = checkpoint(tmp_path / "whole")
    states = [saved["state_dict"], *([saved["current_model_state"]] if averaged else [])]
    assert all(not name.startswith("teachers.") for state in states for name in state)
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="not enough memory"):
        patch.setattr(SegmentationTask, "training_step", act_at(STEPS + 1, out_of_memory))
        train_tiny(tmp_path / "broken", *options)
    train_tiny(tmp_path / "broken", *options, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("gains", [True, False])
def test_a_bundle_teaches_in_bfloat16_where_that_is_faster(
    finished: Path, monkeypatch: pytest.MonkeyPatch, gains: bool
) -> None:
    monkeypatch.setattr(layout, "has_bfloat16", lambda device: gains and device.type == "cpu")
    recipe = tiny_recipe(taught_by(finished))
    data = build_data(recipe)
    teacher = build_task(recipe, data).teachers["wider"]
    seen = []
    teacher.model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    teacher.begin(Step.of(data.train_batch(0, 0)))
    assert teacher.output(1.0, LABELLED)["logits"].dtype == torch.float32
    assert seen == [torch.bfloat16 if gains else torch.float32]


@pytest.mark.slow
def test_training_can_be_compiled(tmp_path: Path) -> None:
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    # Compiled dropout draws other numbers, and Adam blows up rounding where gradients are near 0.
    options = ("--trainer.epochs=1", EMA, "--model.args={dropout: 0}", "--optimizer.name=sgd")
    train_tiny(plain, *options)
    train_tiny(compiled, *options, "--trainer.compile=true")
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(compiled)[name], rtol=1e-3, atol=1e-4)


def test_loggers(tmp_path: Path) -> None:
    train_tiny(tmp_path, "--trainer.epochs=1", "--trainer.loggers=[tensorboard]", name="supervised")
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert not (tmp_path / "metrics.csv").exists()


def test_mlflow_keeps_one_run_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    loggers = "--trainer.loggers=[csv, mlflow]"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(SegmentationTask, "training_step", act_at(STEPS + 1, lambda loss: loss * (1 // 0)))
        train_tiny(tmp_path / "run", loggers)
    train_tiny(tmp_path / "run", loggers, resume=True)
    client = tracking.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("litheseg").experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["optimizer/lr"] == "0.001"
    logged = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "val/miou_0.5")}
    assert logged == {int(row["step"]): float(row["val/miou@0.5"]) for row in rows(tmp_path / "run")}


def test_an_absent_logger_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(**_: Any) -> None:
        raise ModuleNotFoundError("wandb")

    monkeypatch.setattr("litheseg.training.trainer.WandbLogger", absent)
    with pytest.raises(MissingExtraError, match=r"litheseg\[wandb\]"):
        train_tiny(tmp_path, "--trainer.loggers=[wandb]")
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with pytest.raises(MissingExtraError, match=r"litheseg\[mlflow\]"):
        train_tiny(tmp_path, "--trainer.loggers=[mlflow]")
    assert not (tmp_path / "recipe.yaml").exists()


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("litheseg.progress._FIRST", 0.0)
    with shown():
        train_tiny(tmp_path, "--trainer.epochs=1")
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = {line.split()[0]: line for line in printed.err.splitlines()}
    assert lines["device"].split()[1] == "cpu" and ", 1 thread, 32-true" in lines["device"]
    assert lines["images"].split(maxsplit=1)[1] == "8 labelled, 2 to validate on (streets)"
    assert lines["steps"].split(maxsplit=1)[1] == "4: 1 epochs of 4, validated every 1"
    assert lines["widths"].split(maxsplit=1)[1] == "1, 0.5" and "32x32" in lines["size"]
    epoch = lines["epoch"]
    assert epoch.startswith("epoch 1/1") and epoch.index("miou@1 ") < epoch.index("miou@0.5 ") < epoch.index("worst ")
    assert re.match(r"training, steps 4/4, epoch 1 of 1, loss \d+\.\d+, done in 0:0\d", lines["training,"])
    assert re.match(r"scoring 2 widths, batches 1/1, done", lines["scoring"])


def test_distributed_options_reach_the_trainer(tmp_path: Path) -> None:
    trainer = build_trainer(tiny_recipe("--trainer.devices=2", "--trainer.nodes=3"), tmp_path, resumed=False)
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (2, 3, 6)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"]  # type: ignore[attr-defined]


def test_synchronised_norms_come_back_as_plain_ones() -> None:
    model = slim(tiny_training.tiny(3), (1.0, 0.5))
    before = dict(model.state_dict())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    assert type(extract(model, 0.5).stem[1]) is nn.BatchNorm2d
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 8, 8))
        plain_norms(model)
        assert not [layer for layer in model.modules() if isinstance(layer, nn.SyncBatchNorm)]
        assert torch.equal(model(torch.ones(1, 3, 8, 8)), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- cut off and gone on with ----------------------------------------------------------------------------------------


def test_a_killed_run_resumes_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    script = [tiny_training.__file__, tmp_path, "--die-at", STEPS + 1, EMA]
    killed = warm.run(script, env=tiny_training.environment())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint(tmp_path)["global_step"] == STEPS and not (tmp_path / "model.safetensors").exists()
    train_tiny(tmp_path, EMA, resume=True)
    assert same_weights(finished, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("step", "number"),
    [(1, signal.SIGINT), (STEPS - 1, signal.SIGINT), (STEPS + 1, signal.SIGTERM), (2 * STEPS - 1, signal.SIGINT)],
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals
) -> None:
    def interrupt(loss: torch.Tensor) -> torch.Tensor:
        monkeypatch.undo()
        signal.raise_signal(number)
        return loss

    handler = signal.getsignal(number)
    monkeypatch.setattr(SegmentationTask, "training_step", act_at(step, interrupt))
    with pytest.raises(Interrupted, match="--resume") as caught:
        train_tiny(tmp_path, EMA)
    assert caught.value.exit_status == 128 + number and signal.getsignal(number) is handler
    assert checkpoint(tmp_path)["global_step"] == step + 1
    train_tiny(tmp_path, EMA, resume=True)
    assert same_weights(finished, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [row["step"] for row in rows(finished)]


def test_a_second_interrupt_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(loss: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return loss

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(SegmentationTask, "training_step", act_at(0, interrupt))
    try:
        with pytest.raises(Interrupted, match="no epoch has been saved"):
            train_tiny(tmp_path)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_run_killed_before_its_bundle_is_finished(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("litheseg.training.run.finish", fail)
        train_tiny(tmp_path, EMA)
    train_tiny(tmp_path, EMA, resume=True)
    assert same_weights(finished, tmp_path)


def test_an_averaging_teacher_and_dropout_resume_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--teachers.wider.kind=ema", "--teachers.wider.decay=0.5", "--widths=[1.0,0.5]")
    train_tiny(tmp_path / "whole", *options)
    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr(SegmentationTask, "training_step", act_at(STEPS + 1, out_of_memory))
        train_tiny(tmp_path / "broken", *options)
    train_tiny(tmp_path / "broken", *options, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


def test_resuming_where_there_is_nothing_begins(tmp_path: Path) -> None:
    train_tiny(tmp_path / "new", "--trainer.epochs=1", resume=True)
    assert (tmp_path / "new" / "model.safetensors").exists()


# --- what ends a run -------------------------------------------------------------------------------------------------


def out_of_memory(_: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_memory_on_the_cpu(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda loss: loss * float("nan"), r"loss became nan.*--optimizer\.lr"),
        (
            lambda loss: loss * float("inf"),
            r"loss became nan.*epoch 2.*peak learning rate of 0\.001",
        ),
        (out_of_memory, r"not enough memory for a batch of 2; lower --data\.batch_size.*--resume"),
        (no_memory_on_the_cpu, r"not enough memory for a batch of 2"),
    ],
)
def test_failures_are_clear_and_leave_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Any, message: str
) -> None:
    monkeypatch.setattr(SegmentationTask, "training_step", act_at(STEPS + 2, action))
    with pytest.raises(TrainingError, match=message):
        train_tiny(tmp_path)
    for name in ("last", "best"):
        kept = checkpoint(tmp_path, name)
        assert kept["global_step"] == STEPS
        assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())
    assert not leftovers(tmp_path) and not (tmp_path / "model.safetensors").exists()


def test_interrupting_a_broken_run_does_not_replace_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_and_interrupt(loss: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        return loss * float("nan")

    monkeypatch.setattr(SegmentationTask, "training_step", act_at(STEPS + 1, break_and_interrupt))
    with pytest.raises(TrainingError, match="became nan"):
        train_tiny(tmp_path)
    assert checkpoint(tmp_path)["global_step"] == STEPS


def test_a_full_disk_keeps_the_checkpoint_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_bytes, []

    def fill_up(path: Path, content: Any) -> int:
        written.append(path)
        if len(written) > 2:  # best and last of the first epoch fit
            write(path, bytes(content)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill_up)
        with pytest.raises(TrainingError, match=r"No space left on device; free space.*--resume"):
            train_tiny(tmp_path, EMA)
    assert checkpoint(tmp_path)["global_step"] == STEPS
    assert not leftovers(tmp_path)
    train_tiny(tmp_path, EMA, resume=True)
    assert same_weights(finished, tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train_tiny(tmp_path, "--trainer.epochs=1", name="supervised")
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"last\.ckpt is damaged"):
        train_tiny(tmp_path, "--trainer.epochs=1", name="supervised", resume=True)


# --- the folder ------------------------------------------------------------------------------------------------------


def test_an_existing_run_is_left_alone(finished: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds a run already; go on with it by --resume"):
        train_tiny(finished, EMA)
    with pytest.raises(TrainingError, match=r"begun with other settings"):
        train_tiny(finished, EMA, "--optimizer.lr=1", resume=True)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"cannot use .*file/run for the run: Not a directory; choose another"):
        train(tiny_recipe(), tmp_path / "file" / "run")


def test_bad_data_leaves_the_folder_free_for_another_try(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train_tiny(tmp_path / "run", "--data.source=folder", "--data.root=nowhere", "--data.options={}")
    assert not list((tmp_path / "run").iterdir())
