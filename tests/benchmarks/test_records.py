from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import records


def test_a_report_says_where_numbers_come_from_and_nothing_of_the_folders_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["benchmarks/measure some", str(tmp_path / "model.safetensors"), "--output", "results/some.jsonl"]
    monkeypatch.setattr(sys, "argv", words)
    options = argparse.Namespace(
        model=tmp_path / "model.safetensors", widths=(1.0, 0.5), cache=None, output=Path("results/some.jsonl")
    )
    path, rows = tmp_path / "some.jsonl", [{"ms": 1.5}, {"ms": 2}]
    options.output = path
    records.save(options, {"rows": rows, "target": 1}, "numpy", "no-such-package", clock="wall-clock time")
    told = records.report(path)
    assert str(tmp_path) not in path.read_text()
    assert told["command"] == "python benchmarks/measure some model.safetensors --output results/some.jsonl"
    assert told["options"] == {"model": "model.safetensors", "widths": [1.0, 0.5]}
    assert told["rows"] == rows and told["target"] == 1 and told["clock"] == "wall-clock time"
    assert set(told["versions"]) == {"python", "numpy"} and " x " in told["hardware"]


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records.save(argparse.Namespace(output=None), {"rows": []})
    assert not list(tmp_path.iterdir())


def test_a_copy_without_history_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # in which there is no git
    assert records.commit() is None
    monkeypatch.setenv("BENCHMARK_COMMIT", "a" * 40)
    assert records.commit() == "a" * 40


def test_every_committed_record_says_where_it_comes_from() -> None:
    names = {"table", "key", "seed", "metrics", "command", "commit", "hardware", "versions"}
    for path in records.RESULTS.glob("*"):
        found = list(records.read(path))
        assert path.suffix == ".jsonl" and found, path
        assert all(names <= record.keys() and record["table"] == path.stem for record in found), path
        assert len({json.dumps(record) for record in found}) == len(found), path
