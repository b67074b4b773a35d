from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import peers


def row(network: str, width: float, ours: bool, fp32: float, int8: float) -> dict[str, Any]:
    times = {
        f"openvino {name}": {"cpu": ms, "p50": 3 * ms, "p95": 4 * ms} for name, ms in (("fp32", fp32), ("int8", int8))
    }
    times["onnxruntime fp32"] = {"cpu": 99.0, "p50": 1.0, "p95": 1.0}
    facts = {"network": network, "width": width, "ours": ours, "params": 2e6, "macs": 3e9}
    return {**facts, "times": times, "refused": {"onnxruntime int8": "zero points"}}


def scored(network: str, width: float, fp32: float, int8: float, folds: str = "abc") -> list[dict[str, Any]]:
    miou = {"openvino fp32": fp32 / 100, "openvino int8": int8 / 100}
    return [{"metrics": {"network": network, "width": width, "fold": fold, "miou": miou}} for fold in folds]


LRASPP, FPN = row("LR-ASPP (tv)", 1.0, False, 20.0, 18.0), row("FPN (smp)", 1.0, False, 40.0, 30.0)
NARROW, WIDE = row("ours", 0.25, True, 5.0, 2.5), row("ours", 1.0, True, 12.0, 9.0)
ROWS = [LRASPP, FPN, NARROW, WIDE]
SCORES = [
    *scored("LR-ASPP (tv)", 1.0, 25, 24),
    *scored("FPN (smp)", 1.0, 31, 30),
    *scored("ours", 0.25, 28, 27),
    *scored("ours", 1.0, 33, 32),
]


def text(rows: list[dict[str, Any]], records: list[dict[str, Any]]) -> str:
    return peers.peers_tables({"scored": rows}, records)


def test_targets_compare_ours_with_every_peer_at_equal_accuracy() -> None:
    page = text(ROWS, SCORES)
    assert "our most accurate network above the most accurate peer: **met** (33.00 and 31.00)" in page
    # LR-ASPP in int8 has 24 in 18 ms: 2.5 ms are enough. FPN has 30 in 30 ms: only the whole width reaches it.
    assert "LR-ASPP (tv): 0.14 by ours, width 0.25, int8; FPN (smp): 0.30 by ours, width 1, int8" in page
    assert "a third of its time: **met**" in page and "of LR-ASPP's time: **met** (0.14 by ours)" in page


def test_a_peer_that_is_more_accurate_than_all_of_ours_is_said() -> None:
    page = text([LRASPP, FPN, NARROW], SCORES[:-3])
    assert "**missed** (28.00 and 31.00)" in page and "FPN (smp): none of ours is as accurate" in page
    assert "a third of its time: **missed**" in page


def test_ours_that_take_too_long_miss() -> None:
    page = text([LRASPP, FPN, row("ours", 0.25, True, 15.0, 12.0)], SCORES[:-3])
    assert "a third of its time: **missed** (LR-ASPP (tv): 0.67" in page and "time: **missed** (0.67 by ours)" in page


def test_without_trained_rows_nothing_is_claimed() -> None:
    page = text(ROWS, [])
    assert page.count("**open** (rows are not trained)") == 2
    assert "| LR-ASPP (tv) | int8 | openvino | 18.00 | – |" in page


def test_means_are_over_the_sequences_that_all_scored_networks_have() -> None:
    records = [*scored("A", 1.0, 10, 10, "ab"), *scored("B", 1.0, 20, 20, "bc"), *scored("B", 1.0, 50, 50, "a")]
    scores, folds = peers.scores_of(records)
    assert folds == ["a", "b"]
    assert scores["B", 1.0]["openvino fp32"] == pytest.approx(35) and scores["A", 1.0]["openvino int8"] == 10


def test_rows_are_in_order_of_time_and_int8_has_the_score_of_its_own_runtime() -> None:
    other = row("Unet", 1.0, False, 3.0, 4.0)
    records = [*scored("FPN (smp)", 1.0, 31, 30), *scored("Unet", 1.0, 20, 20)]
    del records[-1]["metrics"]["miou"]["openvino int8"], records[0]["metrics"]["miou"]["openvino int8"]
    page = text([FPN, NARROW, other], records)
    names = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")][2:]
    assert names == ["**ours, width 0.25**", "Unet", "Unet", "**ours, width 0.25**", "FPN (smp)", "FPN (smp)"]
    assert (
        "| FPN (smp) | int8 | openvino | 30.00 | – |" in page
        and "| FPN (smp) | fp32 | openvino | 40.00 | 31.00 |" in page
    )


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Scores, which a test fills in, beside the times of all rows."""
    found: list[dict[str, Any]] = []
    origin = {"hardware": "CPU", "commit": "0123456789abcdef", "clock": "in turns"}
    content = {"protocol": "camvid-half-seq", "scored": ROWS, "full": ROWS, **origin}
    monkeypatch.setattr(peers, "report", lambda path: content)
    monkeypatch.setattr(peers, "newest", lambda path: found)
    return found


def test_the_readme_shows_scored_networks_once_each(records: list[dict[str, Any]]) -> None:
    assert "not trained" in peers.headline()
    records += SCORES[:-3]
    block = peers.headline()
    assert "| FPN (smp) | int8 | openvino | 30.00 |" in block and "fp32 | openvino" not in block
    assert "width 1" not in block and "each without the sequence that it is scored on (a, b, c)" in block


def test_the_page_draws_both_frontiers_and_says_what_was_left_out(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert not any(section.plots for section in peers.peers_sections())
    records += SCORES
    scored_section = peers.peers_sections()[0]
    assert "- FPN (smp), width 1, onnxruntime int8: zero points" in str(scored_section)
    [(_, draw)] = scored_section.plots.values()
    draw(tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 1000
