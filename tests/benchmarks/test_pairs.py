from __future__ import annotations

from typing import Any

import pytest
from pages import pairs


def timed(encoder: str, decoder: str, fp32: float, int8: float | None, **more: Any) -> dict[str, Any]:
    def of(values: dict[str, float | None]) -> dict[str, Any]:
        found = {name: value for name, value in values.items() if value is not None}
        return {name: {"cpu_min": ms / 2, "cpu_median": ms, "median": 3 * ms} for name, ms in found.items()}

    own = of({"onnxruntime fp32": 2 * fp32, "openvino fp32": fp32, "openvino int8": int8})
    widths = {"1": {"params": 2e6, "macs": 3e9, "times": own, "refused": more.pop("refused", {})}}
    default = of({"openvino fp32": 50.0, "openvino int8": 20.0})
    metrics = {"encoder": encoder, "decoder": decoder, "widths": widths, "default": default, **more}
    origin = {"date": "2030-01-01", "load_average": [1.0], "hardware": "CPU", "commit": "0" * 40, "versions": {}}
    return {"key": f"{encoder}-{decoder}", "metrics": metrics, "command": "python", **origin}


def row(label: str, fold: str, miou: float) -> dict[str, Any]:
    facts = {"protocol": "camvid-half-seq", "seed": 0, "label": label, "fold": fold}
    return {**facts, "metrics": {"1": {"miou": miou / 100}}}


TIMED = [
    timed("lite0", "swiftnet", 50.0, 20.0),
    timed("lite0", "lraspp", 40.0, 10.0, refused={"onnxruntime int8": "zero points\nmore"}),
    timed("vit", "swiftnet", 500.0, None, **{"one width": "attention"}),
]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trained rows, which a test fills in, beside the times."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(pairs, "newest", lambda path: TIMED if path.stem == "pairs_time" else found)
    return found


def page() -> str:
    return "\n".join(map(str, pairs.pairs_sections()))


def test_times_are_shares_of_the_default_pair_s_and_what_is_missing_has_a_reason(rows: list[dict[str, Any]]) -> None:
    text = page()
    assert "| lite0 | lraspp | 1 | 2.00 | 3.00 | 40.0 (0.80) o | 10.0 (0.50) o |" in text
    assert "| vit | swiftnet | 1 | 2.00 | 3.00 | 500.0 (10.00) o | – |" in text
    assert "- vit, swiftnet, narrower widths: attention" in text
    assert "- lite0, lraspp, width 1, onnxruntime int8: zero points\n" in text
    assert "Not trained yet: `python benchmarks/run.py pairs" in text


def test_trained_pairs_are_in_the_order_of_miou_per_time(rows: list[dict[str, Any]]) -> None:
    rows += [row("lite0, swiftnet", "0001TP", 50), row("lite0, swiftnet", "0006R0", 90)]
    rows += [row("lite0, lraspp", "0001TP", 40)]
    text = page().split("Time of every pair")[0]
    assert "0001TP" in text and "0006R0" not in text, "where not every pair was scored"
    first, second = (line for line in text.splitlines() if line.startswith("| lite0 |"))
    assert first == "| lite0 | lraspp | 40.00 | 0.80 | 50.0 | 0.50 | 80.0 |"
    assert second == "| lite0 | swiftnet | 50.00 | 1.00 | 50.0 | 1.00 | 50.0 |"
