"""What all tests share: turns of timing without the untimed passes that make times of a real machine steady."""

from __future__ import annotations

import pytest

from litheseg import machine


@pytest.fixture(autouse=True, scope="session")
def _short_turns() -> None:
    machine._AGAIN = 0.0
