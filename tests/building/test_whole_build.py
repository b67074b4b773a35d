"""Whole builds of a tiny network: what they leave, how they go on, and what they refuse."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_training
import warm
from tiny_channels import SIZE, folder, scene
from tiny_training import same_weights

from litheseg import machine
from litheseg.budget import choose
from litheseg.budget.fit import fit
from litheseg.building import effort, stages, trials
from litheseg.building.result import BuildResult, read_result
from litheseg.cli import main
from litheseg.data.sources.streets import make_streets
from litheseg.errors import LithesegError
from litheseg.models.bundle import load_bundle, model_digest
from litheseg.runtime import kit
from litheseg.runtime.predictor import Predictor
from litheseg.training import run
from litheseg.training.task import SegmentationTask

FIELDS = (
    "--model.name=tiny",
    "--data.size=[32,32]",
    "--data.crop=[32,32]",
    "--data.batch_size=2",
    "--widths=[1.0,0.5]",
    "--trainer.epochs=3",
    "--trainer.accelerator=cpu",
    "--trainer.threads=1",
    "--trainer.loggers=[csv]",
)


def quick(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Fits of a second: in PyTorch, one thread, no long proof."""
    patch.setattr(choose, "PROOF_MS", 1)
    patch.setattr(machine, "_AGAIN", 0.0)
    patch.setattr(trials, "_RUNTIMES", ("torch",))
    short = partial(fit, runtime=("torch",), precision=("fp32",), threads=(1,), sizes=((32, 32),))
    patch.setattr(stages, "fit", short)
    patch.setenv("LITHESEG_CACHE", str(cache))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., BuildResult]:
    quick(monkeypatch, tmp_path / "cache")
    return partial(stages.build, output=tmp_path / "out")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "streets"
    make_streets(folder, train=8, val=2, size=(32, 32))
    return folder


class Whole(NamedTuple):
    """A build from the first command to the last file, after one that was refused; the seconds that it took."""

    result: BuildResult
    refused: str
    seconds: float


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    (place / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, place / "cache")
        with pytest.raises(LithesegError) as refused:
            stages.build(place / "empty", minutes=1.0, output=place / "out")
        begin = time.monotonic()
        result = stages.build(data, *FIELDS, minutes=30.0, budget=1000.0, output=place / "out")
    return Whole(result, str(refused.value), time.monotonic() - begin)


@pytest.fixture
def copied(whole: Whole, tmp_path: Path) -> BuildResult:
    """A copy, in the folder in which `build` works."""
    return read_result(Path(shutil.copytree(whole.result.folder, tmp_path / "out")))


def test_a_build_from_a_folder_to_a_network(
    build: Any, data: Path, copied: BuildResult, tmp_path: Path, capsys: Any
) -> None:
    result, out = copied, tmp_path / "out"
    assert {
        "plan.yaml",
        "fingerprint.json",
        "training",
        "fit.json",
        "build.json",
        "frontier.png",
        "report.html",
    } <= set(os.listdir(out))
    page = (out / "report.html").read_text()
    assert result.sentence in page and "trainer.minutes" in page
    assert set(result.scores) == {1.0, 0.5} and 0 <= result.scores[0.5]["miou"] <= 1
    assert result.scores.worst_class(1.0)[1] == min(iou for iou in result.scores[1.0]["iou"] if iou is not None)
    assert result.promise["milliseconds"] <= 1000 and result.sentence.startswith("width ")
    photo = next((data / "images" / "val").iterdir())
    chosen = Predictor(str(result.deployed), width=result.promise["width"])
    assert np.array_equal(result.predict(photo), chosen(str(photo)))
    assert result.show([photo]).size[0] > 32 and result.frontier().size[0] > 100
    assert "mIoU" in str(result.scores) and not result.cross_validated and "cross-validated" not in repr(result)
    assert result.save(tmp_path / "copy").read_bytes() == result.bundle.read_bytes()
    before = (out / "build.json").stat().st_mtime_ns
    assert build(data, *FIELDS, minutes=30.0, budget=1000.0) == result
    assert (out / "build.json").stat().st_mtime_ns == before, "nothing is done twice"
    build(data, *FIELDS, minutes=30.0, budget=900.0)
    assert json.loads((out / "fit.json").read_text())["limits"]["milliseconds"] == 900, "only the choice is made anew"
    with pytest.raises(
        LithesegError, match=r"begun with other wishes: overrides was .*; give those, or choose another"
    ):
        build(data, *FIELDS, "--trainer.seed=1", minutes=30.0, budget=900.0)


