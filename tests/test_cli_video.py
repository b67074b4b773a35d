"""The video command as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_colours import CLASSES
from tiny_video import read_video, write_images, write_video

from litheseg.cli import main
from litheseg.models import build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import slim

pytest.importorskip("av")

WIDTHS = (1.0, 0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    arguments = {"base": 8}
    header = BundleHeader(
        architecture={"name": "ddrnet", "args": arguments},
        classes=CLASSES,
        widths=WIDTHS,
        size=(32, 48),
    )
    save_bundle(path, slim(build_model("ddrnet", num_classes=3, **arguments), WIDTHS), header)
    return str(path)


def test_a_video_is_labelled(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_video(tmp_path / "in.mp4", 12), tmp_path / "out.mp4"
    assert main(["video", model, str(source), "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"12 frames written to {out} (libx264), 0 dropped" in printed.out
    assert "frames/s; a frame took" in printed.out and "frame took" not in printed.err
    assert len(read_video(out)) == 12
    assert main(["video", model, str(source), "--output", str(out)]) == 2
    assert "exists; choose another path" in capsys.readouterr().err


def test_json_says_what_happened(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "in", 4)
    (folder / "frame_2.png").write_bytes(b"nothing")
    line = ["video", model, f"{folder}/*.png", "--output", str(tmp_path / "out"), "--kind", "mask", "--json"]
    assert main([*line, "--target-ms", "1000", "--limit", "3"]) == 1
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert (content["frames"], content["corrupt"], content["widths"]) == (3, 1, {"1": 3})
    assert (content["encoder"], content["problem"], content["decisions"]) == ("png", None, [])
    assert "frame_2.png" in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.mp4"], "missing.mp4 does not exist"),
        (["IN", "--width", "0.3"], "no width 0.3"),
        (["IN", "--target-fps", "0"], "target 0.0 is not positive"),
        (["IN", "--limit", "0"], "limit 0"),
        (["IN", "--precision", "int8"], "holds no int8 network"),
        (["IN", "--target-fps", "5", "--target-ms", "5"], "not allowed with"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    words = [str(write_images(tmp_path / "in", 2)) if word == "IN" else word for word in words]
    assert main(["video", model, *words, "--output", str(tmp_path / "out.mp4")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_finishes_the_file(model: str, tmp_path: Path) -> None:
    source, out = write_video(tmp_path / "in.mp4", 400), tmp_path / "out.mp4"
    line = [sys.executable, "-m", "litheseg", "video", model, str(source), "--output", str(out), "--drop"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any(path.stat().st_size for path in tmp_path.glob(".out.*.mp4")):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped by Ctrl-C" in error
    frames = int(printed.split()[0])
    assert 0 < frames < 400 and len(read_video(out)) == frames
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
