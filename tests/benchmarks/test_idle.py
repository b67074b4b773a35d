"""What a box has left between the images: the report's form, and that ONNX Runtime's threads can be stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import idle
import pytest
from registry import registered
from tiny_export import build_tiny, tiny_bundle

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

_registered = registered(tiny=build_tiny)


def test_a_quick_run_writes_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    words = ["idle.py", str(tmp_path / "model.safetensors"), "--images", "5", "--rate", "20", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(idle, "SIZE", (24, 32))
    monkeypatch.setattr(idle, "WIDTHS", (0.5,))
    tiny_bundle(tmp_path / "model.safetensors")
    idle.main()
    report = json.loads(path.read_text())
    assert [row["runtime"] for row in report["rows"]] == list(idle.RUNTIMES)
    assert all(row["width"] == 0.5 and row["p50_ms"] > 0 for row in report["rows"])
    spins, *rest = (row["cores_busy"] for row in report["rows"][2:])
    assert len(rest) == 2 and 0 <= max(rest) < spins
    assert "--rate 20" in report["command"]
