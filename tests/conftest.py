"""What all tests share: no waiting for what only real machines and power cuts need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from litheseg import machine


@pytest.fixture(autouse=True, scope="session")
def _hasty() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_AGAIN", 0.0)  # untimed passes make times steady
        patch.setattr(os, "fsync", lambda descriptor: None)  # no test cuts the power
        yield
