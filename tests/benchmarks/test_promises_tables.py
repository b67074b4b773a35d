from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from promises_tables import promises_section


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


def written(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = folder / f"benchmarks/results/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = sum(row["kept"] for row in rows)
    counts = {"kept": kept, "repeated": len(rows), "steady": 0}
    path.write_text(
        json.dumps({"tolerance": 0.1, "target": 9, **counts, "rows": rows, "command": "python fit_check.py"})
    )
    return folder


def test_each_way_says_whether_promises_are_kept(tmp_path: Path) -> None:
    written(tmp_path, "fit_check", *[row(5.0, 5.4)] * 9, row(5.0, 6.0))
    written(tmp_path, "fit_check_paced", *[row(5.0, 5.4)] * 8, *[row(5.0, 4.0)] * 2)
    text = promises_section(tmp_path)
    assert "**met** (9 of 10 kept; the machine repeats itself in 10)" in text
    assert "as from a camera: **missed** (8 of 10 kept" in text
    chosen = "| 9.00 | width 0.5 at 180x240, openvino, 2 threads | 50.0 | 5.00 |"
    assert f"{chosen} 5.40 | 5.40 | yes |" in text and f"{chosen} 4.00 | 4.00 | 0.80x |" in text
    assert "One thread" not in text and "python fit_check.py" in text


def test_nothing_timed_nothing_told(tmp_path: Path) -> None:
    assert promises_section(tmp_path) == ""
