"""Timing in turns: the report's form, and what each way leaves out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import turns
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
    ("way", "waits", "runs_again"),
    [("at once", False, False), ("waiting", True, False), ("as timed", True, True), ("at a pace", True, False)],
)
def test_ways_differ_by_what_a_turn_begins_with(
    way: str, waits: bool, runs_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[None] = []
    monkeypatch.setattr(machine, "settle", lambda: waited.append(None))
    monkeypatch.setattr(turns, "REPEATS", 6)
    monkeypatch.setattr(turns, "PACE", 1000.0)
    engine = Blank()
    times = turns.measured(way, {"one": Pipeline(engine)}, [np.zeros((32, 48, 3), np.uint8)])
    assert len(times["one"]) == 6 and bool(waited) == waits
    plain = 3 + 2 * (1 + 3)  # of warm-up; two turns, of one untimed pass and three timed
    assert engine.passes > plain if runs_again else engine.passes == plain


def test_a_quick_run_writes_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    path = tmp_path / "report.json"
    words = ["turns.py", str(tmp_path / "model.safetensors"), "--rounds", "1", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(turns, "SIZE", (24, 32))
    monkeypatch.setattr(turns, "WIDTHS", (0.5,))
    monkeypatch.setattr(turns, "REPEATS", 3)
    tiny_bundle(tmp_path / "model.safetensors")
    turns.main()
    rows = json.loads(path.read_text())["rows"]
    assert [row["network"] for row in rows] == [f"width 0.5, {name}" for name in ("torch", "onnxruntime", "openvino")]
    assert all(row[way]["repeats"] == 3 and row[way]["p50"] > 0 for row in rows for way in turns.WAYS)
