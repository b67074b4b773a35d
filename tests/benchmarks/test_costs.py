from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import records
from pages.costs import cost_sections, promise_sections


def row(promised: float, again: float) -> dict[str, Any]:
    promise = {
        "width": 0.5,
        "size": [180, 240],
        "runtime": "openvino",
        "threads": 2,
        "miou": 0.5,
        "milliseconds": promised,
    }
    timed = {"milliseconds": again}
    kept = abs(again / promised - 1) <= 0.1
    return {
        "budget_ms": 9.0,
        "promise": promise,
        "again": timed,
        "once_more": timed,
        "ratios": {"kept": again / promised},
        "kept": kept,
    }


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return tmp_path


def written(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    metrics = facts | {f"rows/{index}": row for index, row in enumerate(rows)}
    origin = {"table": name, "seed": None, "command": f"python {name}"}
    lines = [json.dumps({**origin, "key": key, "metrics": value}) + "\n" for key, value in metrics.items()]
    records.results(name).write_text("".join(lines))


def fits(name: str, *rows: dict[str, Any]) -> None:
    kept = sum(row["kept"] for row in rows)
    written(name, list(rows), tolerance=0.1, target=9, kept=kept, repeated=len(rows), steady=0)


def test_each_question_says_whether_promises_are_kept() -> None:
    fits("fit_check", *[row(5.0, 5.4)] * 9, row(5.0, 6.0))
    fits("fit_check_paced", *[row(5.0, 5.4)] * 8, *[row(5.0, 4.0)] * 2)
    text = "\n\n".join(map(str, promise_sections()))
    assert "**met** (9 of 10 kept; the machine repeats itself in 10)" in text
    assert "as from a camera: **missed** (8 of 10 kept" in text
    chosen = "| 9.00 | width 0.5 at 180x240, openvino, 2 threads | 50.0 | 5.00 |"
    assert f"{chosen} 5.40 | 5.40 | yes |" in text and f"{chosen} 4.00 | 4.00 | 0.80x |" in text
    assert "One thread" not in text and "python fit_check" in text


def test_nothing_timed_nothing_shown() -> None:
    assert promise_sections() == cost_sections() == []


def test_costs_of_steps_are_judged() -> None:
    written("data_path", [{"cache": "ram", "data_ms": 1.25, "fraction": 0.02}], target=0.1)
    written("step_cost", [{"model": "ddrnet", "ratio": 1.25}], target=1.15)
    data, step = map(str, cost_sections())
    assert "is at most 10.0%: **met**" in data and "| ram | 1.2 | 2.0% |" in data and "`python data_path`" in data
    assert "is at most 1.150: **missed**" in step and "| ddrnet | 1.250 |" in step
