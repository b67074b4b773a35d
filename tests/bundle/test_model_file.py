"""What a model file says, read without PyTorch, and model files whose tensors cannot be where they say."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry import registered
from safetensors import SafetensorError
from safetensors.torch import load
from tiny_export import build_tiny, tiny_bundle

from litheseg.bundle.model_file import read_model_file
from litheseg.errors import BundleError
from litheseg.models.bundle import load_bundle

_registered = registered(tiny=build_tiny)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_bundle(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def _rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    content = json.loads(whole[8 : 8 + length])
    change(content)
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    return path


def test_the_header_is_that_of_the_bundle(saved: Path) -> None:
    model = read_model_file(saved)
    assert model.header.classes.names == ("sky", "road", "car")
    assert model.header == load_bundle(saved).header


def test_a_flipped_number_is_found(saved: Path) -> None:
    broken = bytearray(saved.read_bytes())
    broken[-1] ^= 1
    saved.write_bytes(broken)
    with pytest.raises(BundleError, match=r"model\.safetensors is corrupted: .* checksum"):
        load_bundle(saved)


def _first(content: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in content.items() if name != "__metadata__" and entry["data_offsets"][0] == 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: _first(c).update(shape=[1 << 40]),
        lambda c: _first(c).update(shape=[-1]),
        lambda c: _first(c).update(shape=[1.5]),
        lambda c: _first(c).update(shape=[True]),
        lambda c: _first(c).update(data_offsets=[0]),
        lambda c: _first(c).update(data_offsets=[8, 4]),
        lambda c: _first(c).update(dtype="F4"),
        lambda c: _first(c).update(dtype=[]),
        lambda c: _first(c).pop("shape"),
        lambda c: c.update(extra=[]),
        lambda c: c.update(extra={"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}),
        lambda c: c.update(extra={"dtype": "U8", "shape": [1 << 9], "data_offsets": [1 << 20, 1049088]}),
        lambda c: c.pop(next(name for name, entry in c.items() if entry is _first(c))),
    ],
)
def test_tensors_that_cannot_be_where_the_file_says(saved: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    _rewritten(saved, change)
    with pytest.raises(SafetensorError) as refused:
        load(saved.read_bytes())
    with pytest.raises(BundleError, match=r"model\.safetensors is corrupted or truncated") as error:
        load_bundle(saved)
    assert str(refused.value) in str(error.value)


def test_a_shape_that_takes_long_to_multiply(saved: Path) -> None:
    _rewritten(saved, lambda content: _first(content).update(shape=[(1 << 62) + 1] * 100_000))
    with pytest.raises(BundleError, match="is corrupted or truncated"):
        load_bundle(saved)


def test_a_name_that_occurs_twice(saved: Path) -> None:
    whole = saved.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    text = b'{"__metadata__":{"litheseg":"{}"},' + whole[9 : 8 + length]
    saved.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises(BundleError, match="is no litheseg model"):
        read_model_file(saved)


def test_a_preamble_that_would_fill_the_memory_is_not_read(saved: Path) -> None:
    with saved.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)  # a hole: it takes no space
    with pytest.raises(BundleError, match="is no litheseg model"):
        read_model_file(saved)
