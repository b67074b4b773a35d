"""The local engine: masks do not depend on workers, few images are in hand, nothing is lost when it ends early."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import warm
from PIL import Image

from litheseg.masks.classes import Classes
from litheseg.models import build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import slim
from litheseg.runtime import files
from litheseg.runtime.files import predict_files
from litheseg.runtime.jobs import Job
from litheseg.runtime.labeller import JobOutcome, Labeller, UnwritableError
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.storage import open_folder

CLASSES = Classes(tuple("abcde"), tuple((40 * k, 80, 200 - 40 * k) for k in range(5)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights, so that labels of neighbours differ and rounding would show."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    architecture = {"name": "ddrnet", "args": {"base": 8}}
    network = slim(build_model("ddrnet", num_classes=5, base=8), (1.0, 0.5))
    save_bundle(path, network, BundleHeader(architecture, CLASSES, widths=(1.0, 0.5), size=(64, 96)))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for number in range(40):
        small = Image.fromarray(noise.integers(0, 256, (12, 16, 3), np.uint8))
        small.resize((240 + number, 180)).save(folder / f"{number:02}.png", compress_level=1)
    return folder


def _masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def _whole_masks(folder: Path) -> dict[str, bytes]:
    """Without what is being written, or was when a process was killed."""
    return {path.name: path.read_bytes() for path in folder.glob("*.png") if not path.name.startswith(".")}


def test_masks_depend_on_neither_workers_nor_the_caller_threads(model: Path, photos: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {}
        predictor = Predictor(model, 0.5)
        some = sorted(photos.iterdir())[::8]
        for path in some:
            expected[path.name] = predictor(path)
        torch.set_num_threads(2)
        for workers in (1, 2, 3):
            out = tmp_path / str(workers)
            assert predict_files(model, some, out, width=0.5, workers=workers).written == len(some)
            assert torch.get_num_threads() == 2
            for name, mask in expected.items():
                with Image.open(out / name) as image:
                    assert np.array_equal(np.asarray(image), mask), (workers, name)
        assert len(np.unique(next(iter(expected.values())))) > 1
        assert _masks(tmp_path / "1") == _masks(tmp_path / "2") == _masks(tmp_path / "3")
    finally:
        torch.set_num_threads(before)


class _Network:
    """Stands in for a predictor; counts how many images are computed at once."""

    classes, width = CLASSES, 1.0
    header = BundleHeader({"name": "ddrnet", "args": {}}, CLASSES, widths=(1.0,), size=(64, 96))

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def predict_rgb(self, image: np.ndarray, *, width: float | None = None) -> np.ndarray:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005)
        with self._lock:
            self.now -= 1
        return np.zeros(image.shape[:2], np.uint8)


def _labeller(network: _Network, output: Path, workers: int) -> Labeller:
    return Labeller(cast("Sequence[Predictor]", [network] * workers), open_folder(output))


def _jobs(photos: Path, taken: list[int]) -> Iterator[Job]:
    for index, path in enumerate(sorted(photos.iterdir())):
        taken.append(index)
        yield Job(index, str(path), path.stem, ("mask",))


def test_workers_are_busy_and_memory_is_bounded(photos: Path, tmp_path: Path) -> None:
    network, taken = _Network(), list[int]()
    done = 0
    for _ in _labeller(network, tmp_path, 4).run(_jobs(photos, taken)):
        done += 1
        assert len(taken) - done <= 24
    assert done == 40 and network.most == 4


def test_a_caller_who_has_had_enough(photos: Path, tmp_path: Path) -> None:
    taken: list[int] = []
    outcomes = _labeller(_Network(), tmp_path, 2).run(_jobs(photos, taken))
    first = next(outcomes)
    outcomes.close()
    assert first.problem is None and len(_masks(tmp_path)) <= len(taken) < 30
    assert all(data.endswith(b"IEND\xaeB`\x82") for data in _masks(tmp_path).values())


def test_results_that_cannot_be_written_end_the_run(photos: Path, tmp_path: Path) -> None:
    taken: list[int] = []
    (tmp_path / "out").mkdir()
    labeller = _labeller(_Network(), tmp_path / "out", 2)
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UnwritableError, match="cannot write"):
        list(labeller.run(_jobs(photos, taken)))
    assert len(taken) < 30


def test_outcomes_name_their_jobs(photos: Path, tmp_path: Path) -> None:
    jobs = [Job(7, str(photos / "00.png"), "x", ("mask", "overlay")), Job(9, "no.png", "y", ("mask",))]
    outcomes = sorted(_labeller(_Network(), tmp_path, 1).run(jobs), key=lambda outcome: outcome.index)
    assert outcomes[0] == JobOutcome(7) and outcomes[1].index == 9 and "no.png" in str(outcomes[1].problem)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "x_overlay.png"]


def test_default_workers_are_the_cores_of_this_process(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    monkeypatch.setattr(files, "cores", lambda: 4)
    monkeypatch.setattr(files, "_engine", lambda *given: (used.append(given[3]), lambda _: (_ for _ in ()))[1])
    for threads in (1, 2, 8):
        predict_files("model", photos, tmp_path / "out", threads=threads)
    assert used == [4, 2, 1]


@pytest.fixture
def spoiled(photos: Path, tmp_path: Path) -> Path:
    """The photos, and among them ten files that are none."""
    folder = Path(shutil.copytree(photos, tmp_path / "spoiled"))
    for number in range(10):
        (folder / f"{4 * number:02}_broken.png").write_text("no image")
    return folder


def _failed(folder: Path) -> list[str]:
    """Of whole lines of JSON only."""
    text = (folder / "failed.jsonl").read_text()
    assert text.endswith("\n")
    return [Path(json.loads(line)["image"]).name for line in text.splitlines()]


def _stopped(model: Path, photos: Path, out: Path, signals: int) -> tuple[int, str]:
    """Begin to predict in another process, and send it a signal in the middle; exit status and what it said."""
    process = warm.start(["-m", "litheseg", "predict", model, photos, "--output", out, "--workers", "1"])
    while (len(_whole_masks(out)) < 5 or not (out / "failed.jsonl").exists()) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signals)
    _, error = process.communicate()
    return process.returncode, error


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_and_started_again(model: Path, spoiled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, error = _stopped(model, spoiled, out, signal.SIGKILL)
    assert status == -signal.SIGKILL, error
    before = {name: (out / name).stat() for name in _whole_masks(out)}
    known = _failed(out)
    assert 5 <= len(before) < 40 and 1 <= len(known) < 10
    with (out / "failed.jsonl").open("a") as file:
        file.write('{"image": "cut o')  # what a power cut may leave
    summary = predict_files(model, spoiled, out)
    assert (summary.written, summary.skipped, len(summary.failed)) == (40 - len(before), len(before), 10)
    assert _failed(out) == [f"{4 * number:02}_broken.png" for number in range(10)]
    for name, entry in before.items():  # written once: not touched again
        assert ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) == (entry.st_ino, entry.st_mtime_ns)
    predict_files(model, spoiled, tmp_path / "whole")
    masks = _whole_masks(out)
    assert masks == _masks(tmp_path / "whole") and len(masks) == 40


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM")
def test_sigterm_ends_in_order(model: Path, spoiled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, error = _stopped(model, spoiled, out, signal.SIGTERM)
    assert status == 143 and "stopped by SIGTERM" in error and "of 50 images done; the same command goes on" in error
    assert "Traceback" not in error
    assert 5 <= len(_masks(out)) < 40 and _masks(out) == _whole_masks(out)  # no half-written files either
    assert 1 <= len(_failed(out)) < 10
    assert len(predict_files(model, spoiled, out).failed) == len(_failed(out)) == 10
