"""Threads that spin: what each mode of timing leaves out, and that ONNX Runtime's threads can be stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from measure import spinning
from records import report
from registry import registered
from tiny_export import build_tiny, tiny_bundle

from litheseg import machine
from litheseg.runtime.engines import Engine
from litheseg.runtime.pipeline import Pipeline

_registered = registered(tiny=build_tiny)


class Blank(Engine):
    """Counts its passes, in no time."""

    runtime, precision, output, size = "fake", "fp32", "logits", None
    passes = 0

    def run(self, image: np.ndarray) -> np.ndarray:
        self.passes += 1
        return np.zeros((2, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("mode", "waits", "runs_again"),
    [("at once", False, False), ("waiting", True, False), ("as timed", True, True), ("at a frame rate", True, False)],
)
def test_modes_differ_by_what_a_turn_begins_with(
    mode: str, waits: bool, runs_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[None] = []
    monkeypatch.setattr(machine, "settle", lambda: waited.append(None))
    monkeypatch.setattr(machine, "_AGAIN", 0.02)
    monkeypatch.setattr(spinning, "REPEATS", 6)
    monkeypatch.setattr(spinning, "FRAME_RATE", 1000.0)
    engine = Blank()
    times = spinning.measured(mode, {"one": Pipeline(engine)}, [np.zeros((32, 48, 3), np.uint8)])
    assert len(times["one"]) == 6 and bool(waited) == waits
    plain = 3 + 2 * (1 + 3)  # of warm-up; two turns, of one untimed pass and three timed
    assert engine.passes > plain if runs_again else engine.passes == plain


def test_a_quick_run_of_turns_writes_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    path = tmp_path / "turns.jsonl"
    words = ["spinning", "turns", str(tmp_path / "model.safetensors"), "--rounds", "1", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(spinning, "SIZE", (24, 32))
    monkeypatch.setitem(spinning.WIDTHS, "turns", (0.5,))
    monkeypatch.setattr(spinning, "REPEATS", 3)
    tiny_bundle(tmp_path / "model.safetensors")
    spinning.main()
    rows = report(path)["rows"]
    assert [row["network"] for row in rows] == [f"width 0.5, {name}" for name in ("torch", "onnxruntime", "openvino")]
    assert all(row[mode]["repeats"] == 3 and row[mode]["p50"] > 0 for row in rows for mode in spinning.MODES)


def test_a_quick_run_of_idle_writes_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    path = tmp_path / "idle.jsonl"
    words = [
        "spinning",
        "idle",
        str(tmp_path / "model.safetensors"),
        "--images",
        "5",
        "--rate",
        "20",
        "--output",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(spinning, "SIZE", (24, 32))
    monkeypatch.setitem(spinning.WIDTHS, "idle", (0.5,))
    tiny_bundle(tmp_path / "model.safetensors")
    spinning.main()
    content = report(path)
    assert [row["runtime"] for row in content["rows"]] == list(spinning.RUNTIMES)
    assert all(row["width"] == 0.5 and row["p50_ms"] > 0 for row in content["rows"])
    spins, *rest = (row["cores_busy"] for row in content["rows"][2:])
    assert len(rest) == 2 and 0 <= max(rest) < spins
    assert "--rate 20" in content["command"]
