"""What several tests of exports share."""

from __future__ import annotations

import pytest
from tiny_export import tiny_bundle

from litheseg.models.bundle import Bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of a network that the module has to know: `registered(tiny=build_tiny)`."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "model.safetensors")
