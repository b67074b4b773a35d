"""Servers that notice within a hundredth of a second that they are to end, not within a tenth: tests start many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True, scope="session")
def _short_ticks() -> Iterator[None]:
    module = pytest.importorskip("uvicorn.server")
    module.asyncio = SimpleNamespace(**vars(asyncio))
    module.asyncio.sleep = lambda seconds: asyncio.sleep(seconds / 10)
    yield
    module.asyncio = asyncio
