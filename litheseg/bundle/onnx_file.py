"""What an ONNX file says beside its graph: texts about it, and the files in which it keeps weights.

An ONNX file is a protobuf message. This walks through it and skips everything else unread, weights above all, so that a
file of any size is looked through in milliseconds, without the package `onnx`. No length in the file is trusted: what
claims to reach beyond what holds it, or to be longer than such a text ever is, is refused.

Format: protobuf.dev/programming-guides/encoding; numbers of the fields: onnx.proto of github.com/onnx/onnx.

Usage:
    >>> metadata, files = read_onnx(Path("street.onnx"))
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from litheseg.errors import BundleError

__all__ = ["OnnxTexts", "read_onnx"]

_MAX_TEXT = 1 << 24  # bytes of one text about a model
_MAX_DEPTH = 64  # of messages within messages: loops within loops
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is stored
# Kind of message -> number of a field -> the kind of message in it; all other fields are skipped.
_MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 14: "StringStringEntryProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 10: "TensorProto", 6: "GraphProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_KEY, _VALUE = 1, 2  # fields of a StringStringEntryProto


class OnnxTexts(NamedTuple):
    """What was found.

    Attributes:
        metadata: the model's own, by key; a key that occurs again has its last value.
        files: where weights lie outside, as it is written there; each once, in the order of the file.
    """

    metadata: dict[str, str]
    files: tuple[str, ...]


def read_onnx(path: Path) -> OnnxTexts:
    """The texts in an ONNX file.

    Raises:
        BundleError: it is damaged, or no ONNX file.
        OSError: it cannot be read.
    """
    texts, places = dict[str, str](), dict[str, None]()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            for owner, key, value in _entries(file, size, "ModelProto", 0):
                if owner == "ModelProto":
                    texts[key] = value
                elif key == "location":
                    places[value] = None
        except ValueError as error:  # of UTF-8 as well
            raise BundleError(f"{path} is damaged, or no ONNX file ({error}); copy it again") from error
    return OnnxTexts(texts, tuple(places))


def _entries(file: BinaryIO, end: int, kind: str, depth: int) -> Iterator[tuple[str, str, str]]:
    """(kind of message that holds it, key, value) of all entries in the message from here to `end`."""
    if depth > _MAX_DEPTH:
        raise ValueError("messages lie too deep in each other")
    inside = _MESSAGES[kind]
    for number, length in _fields(file, end):
        found = inside.get(number)
        if found == "StringStringEntryProto":
            yield kind, *_entry(file, file.tell() + length)
        elif found is not None:
            yield from _entries(file, file.tell() + length, found, depth + 1)


def _entry(file: BinaryIO, end: int) -> tuple[str, str]:
    texts = {_KEY: "", _VALUE: ""}
    for number, length in _fields(file, end):
        if number in texts:
            if length > _MAX_TEXT:
                raise ValueError(f"a text of {length} bytes")
            texts[number] = file.read(length).decode()
    return texts[_KEY], texts[_VALUE]


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """(number, length in bytes) of the fields that hold bytes, the file standing at them; others are passed over."""
    while (position := file.tell()) < end:
        tag = _varint(file)
        number, stored = tag >> 3, tag & 7
        if not number or stored not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            raise ValueError(f"no field begins at byte {position}")
        content = _varint(file) if stored in (_VARINT, _BYTES) else 0
        length = {_FIXED64: 8, _FIXED32: 4, _BYTES: content}.get(stored, 0)
        following = file.tell() + length
        if following > end:
            raise ValueError(f"the field at byte {position} reaches beyond its end")
        if stored == _BYTES:
            yield number, length
        file.seek(following)


def _varint(file: BinaryIO) -> int:
    """A whole number in groups of seven bits, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than 64 bits")
