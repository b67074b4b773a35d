"""The grouping table: gains, targets and the comparison at equal MACs, from invented rows."""

from __future__ import annotations

from typing import Any

import pytest
from pages.grouping import method_table, slim_gains, targets
from pages.studies import Study


def record(label: str, model: str, miou: float, seed: int = 0, **widths: tuple[int, float]) -> dict[str, Any]:
    metrics = {"1": {"miou": miou / 100, "params": 10**6, "macs": 10**9}}
    metrics |= {w: {"miou": score / 100, "params": 1, "macs": macs} for w, (macs, score) in widths.items()}
    return {"label": label, "model": model, "seed": seed, "metrics": metrics}


ROWS = [
    record("dense", "erfnet", 60.0),
    *(record("from scratch", model, 50.0) for model in ("erfnet-d*", "erfnet-dg2*", "erfnet-dg4*")),
    record("gradual (cosine)", "erfnet-d*", 50.5),
    record("gradual (cosine)", "erfnet-dg2*", 51.0),
    record("gradual (cosine)", "erfnet-dg4*", 55.5),
]


def test_targets_are_computed() -> None:
    text = "\n".join(map(str, targets(Study("p", "", ROWS))))
    assert "from scratch on average: **met** (+2.33)" in text
    assert "D* within 2 mIoU of dense ERFNet: **missed** (-9.50 by gradual (cosine))" in text
    assert "DG4* within 5 mIoU of dense ERFNet: **met** (-4.50 by gradual (cosine))" in text


def test_the_average_needs_every_network() -> None:
    assert not any("on average" in target.text for target in targets(Study("p", "", ROWS[:-1])))
    table = method_table(Study("p", "", ROWS))
    assert "| gradual (cosine) | – | 50.50 (+0.50) | 51.00 (+1.00) | 55.50 (+5.50) | +2.33 |" in table


def test_widths_are_compared_at_equal_macs() -> None:
    alone = record("slimmable", "ddrnet", 0) | {"metrics": {}}
    alone["metrics"] = {"1": {"macs": 400, "miou": 0.6}, "0.5": {"macs": 100, "miou": 0.4}}
    grouped = record("slimmable + gradual", "ddrnet", 0)
    grouped["metrics"] = {"1": {"macs": 200, "miou": 0.52}, "0.5": {"macs": 50, "miou": 0.38}}
    gains = slim_gains(Study("p", "", [alone, grouped]))
    assert gains == {"1": pytest.approx(2.0), "0.5": pytest.approx(-2.0)}  # 200 is half-way on a log axis: 50
