"""Rows and models that came back: what is added, what is refused and why, and that nothing is added twice."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import records
import rows
import torch
from gpu import merge as gpu_merge
from gpu.models import halve, restore
from registry import registered
from tiny_export import build_tiny, tiny_bundle

from litheseg.errors import LithesegError
from litheseg.models.bundle import load_bundle

BENCHMARKS = Path(rows.__file__).parent
HEAD = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=BENCHMARKS).stdout.strip()
needs_git = pytest.mark.skipif(not HEAD, reason="outside a repository")

_registered = registered(tiny=build_tiny)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of their own, with no results yet."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def record(table: str = "slimseg", protocol: str = "camvid-seq", number: int = 0, **changes: Any) -> dict[str, Any]:
    row = rows.read_rows(table, protocol, None, [0])[number]
    few = {"network": row.network, "labelled": row.labelled, "steps": 2200} if row.labelled else {}
    return {
        **{"table": table, "key": row.key, "protocol": row.protocol, "model": row.model, "id": row.id},
        **{"label": row.label, "seed": 0, "fold": row.fold, "command": row.command, "commit": HEAD, **few},
        **{"metrics": {"1": {"miou": 0.5}}, "hardware": "a GPU", "versions": {}, "minutes": 3, "date": "2030-01-01"},
        **changes,
    }


def bring(folder: Path, *lines: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "rows.jsonl").write_text("\n".join(text) + "\n")
    return folder


def kept(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@needs_git
def test_rows_go_to_their_tables_once(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {"slimseg": "camvid-seq", "mgd": "camvid-seq-few", "grouping": "camvid-seq", "ablation": "camvid-seq"}
    back = bring(tmp_path / "back", *(record(*names) for names in tables.items()))
    assert gpu_merge.merge(back) == 0 and "4 rows added, 0 there already, 0 refused" in capsys.readouterr().out
    assert [len(kept(results / f"{table}.jsonl")) for table in tables] == [1, 1, 1, 1]
    assert gpu_merge.merge(back) == 0 and "0 rows added, 4 there already" in capsys.readouterr().out
    assert kept(results / "slimseg.jsonl") == [record()]


@needs_git
def test_another_result_of_a_row_needs_to_be_asked_for(results: Path, tmp_path: Path) -> None:
    gpu_merge.merge(bring(tmp_path / "a", record()))
    other = bring(tmp_path / "b", record(minutes=4))
    gpu_merge.merge(other)
    assert len(kept(results / "slimseg.jsonl")) == 1
    for _ in range(2):
        gpu_merge.merge(other, again=True)
    assert [line["minutes"] for line in kept(results / "slimseg.jsonl")] == [3, 4]


@needs_git
def test_a_line_that_was_cut_off_costs_that_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.dumps(record(number=1))
    assert gpu_merge.merge(bring(tmp_path / "back", record(), whole[: len(whole) // 2])) == 1
    assert len(kept(results / "slimseg.jsonl")) == 1 and "line 2, ?: no JSON object" in capsys.readouterr().out


@needs_git
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tiny": True}, "a rehearsal"),
        ({"seed": "0"}, "'seed' is missing or of the wrong type"),
        ({"metrics": {}}, "no width was scored"),
        ({"metrics": {"1": {"miou": 53.2}}}, "width 1 has mIoU 53.2"),
        ({"metrics": {"1": {"miou": float("nan")}}}, "width 1 has mIoU nan"),
        ({"commit": f"{HEAD}-dirty"}, "pack a commit without changes"),
        ({"commit": ""}, "pack a commit without changes"),
        ({"commit": "0" * 40}, "is not in this repository"),
        ({"table": "other"}, "there is no table 'other'"),
        ({"protocol": "camvid-sq"}, "no protocol 'camvid-sq'"),
        ({"fold": "0017"}, "has no fold '0017'"),
        ({"key": "camvid-seq-ddrnet-x-0001TP-seed0"}, "table slimseg has no such row"),
        ({"label": "(z)"}, "'label' is (z), and the table has"),
        ({"command": "litheseg train --trainer.epochs=1"}, "another command than the table gives now"),
    ],
)
def test_what_does_not_fit_is_refused(results: Path, tmp_path: Path, changes: Any, problem: str) -> None:
    assert problem in gpu_merge.problem_of(record() | changes)
    assert gpu_merge.merge(bring(tmp_path / "back", record() | changes)) == 1 and not kept(results / "slimseg.jsonl")


def test_an_empty_handed_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"rows.jsonl is missing"):
        gpu_merge.merge(tmp_path)


def test_a_model_comes_back_as_it_was_but_for_rounding(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "model.safetensors")
    back = tmp_path / "back"
    back.mkdir()
    size = halve(tmp_path / "model.safetensors", back / "row.half.safetensors", 2**20)
    assert size < 0.8 * (tmp_path / "model.safetensors").stat().st_size
    with pytest.raises(LithesegError):
        load_bundle(back / "row.half.safetensors")  # no model file yet
    bring(back)
    (back / "rows.jsonl").write_text("")
    assert gpu_merge.merge(back, models=tmp_path / "zoo") == 0
    found, before = load_bundle(tmp_path / "zoo/row.safetensors"), load_bundle(tmp_path / "model.safetensors")
    assert found.header == before.header and bundle is not None
    for width in before.header.available_widths:
        image = torch.rand(1, 3, 24, 32)
        with torch.no_grad():
            expected, actual = before.plain(width)(image), found.plain(width)(image)
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
        assert not torch.equal(actual, expected)


def test_a_model_too_large_to_come_back_is_refused(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "model.safetensors")
    with pytest.raises(LithesegError, match="MiB in half precision, more than"):
        halve(tmp_path / "model.safetensors", tmp_path / "half.safetensors", 1000)
    with pytest.raises(LithesegError, match="is no model in half precision"):
        restore(tmp_path / "model.safetensors", tmp_path / "again.safetensors")
