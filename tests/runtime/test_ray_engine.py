"""Ray's engine: the local engine's masks, bit for bit, though a worker is killed and an image kills its workers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from litheseg.errors import DataError, LithesegError, MissingExtraError, WidthError
from litheseg.masks.classes import Classes
from litheseg.masks.image_format import ImageFormat
from litheseg.models import build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import slim
from litheseg.runtime import labeller, ray_engine
from litheseg.runtime.files import Progress, predict_files
from litheseg.runtime.labeller import PredictionSettings

CLASSES = Classes(tuple("abcde"), tuple((40 * k, 80, 200 - 40 * k) for k in range(5)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    header = BundleHeader({"name": "ddrnet", "args": {"base": 8}}, CLASSES, widths=(1.0, 0.5), size=(64, 96))
    save_bundle(path, slim(build_model("ddrnet", num_classes=5, base=8), (1.0, 0.5)), header)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for number in range(100):
        small = Image.fromarray(noise.integers(0, 256, (12, 16, 3), np.uint8))
        small.resize((480, 320 + number)).save(folder / f"{number:03}.png", compress_level=1)
    (folder / "broken.png").write_text("no image")
    if sys.platform == "linux":
        (folder / "099.png").rename(folder / os.fsdecode(b"99\xe9.png"))  # no UTF-8
    return folder


@contextmanager
def _session(**environment: str) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    how = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", runtime_env={"env_vars": environment}, **how)
    try:
        yield
    finally:
        ray.shutdown()


def _masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.png")}


def _workers() -> list[int]:
    """Processes below this one that label."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_text()
        except (OSError, ValueError):  # no process, or one that has ended
            continue

    def mine(process: int) -> bool:
        return process == os.getpid() or (process in parents and mine(parents[process]))

    return [process for process, title in titles.items() if title.startswith("ray::MapWorker") and mine(process)]


class _Killer(threading.Thread):
    """Kills a worker once it has written something."""

    def __init__(self, output: Path) -> None:
        super().__init__(daemon=True)
        self._output = output
        self.before: dict[str, os.stat_result] = {}

    def run(self) -> None:
        while len(_masks(self._output)) < 5:
            time.sleep(0.002)
        os.kill(_workers()[0], signal.SIGKILL)
        self.before = {path.name: path.stat() for path in self._output.glob("[!.]*.png")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_killed_worker_loses_nothing_and_masks_are_those_of_the_local_engine(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    local = predict_files(model, photos, tmp_path / "local", width=0.5)
    out, seen = tmp_path / "ray", list[Progress]()
    killer = _Killer(out)
    killer.start()
    with _session():
        summary = predict_files(model, photos, out, width=0.5, engine="ray", workers=2, progress=seen.append)
    killer.join(5)
    assert summary == local and (summary.images, summary.written, len(summary.failed)) == (101, 100, 1)
    assert seen[-1] == Progress(total=101, kept=0, labelled=100, failed=1)
    assert _masks(out) == _masks(tmp_path / "local")
    assert (out / "failed.jsonl").read_text() == (tmp_path / "local" / "failed.jsonl").read_text()
    assert 5 <= len(killer.before) < 100  # it was in mid-run
    for name, before in killer.before.items():  # written once: not touched again
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.slow
def test_an_image_that_kills_its_workers_is_listed(model: Path, photos: Path, tmp_path: Path) -> None:
    deadly = tmp_path / "photos"
    shutil.copytree(photos, deadly)
    (deadly / "017.png").rename(deadly / "poison.png")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os\nfrom PIL import Image\nopen = Image.open\n"
        "Image.open = lambda fp, *a, **k: os.kill(os.getpid(), 9) if 'poison' in str(fp) else open(fp, *a, **k)\n"
    )
    with _session(PYTHONPATH=str(tmp_path / "site")):
        summary = predict_files(model, deadly, tmp_path / "out", engine="ray", workers=2, force=True)
    assert (summary.images, summary.written) == (101, 99)
    assert [Path(name).name for name, _ in summary.failed] == ["broken.png", "poison.png"]
    assert "3 workers died over it" in summary.failed[1][1]


@pytest.fixture
def worker(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ray_engine._Worker:
    """A worker of this process, which asks a diary of this process."""
    diary = ray_engine._Diary()
    monkeypatch.setattr(ray_engine._Worker, "_note", lambda _, verb, what: getattr(diary, verb)(what))
    return ray_engine._Worker(PredictionSettings(str(model), str(tmp_path / "out")), None)


def _block(photos: Path, *names: str) -> dict[str, np.ndarray]:
    stems = [name.partition(".")[0] for name in names]
    images = [os.fsencode(photos / name) for name in names]
    columns = {"image": images, "name": [os.fsencode(stem) for stem in stems], "parts": ["mask"] * len(names)}
    return {"index": np.arange(len(names)), **{key: np.array(value, object) for key, value in columns.items()}}


def test_a_block_that_is_begun_again_leaves_out_what_is_written(
    worker: ray_engine._Worker, photos: Path, tmp_path: Path
) -> None:
    first = worker(_block(photos, "000.png"))
    assert first == {"index": [0], "problem": [b""]}
    before = (tmp_path / "out" / "000.png").stat().st_ino
    again = worker(_block(photos, "000.png", "001.png", "broken.png"))
    assert again["index"] == [0, 1, 2] and [bool(problem) for problem in again["problem"]] == [False, False, True]
    assert (tmp_path / "out" / "000.png").stat().st_ino == before
    assert sorted(_masks(tmp_path / "out")) == ["000.png", "001.png"]


@pytest.mark.parametrize("force", [False, True])
def test_an_image_over_which_workers_die_is_left_out(
    worker: ray_engine._Worker, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    worker._settings = replace(worker._settings, force=force)
    block, read = _block(photos, "000.png", "broken.png", "001.png", "002.png"), labeller.read_image

    def deadly(path: Path, images: ImageFormat, *, max_pixels: int) -> np.ndarray:
        if path.name == "001.png":
            raise SystemExit  # as far as the diary can know, the worker is gone
        return read(path, images, max_pixels=max_pixels)

    monkeypatch.setattr(labeller, "read_image", deadly)
    for _ in range(4):
        with pytest.raises(SystemExit):
            worker(block)
    result = worker(block)
    first, broken, culprit, last = (problem.decode() for problem in result["problem"])
    assert first == last == "" and "not an image" in broken
    assert culprit.startswith(str(photos / "001.png")) and "3 workers died" in culprit
    assert sorted(_masks(tmp_path / "out")) == ["000.png", "002.png"]


def test_a_worker_that_cannot_write_says_so(worker: ray_engine._Worker, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(LithesegError, match="cannot write"):
        list(ray_engine._outcomes({key: np.array(v) for key, v in worker(_block(photos, "000.png")).items()}))


def test_what_ray_cannot_do(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WidthError, match=r"0\.3"):
        predict_files(model, photos, "out", width=0.3, engine="ray")
    if importlib.util.find_spec("ray"):
        with pytest.raises(DataError, match="this process's own memory"):
            predict_files(model, photos, "memory://out", engine="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"litheseg\[ray\]"):
        predict_files(model, photos, "out", engine="ray")
