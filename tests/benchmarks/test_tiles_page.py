"""The table in the documentation is the one that was measured."""

from __future__ import annotations

import json
from pathlib import Path

from tiles import table

ROOT = Path(__file__).parents[2]


def test_the_page_shows_what_was_measured() -> None:
    rows = json.loads((ROOT / "benchmarks/results/tiles.json").read_text())["rows"]
    assert table(rows) in (ROOT / "docs/runtime.md").read_text()
