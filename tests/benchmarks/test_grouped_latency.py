"""Grouped latency: what is measured, the paper's counts, and the two tables that are made from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import records
import torch
from measure import grouped_latency
from pages import latency

LAYER = {"kernel": "1x1", "channels": 64, "stride": 8, "size": [45, 60]}
CONTENT: dict[str, Any] = {
    "layers": [
        {
            **LAYER,
            "variants": {
                "dense": {"macs": 8000, "ms": 1.3, "spread": 0.02, "format": "contiguous"},
                "4 groups": {"macs": 2000, "ms": 1.0, "spread": 0.04, "format": "channels_last"},
                "depthwise": {"macs": 125, "ms": 2.6, "spread": 0.02, "format": "contiguous"},
            },
        },
        {
            **LAYER,
            "kernel": "3x3",
            "variants": {"dense": {"macs": 9, "ms": 26.04, "spread": 0.02, "format": "contiguous"}},
        },
    ],
    "family": [
        {
            "network": "erfnet-d*",
            "params": 421056,
            "macs": 5494407168,
            "torch": {"ms": 100.0, "spread": 0.02, "format": "contiguous"},
            "onnx": {"ms": 50.0, "spread": 0.02},
        },
        {
            "network": "erfnet-dg4*",
            "params": 193728,
            "macs": 2877161472,
            "torch": {"ms": 80.0, "spread": 0.02, "format": "channels_last"},
            "onnx": None,
        },
    ],
    "notes": ["ONNX Runtime was left out: for this test"],
    "options": {"threads": 1, "size": [360, 480]},
    "clock": "processor time",
    "commit": "abc",
}


def test_layers_show_macs_beside_time() -> None:
    assert latency.layers_table(CONTENT).splitlines() == [
        "| layer | input | dense, ms | 4 groups | depthwise |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 1x1, 64 | 45x60 | 1.30 | 4x, 1.3x | 64x, 0.50x |",
        "| 3x3, 64 | 45x60 | 26.0 | – | – |",
    ]


def test_networks_are_compared_with_the_dense_one() -> None:
    assert latency.family_table(CONTENT).splitlines()[2:] == [
        "| erfnet-d\\* | 0.421 | 5.49 (1.00x) | 100.0 (1.00x) | contiguous | 50.0 (1.00x) |",
        "| erfnet-dg4\\* | 0.194 | 2.88 (1.91x) | 80.0 (1.25x) | channels_last | – |",
    ]


def test_the_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "report", lambda path: {})
    assert latency.latency_sections() == []
    monkeypatch.setattr(latency, "report", lambda path: CONTENT)
    text = str(latency.latency_sections()[0])
    assert text.startswith("## Time\n\nBatch 1, 1 thread, processor time")
    assert "within 1.0% of its median" in text and "of 360x480." in text and "for this test" in text
    assert "- commit: `abc`" in text and "- layers:" not in text


def test_a_quick_run_writes_a_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, path = torch.get_num_threads(), tmp_path / "report.jsonl"
    monkeypatch.setattr(sys, "argv", ["grouped_latency", "--quick", "--output", str(path)])
    try:
        grouped_latency.main()
    finally:
        torch.set_num_threads(threads)
    report = records.report(path)
    pointwise, spatial = report["layers"]
    macs = {name: variant["macs"] for name, variant in spatial["variants"].items()}
    whole, depthwise, pixels = 64 * 64 * 9, 64 * 9, 5 * 6
    assert {name: count / pixels for name, count in macs.items()} == {
        **{"dense": whole, "2 groups": whole / 2, "4 groups": whole / 4, "8 groups": whole / 8},
        **{"depthwise": depthwise, "depthwise, 1x1": depthwise + 64 * 64},
    }
    shuffled = pointwise["variants"]["4 groups, shuffled"]
    assert shuffled["macs"] == pixels * 64 * 64 / 4 and shuffled["ms"] > 0 and shuffled["format"] in report_formats()
    # The paper's table, at 512x1024 with 20 outputs.
    family = {row["network"]: (row["params"], row["macs"]) for row in report["family"]}
    assert family == {"erfnet-d*": (421_056, 5_494_407_168), "erfnet-dg4*": (193_728, 2_877_161_472)}
    assert report["notes"] == ["ONNX Runtime was left out: --no-onnx"]
    assert report["clock"] == "processor time" and report["versions"]["torch"] and "--quick" in report["command"]
    assert latency.layers_table(report).count("\n") == 3


def report_formats() -> set[str]:
    return set(grouped_latency.FORMATS)


def test_all_take_turns_and_short_passes_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0], []

    def pass_of(name: str, nanoseconds: int) -> Any:
        def run() -> None:
            order.append(name)
            now[0] += nanoseconds

        return run

    monkeypatch.setattr(grouped_latency.time, "process_time_ns", lambda: now[0])
    calls = {"slow": pass_of("slow", 3_000_000), "fast": pass_of("fast", 1_000_000)}
    timings = grouped_latency.interleave(calls, 1, rounds=2)
    assert {name: (timing.ms, timing.spread) for name, timing in timings.items()} == {"slow": (3, 0), "fast": (1, 0)}
    warm, timed = ["slow"] * 3 + ["fast"] * 3, ["slow", "fast", "fast", "fast", "fast", "slow"]
    assert order == warm + timed


FOURS = [network for network in grouped_latency.FAMILY if "dg4" in network.label or "4 groups" in network.label]


@pytest.mark.parametrize("network", FOURS, ids=lambda network: network.label)
def test_partial_variants_save_what_they_group(network: Any) -> None:
    groups = {name: layer.groups for name, layer in grouped_latency.built(network, 11).named_modules() if is_1x1(layer)}
    cut = {name for name, number in groups.items() if number > 1}
    if "128-channel stage" in network.label:
        assert len(cut) == 16 and all(7 <= int(name.split(".")[1]) <= 15 for name in cut)
    elif "decoder" in network.label:
        assert {name.split(".")[0] for name in cut} == {"encoder", "decoder"}
    elif "dg4" in network.label:
        assert len(cut) == 26 and all(name.startswith("encoder.") for name in cut)  # both 1x1s of 13 blocks
    else:
        assert not cut


def is_1x1(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (1, 1)


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_logits() -> None:
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    options = type("Options", (), {"onnx": True, "threads": 1})
    module, image = grouped_latency.built(grouped_latency.FAMILY[4], 11), torch.rand(1, 3, 24, 32)
    sessions, notes = grouped_latency.in_onnx_runtime({"dg4": module}, image, options)
    [logits] = sessions["dg4 onnx"]()
    torch.testing.assert_close(torch.from_numpy(logits), module(image).detach(), rtol=1e-4, atol=1e-5)
    assert notes == []
