from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

reports = pytest.importorskip("reports")


def test_a_report_says_where_numbers_come_from_and_nothing_of_the_folders_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tmp_path / "some.py"), str(tmp_path / "model.safetensors"), "--output", "results/some.json"]
    monkeypatch.setattr(sys, "argv", words)
    options = argparse.Namespace(
        model=tmp_path / "model.safetensors", widths=(1.0, 0.5), cache=None, output=Path("results/some.json")
    )
    report = {"rows": [1], **reports.provenance(options, "numpy", "no-such-package", clock="wall-clock time")}
    reports.write_report(tmp_path / "some.json", report)
    told = json.loads((tmp_path / "some.json").read_text())
    assert str(tmp_path) not in json.dumps(told)
    assert told["command"] == "python benchmarks/some.py model.safetensors --output results/some.json"
    assert told["options"] == {"model": "model.safetensors", "widths": [1.0, 0.5]}
    assert told["rows"] == [1] and told["clock"] == "wall-clock time"
    assert set(told["versions"]) == {"python", "numpy"} and " x " in told["hardware"]


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reports.write_report(None, {"rows": []})
    assert not list(tmp_path.iterdir())


def test_a_copy_without_history_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # in which there is no git
    assert reports.commit() is None
    monkeypatch.setenv("BENCHMARK_COMMIT", "a" * 40)
    assert reports.commit() == "a" * 40
