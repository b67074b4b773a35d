"""ONNX files of a few bytes, written by hand: what a model says of itself, and nothing to run."""

from __future__ import annotations


def varint(value: int) -> bytes:
    head = value & 0x7F
    return bytes([head | 0x80]) + varint(value >> 7) if value >> 7 else bytes([head])


def field(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def entry(key: str, value: str) -> bytes:
    return field(1, key) + field(2, value)


def tiny_onnx(text: str | None = None, location: str | None = None) -> bytes:
    """A ModelProto: ir_version 10, one initializer, and an account of itself."""
    place = b"" if location is None else field(13, entry("location", location))
    graph = field(5, field(8, "weight") + place)
    account = b"" if text is None else field(14, entry("litheseg", text))
    return varint(1 << 3) + varint(10) + field(7, graph) + account
