from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from litheseg.cli import main
from litheseg.masks.classes import Classes
from litheseg.models import build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import slim
from litheseg.runtime.files import Progress, Summary


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    classes = Classes(("a", "b", "c"), ((0, 0, 0), (90, 0, 0), (0, 90, 0)))
    header = BundleHeader({"name": "ddrnet", "args": {"base": 8}}, classes, widths=(1.0, 0.5), size=(64, 96))
    save_bundle(tmp_path / "model.safetensors", slim(build_model("ddrnet", num_classes=3, base=8), (1.0, 0.5)), header)
    return tmp_path / "model.safetensors"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Two images and thirty that are not there."""
    for name in ("x", "y"):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    lines = ["image", "x.png", "y.png", *(f"missing/{number:02}.png" for number in range(30))]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.csv"


def run(*words: Any) -> int:
    return main(["predict", *map(str, words)])


def test_a_list_with_missing_images(
    model: Path, listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    how = ["--workers", 2, "--threads", 1, "--runtime", "torch", "--precision", "fp32", "--width", 0.5]
    assert run(model, listed, "--output", out, *how) == 1
    printed = capsys.readouterr()
    assert "32 images: 2 files written" in printed.out and "30 images failed" in printed.out
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 21 and "missing/00.png" in errors[0]
    assert errors[-1] == f"error: 10 more, all of them in {out}/failed.jsonl"
    assert len((out / "failed.jsonl").read_text().splitlines()) == 30
    assert run(model, listed, "--output", out, "--json") == 1
    assert json.loads(capsys.readouterr().out)["skipped"] == 2


@pytest.mark.parametrize(
    ("force", "again"), [([], "the same command goes on"), (["--force"], "without --force goes on")]
)
def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], force: list[str], again: str
) -> None:
    def stopped(*_: Any, progress: Any, **__: Any) -> Summary:
        print("what a library prints")
        progress(Progress(total=50, kept=10, labelled=7, failed=1))
        raise KeyboardInterrupt

    monkeypatch.setattr("litheseg.runtime.files.predict_files", stopped)
    assert run("model", "photos", "--output", "out", *force) == 130
    printed = capsys.readouterr()
    assert printed.out == "" and "18 of 50 images done" in printed.err and again in printed.err


def test_sigterm_has_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stopped(*_: Any, progress: Any, **__: Any) -> Summary:
        progress(Progress(total=50, kept=10, labelled=7, failed=1))
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr("litheseg.runtime.files.predict_files", stopped)
    assert run("model", "photos", "--output", "out") == 143
    assert "stopped by SIGTERM with 18 of 50 images done; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_names_are_shown_without_what_a_terminal_obeys(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "\x1b[31mred\x07.png").write_text("no image")
    Image.new("L", (200, 100)).save(tmp_path / "photos" / "large.png")
    out = tmp_path / "\x1b[1mout"
    assert run(model, tmp_path / "photos", "--output", out, "--max-pixels", "10k") == 1
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err and "\x07" not in printed.err
    assert r"\x1b[31mred\x07.png is not an image" in printed.err and r"\x1b[1mout" in printed.out
    assert "large.png: 200 x 100 pixels, and at most 10000" in printed.err


def test_wrong_engines_and_workers(model: Path, listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, listed, "--output", "out", "--engine", "spark") == 2
    assert run(model, listed, "--output", "out", "--workers", 0) == 2
    assert "workers is 0; give 1 or more" in capsys.readouterr().err
