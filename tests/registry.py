"""Architectures that only some tests know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest

from litheseg.models import MODELS


def registered(**builders: Callable[..., Any]) -> Any:
    """A fixture for the top of a test file: its tests find these in `MODELS`, those of other files do not."""

    @pytest.fixture(autouse=True, scope="module")
    def _registered() -> Iterator[None]:
        with patch.dict(MODELS, builders):
            yield

    return _registered
