"""What all tests share: no waiting for what only real machines and power cuts need, nor for the garbage collector."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import cache

import pytest

from litheseg import machine


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays, and need not be searched each time that a test times a network or exports one."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _hasty() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_AGAIN", 0.0)  # untimed passes make times steady
        patch.setattr(os, "fsync", lambda descriptor: None)  # no test cuts the power
        if "onnxscript" in sys.modules:
            _read_operators_once(patch)
        yield


def _read_operators_once(patch: pytest.MonkeyPatch) -> None:
    """PyTorch's exporter reads the sources of all that ONNX can do anew for each network, for a second."""
    with suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
