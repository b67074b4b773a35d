"""The program that times every target, and the page that its records make."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import records
import torch
import torch.nn.functional as F
from measure.targets import in_browser, in_process
from pages.targets import target_sections

from litheseg.bundle.exported import load_export
from litheseg.streets import render_street

BOX = Path(__file__).parents[2] / "zoo" / "camvid-lite0-box"  # an export of ONNX networks
SAYS = "ncnn needs the package 'pnnx': pip install 'litheseg[export]'"


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    """Of a machine with one export, where everything else is made by a converter that fails."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@"\necho "error: {SAYS}"\nexit 1\n')
    python.chmod(0o755)
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "onnx").symlink_to(BOX)
    formats = ("torch", "openvino", "ncnn", "executorch", "coreml", "litert")
    given = {"model": "zoo:camvid-lite0", "width": 0.25, "size": [360, 480], "data": Path("photos"), "chromium": None}
    converters = [f"{name}={python}" for name in formats]
    return argparse.Namespace(exports=tmp_path / "exports", converter=converters, **given)


def test_what_is_there_runs_and_what_is_missing_says_what_to_install(options: argparse.Namespace) -> None:
    picture = render_street(np.random.default_rng(0), (360, 480))[0]
    rows = {(one.row["target"], one.row["precision"]): one for one in in_process([picture], options)}
    found = rows.pop(("onnxruntime", "fp32"))
    session = onnxruntime.InferenceSession(BOX / "onnx-fp32-w0.25.onnx")
    [logits] = session.run(None, {"image": picture[None]})
    wanted = F.interpolate(torch.from_numpy(logits), (360, 480), mode="bilinear").argmax(1)[0].numpy()
    assert (found.labels[0] == wanted).mean() > 0.9999 and all(time > 0 for time in found.timed())
    certificate = json.loads((BOX / "certificate.json").read_text())["certificates"]["onnx-fp32-w0.25.onnx"]
    assert found.row["certificate"].items() >= {name: certificate[name] for name in ("pixels", "differing")}.items()
    assert found.row["megabytes"] > 0.1
    assert "has no int8 network" in rows.pop(("onnxruntime", "int8")).row["missing"]
    assert {one.row["missing"] for one in rows.values()} == {SAYS} and not any(one.labels for one in rows.values())
    asked = (options.exports / "ncnn.log").read_text()
    assert "export zoo:camvid-lite0" in asked and "--format ncnn --data photos --widths 0.25 --size 360x480" in asked


def test_without_a_browser_there_is_a_row_all_the_same(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = load_export(BOX).header
    (options.exports / "web").mkdir()
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    fp32, int8 = in_browser(header, [], options, ExitStack())
    assert fp32.row["missing"] == "a browser needs the package 'playwright': pip install playwright"
    assert int8.row["missing"] == "the ONNX export has no int8 network" and not (fp32.labels or int8.labels)


def certified(differing: int, miou: float = 0.5, **facts: Any) -> dict[str, Any]:
    common = {
        "runtime": "litert",
        "images": 4,
        "pixels": 10_000,
        "reference_miou": 0.5,
        "worst_class": ["pole", -0.011],
    }
    return {"megabytes": 1.5, "certificate": common | {"differing": differing, "miou": miou} | facts}


def row(target: str, precision: str, cpu: float | None = None, **facts: Any) -> dict[str, Any]:
    timed = {"times": {"cpu": cpu, "p50": 2 * cpu, "p95": 3 * cpu}, "agreement": 0.99996} if cpu else {}
    return {"target": target, "precision": precision, **timed, **facts}


def page(monkeypatch: pytest.MonkeyPatch, folder: Path, *rows: dict[str, Any]) -> str:
    monkeypatch.setattr(records, "RESULTS", folder)
    options = {"model": "zoo:street", "width": 0.5, "size": [36, 48], "rounds": 7}
    common = {"options": options, "load_average": [2.5, 2, 1], "clock": "in turns", "hardware": "2 x CPU"}
    lines = [
        json.dumps({"table": "targets", "key": f"rows/{index}", "seed": None, "metrics": one, **common})
        for index, one in enumerate(rows)
    ]
    (folder / "targets.jsonl").write_text("\n".join(lines))
    return "\n\n".join(map(str, target_sections()))


def test_the_page_sorts_by_time_and_judges_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = page(
        *(monkeypatch, tmp_path),
        row("onnxruntime", "fp32", 20.0, **certified(1, runtime="onnxruntime")),
        row("coreml", "fp32", **certified(5, runtime="operators in PyTorch"), missing="runs on Darwin only"),
        row("litert", "int8", 10.0, **certified(300, 0.496), kept=2),
        row("ncnn", "fp16", 15.0, megabytes=1.5),
    )
    assert "| [LiteRT](../targets/litert.md) | int8 | 10.0 (0.50x) | 20.0 | 1.50 | 3.00% | 49.60 (pole -1.1) |" in text
    assert "| ONNX Runtime | fp32 | 20.0 (1.00x) | 40.0 | 1.50 | 1 of 10,000 | 50.00 | 99.996 |  |" in text
    assert "| – | – | 1.50 | 5 of 10,000 | 50.00 | – | certificate: operators in PyTorch; runs on Darwin only |" in text
    order = [text.index(name) for name in ("[LiteRT]", "| [ncnn]", "| ONNX Runtime |", "[Core ML]")]
    assert order == sorted(order) and "no certificate in this precision" in text
    assert "in float, everywhere: **met** (2 compared; 99.9500 % at least)" in text
    assert "or refused: **met** (1 compared; 0.40 points at most)" in text


def test_what_disagrees_misses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = row("ncnn", "fp32", 15.0, **certified(11)), row("litert", "int8", 9.0, **certified(300, 0.494))
    text = page(monkeypatch, tmp_path, *rows)
    assert text.count("**missed**") == 2


def test_nothing_measured_nothing_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert target_sections() == []
