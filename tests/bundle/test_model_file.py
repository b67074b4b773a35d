"""What a model file says, read without PyTorch and compared with what safetensors reads."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry import registered
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from tiny_export import build_tiny, tiny_bundle

from litheseg.bundle.model_file import check_content, read_model_file
from litheseg.errors import BundleError

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


def test_it_says_what_safetensors_says(saved: Path) -> None:
    model, raw = read_model_file(saved), saved.read_bytes()
    assert model.header.classes.names == ("sky", "road", "car")
    with safe_open(saved, "pt") as file:
        assert set(model.tensors) == set(file.keys())
        for name, tensor in model.tensors.items():
            expected = file.get_tensor(name)
            assert (tensor.dtype, tensor.shape) == (str(expected.dtype), tuple(expected.shape))
            assert raw[tensor.start : tensor.end] == expected.numpy().tobytes()
    with saved.open("rb") as file:
        check_content(model, file)


def test_a_flipped_number_is_found_without_pytorch(saved: Path) -> None:
    model, broken = read_model_file(saved), bytearray(saved.read_bytes())
    broken[-1] ^= 1
    with pytest.raises(BundleError, match=r"model\.safetensors is corrupted: .* checksum"):
        check_content(model, io.BytesIO(broken))


def _first(content: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in content.items() if name != "__metadata__" and entry["data_offsets"][0] == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: _first(c).update(shape=[1 << 40]), "does not have"),
        (lambda c: _first(c).update(shape=[-1]), "in whole numbers"),
        (lambda c: _first(c).update(shape=[1.5]), "in whole numbers"),
        (lambda c: _first(c).update(shape=[True]), "in whole numbers"),
        (lambda c: _first(c).update(data_offsets=[0]), "in whole numbers"),
        (lambda c: _first(c).update(data_offsets=[8, 4]), "does not have"),
        (lambda c: _first(c).update(dtype="F4"), "type 'F4'"),
        (lambda c: _first(c).update(dtype=[]), r"type \[\]"),
        (lambda c: _first(c).pop("shape"), "lacks its type, shape or place"),
        (lambda c: c.update(extra=[]), "'extra' lacks its type"),
        (lambda c: c.update(extra={"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}), "does not lie where"),
        (
            lambda c: c.update(extra={"dtype": "U8", "shape": [1 << 9], "data_offsets": [1 << 20, 1049088]}),
            "does not lie where",
        ),
        (lambda c: c.pop(next(name for name, entry in c.items() if entry is _first(c))), "does not lie where"),
    ],
)
def test_tensors_that_cannot_be_where_the_file_says(
    saved: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    _rewritten(saved, change)
    with pytest.raises(SafetensorError):  # the oracle refuses it as well
        load(saved.read_bytes())
    with pytest.raises(BundleError, match=rf"model\.safetensors is corrupted or truncated: .*{message}"):
        read_model_file(saved)


def test_a_shape_that_takes_long_to_multiply(saved: Path) -> None:
    _rewritten(saved, lambda content: _first(content).update(shape=[(1 << 62) + 1] * 100_000))
    with pytest.raises(BundleError, match="in whole numbers"):
        read_model_file(saved)


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
