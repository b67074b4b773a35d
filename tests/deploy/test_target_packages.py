"""Targets whose package is missing or too old: one error that names the command, before anything is converted."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import litheseg.runtime.engines as engines
from litheseg.bundle.targets import TARGETS
from litheseg.deploy.conversion import Conversion, write_network
from litheseg.deploy.network import Deployed
from litheseg.errors import LithesegError, MissingExtraError
from litheseg.masks.image_format import ImageFormat

NETWORK = Conversion(Deployed(nn.Identity(), ImageFormat()), (24, 32))


@pytest.mark.parametrize("format", ["coreml", "executorch"])
def test_a_package_that_is_missing(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'litheseg\[{format}\]'"):
        write_network(format, NETWORK, tmp_path / "x")


@pytest.mark.parametrize("format", ["coreml", "executorch"])
def test_a_package_that_is_too_old(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engines, "version", lambda package: "0.9.1")
    package = f"{TARGETS[format].package}>={TARGETS[format].oldest}"
    with pytest.raises(LithesegError, match=f"0.9.1 is too old for export to .*; pip install --upgrade '{package}'"):
        write_network(format, NETWORK, tmp_path / "x")
