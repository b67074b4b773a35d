"""Graphics cards in ONNX Runtime, as far as a machine without one can tell: what it is asked, and what it hides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from litheseg.runtime.in_onnxruntime import open_network

onnxruntime = pytest.importorskip("onnxruntime")
TENSORRT, CUDA, CPU = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CPU"))


class Fake:
    """A session that starts some providers only, and takes the rest without a word, as ONNX Runtime does."""

    started: tuple[str, ...] = ()
    asked: dict[str, dict[str, str]]

    def __init__(self, path: str, options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
        Fake.asked = dict(providers)

    def get_providers(self) -> list[str]:
        return [name for name in Fake.asked if name in self.started]

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "image"})]

    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [feed["image"] + 1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fake)
    monkeypatch.setattr(Fake, "started", (TENSORRT, CUDA, CPU))
    return Fake


def test_tensorrt_leaves_to_cuda_what_it_lacks_and_keeps_what_it_built(started: type[Fake], tmp_path: Path) -> None:
    network = open_network(str(tmp_path / "x.onnx"), device="tensorrt:1")
    assert list(started.asked) == [TENSORRT, CUDA, CPU]
    assert started.asked[TENSORRT]["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert {started.asked[name]["device_id"] for name in (TENSORRT, CUDA)} == {"1"}
    assert network(np.zeros(2)).tolist() == [1, 1]


def test_cuda_computes_in_32_bits(started: type[Fake], tmp_path: Path) -> None:
    open_network(str(tmp_path / "x.onnx"), device="cuda")
    assert started.asked[CUDA] == {"device_id": "0", "use_tf32": "0"}


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_does_not_start_is_no_cpu(
    started: type[Fake], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str
) -> None:
    monkeypatch.setattr(Fake, "started", (CPU,))
    with pytest.raises(NotImplementedError, match=f"cannot start '{device}' here: libraries of CUDA"):
        open_network(str(tmp_path / "x.onnx"), device=device)


def test_an_unknown_device(started: type[Fake], tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="not on 'mps'"):
        open_network(str(tmp_path / "x.onnx"), device="mps")
