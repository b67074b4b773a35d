from __future__ import annotations

from typing import Any

import pytest
from pages import peers


def row(network: str, width: float, ours: bool, fp32: tuple[float, float | None], int8: tuple[float, float | None]):
    ways = [
        {"runtime": "openvino", "precision": name, "p50": ms, "p95": 2 * ms, "miou": miou, "peak_mib": 100.0}
        for name, (ms, miou) in {"fp32": fp32, "int8": int8}.items()
    ]
    return {"network": network, "width": width, "ours": ours, "params": 2e6, "macs": 3e9, "ways": ways}


def settings(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"scored": list(rows)}


LRASPP = row("LR-ASPP", 1.0, False, (20.0, 0.25), (18.0, 0.24))
FPN = row("FPN", 1.0, False, (40.0, 0.31), (30.0, 0.30))
NARROW = row("ddrnet", 0.25, True, (5.0, 0.28), (2.5, 0.27))


def test_a_width_is_compared_with_the_fastest_peer_that_is_as_good() -> None:
    text = peers.peers_tables(settings(LRASPP, FPN, NARROW))
    # 0.27 at 2.5 ms: LR-ASPP reaches 0.25 only, FPN in int8 0.30 at 30 ms.
    told = "12.0x by ddrnet, width 0.25, int8, mIoU 27.00; 6.0x by ddrnet, width 0.25, fp32, mIoU 28.00"
    assert f"**met** ({told})" in text
    assert "at most 0.15 of LR-ASPP's time: **met** (0.14)" in text


def test_without_a_peer_that_is_as_good_nothing_is_claimed() -> None:
    assert "peer of equal or better mIoU: **open** (no peer reached" in peers.peers_tables(settings(LRASPP, NARROW))


def test_a_slower_network_of_ours_misses() -> None:
    slow = row("ddrnet", 0.25, True, (50.0, 0.28), (30.0, 0.27))
    text = peers.peers_tables(settings(LRASPP, FPN, slow))
    assert (
        "**missed** (1.0x by ddrnet, width 0.25, int8, mIoU 27.00; 0.6x by ddrnet, width 0.25, fp32, mIoU 28.00)"
        in text
    )
    assert "**missed** (1.67)" in text


def test_rows_are_in_order_of_time_and_untrained_networks_have_no_score() -> None:
    untrained = row("Unet", 1.0, False, (3.0, None), (4.0, None))
    lines = peers.peers_tables(settings(FPN, NARROW, untrained)).splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert names == ["**ddrnet, width 0.25**", "Unet", "Unet", "**ddrnet, width 0.25**", "FPN", "FPN"]
    assert "| Unet | fp32 | openvino | 3.00 | – |" in lines[10]


def test_the_readme_shows_trained_networks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = FPN, NARROW, row("Unet", 1.0, False, (3.0, None), (4.0, None))
    monkeypatch.setattr(peers, "report", lambda path: settings(*rows))
    block = peers.headline()
    assert "Unet" not in block and "| FPN | int8 | openvino | 30.00 |" in block
    assert "fp32 | openvino" not in block, "once each, as fast as it goes"
    monkeypatch.setattr(peers, "report", lambda path: {})
    assert peers.headline() == ""