def test_the_plan_is_made_where_nothing_is_given(
    build: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that takes long for a step, so that few are planned, whatever else this one does."""
    monkeypatch.setattr(effort, "_WANTED", 30)
    monkeypatch.setattr(stages, "step_seconds", lambda *_: {4: 10.0, 2: 3.0, 1: 1.6})
    left = [
        field for field in FIELDS if not field.startswith(("--data.size", "--data.crop", "--widths", "--trainer.ep"))
    ]
    build(data, *left, "--data.steps=2", minutes=6.0)
    text = (tmp_path / "out" / "plan.yaml").read_text()
    assert "data.size: [32, 32]  # the images' own size" in text and "trainer.epochs: " in text
    assert not (tmp_path / "out" / "trials").exists()


def test_finish_ends_training_early(build: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "train", dying_after(2))
    fields = [*FIELDS, "--trainer.epochs=50"]
    with pytest.raises(RuntimeError, match="power cut"):
        build(data, *fields, minutes=30.0)
    monkeypatch.setattr(stages, "train", run.train)
    result = build(data, *fields, minutes=30.0, finish=True)
    rows = (result.folder / "training" / "metrics.csv").read_text().splitlines()
    assert len(rows) - 1 == 3, "the two epochs that were there, and one in which the learning rate falls to 0"


def dying_after(epochs: int) -> Callable[..., Any]:
    def train(*args: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:

            def die(task: SegmentationTask) -> None:
                if task.current_epoch == epochs:
                    raise RuntimeError("power cut")

            patch.setattr(SegmentationTask, "on_train_epoch_start", die)
            return run.train(*args, **options)

    return train


def test_another_machine_is_chosen_for_from_its_timings(
    build: Any, data: Path, copied: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = tmp_path / "measurements.json"
    with pytest.raises(LithesegError, match=r"build first without --target, then `litheseg measure"):
        build(data, *FIELDS, minutes=30.0, target=timings, output=tmp_path / "none")
    rows = [
        {"width": width, "size": [32, 32], "precision": "fp32", "runtime": "torch", "threads": 1, "ms": [ms] * 120}
        for width, ms in ((1.0, 70.0), (0.5, 40.0))
    ]
    facts = {"litheseg": "measurements", "schema": kit.SCHEMA, "model": model_digest(load_bundle(copied.bundle))}
    timings.write_text(json.dumps({**facts, "host": {"cpu": "a box"}, "fps": None, "rows": rows}))
    monkeypatch.setattr(stages, "fit", fit)
    chosen = build(data, *FIELDS, minutes=30.0, budget=50.0, target=timings).promise
    assert chosen["width"] == 0.5 and chosen["milliseconds"] == 40


# --- what is refused -------------------------------------------------------------------------------------------------


def test_data_with_errors_is_refused_before_anything_takes_time(build: Any, data: Path, whole: Whole) -> None:
    assert "empty" in whole.refused
    assert isinstance(whole.result, BuildResult), "the folder is free for another try"
    with pytest.raises(LithesegError, match=r"unknown option --trainer.epoch\..*--trainer.epochs"):
        build(data, "--trainer.epoch=3")


def test_a_folder_with_something_else_is_left_alone(build: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("\\begin")
    with pytest.raises(LithesegError, match="holds something else"):
        build(data, minutes=1.0)
    with pytest.raises(LithesegError, match="holds no finished build"):
        read_result(tmp_path / "out")


def test_no_network_in_the_budget(build: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(data), *FIELDS[:1], "--data.batch_size=2", "--trainer.accelerator=cpu", "--trainer.threads=1"]
    assert main([*words, "--budget", "1us", "--output", str(tmp_path / "out")]) == 2
    assert "no network is as fast as 0.001 ms here: the nearest" in capsys.readouterr().err


# --- a build that is killed ------------------------------------------------------------------------------------------

KILLED = """
import json, os, pathlib, signal, sys, time
sys.path.insert(0, sys.argv[4])
import pytest
import tiny_training
from test_whole_build import FIELDS, quick
from litheseg.building import stages
import litheseg.training.run

quick(pytest.MonkeyPatch(), pathlib.Path(sys.argv[5]))
data, output, delays = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for delay in [*delays, None]:
    child = os.fork()
    if not child:
        try:
            stages.build(data, *FIELDS, budget=1000.0, minutes=30.0, output=output)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in ((0, -signal.SIGKILL) if delay is not None else (0,)), code
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_the_same_network(
    data: Path, whole: Whole, tmp_path: Path, kills: int
) -> None:
    moments = random.Random(0)
    delays = sorted(moments.uniform(0, whole.seconds) for _ in range(kills))
    here, folder = os.path.dirname(__file__), tmp_path / "killed"
    script = ["-c", KILLED, data, folder, json.dumps(delays), here, tmp_path / "cache"]
    done = warm.run(script, timeout=900, env=tiny_training.environment())
    assert done.returncode == 0, done.stderr
    again, once = read_result(folder), whole.result
    assert same_weights(once.folder / "training", again.folder / "training")
    assert again.promise["width"] == once.promise["width"] and again.promise["miou"] == once.promise["miou"]
    assert not list(folder.rglob(".*.safetensors")), "no drafts are left"


def test_images_of_five_channels_of_16_bits(build: Any, tmp_path: Path) -> None:
    root = folder(tmp_path / "data", 5, "uint16", ".tif")
    result = build(root, *FIELDS, minutes=30.0, budget=1000.0)
    header = load_bundle(result.bundle).header
    assert (header.images.kind, header.architecture["args"]["in_channels"]) == ((5, "uint16"), 5)
    image, _ = scene(99, 5, "uint16")
    assert result.predict(image).shape == SIZE and result.show([image]).mode == "RGB"
