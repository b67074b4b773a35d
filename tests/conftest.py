"""What all tests share: no waiting for what only real machines and power cuts need, nor for the garbage collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator

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
        yield
