"""What a model file says: its header, and names, types and shapes of its tensors; read without PyTorch.

A model file is a `.safetensors` file: eight bytes with a length (little endian), JSON of that length, then the raw
numbers of all tensors, one behind the other. The JSON says where each tensor lies and, under ``__metadata__``, holds
litheseg's entry: the header and a SHA-256 of header and tensors. Nothing in it is believed before it is checked. What
the tensors are for is `litheseg.models.bundle`'s business.

Format: github.com/huggingface/safetensors, "Format".

Usage:
    >>> file = read_model_file("model.safetensors")
    >>> file.header.classes.names, file.tensors["classifier.weight"].shape
    (('sky', 'road', 'car'), (3, 16, 1, 1))
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from litheseg.bundle.description import KEY
from litheseg.bundle.header import BundleHeader
from litheseg.errors import BundleError

__all__ = ["ModelFile", "StoredTensor", "check_content", "content_digest", "parse_model_file", "read_model_file"]

_MAX_PREAMBLE = 1 << 24  # bytes; ten thousand tensors need some million
_MAX_DIMENSIONS = 16
_CHUNK = 1 << 20  # bytes
_METADATA = "__metadata__"
_FOREIGN = "is no litheseg model; give a .safetensors file written by `litheseg train` or `save_bundle`"
_AGAIN = "copy or download it again, or export the model anew"
# Type in the file -> PyTorch's name of it, which is what the checksum is made of, and its bytes.
_TYPES = {
    "BOOL": ("torch.bool", 1),
    "U8": ("torch.uint8", 1),
    "I8": ("torch.int8", 1),
    "I16": ("torch.int16", 2),
    "I32": ("torch.int32", 4),
    "I64": ("torch.int64", 8),
    "F16": ("torch.float16", 2),
    "BF16": ("torch.bfloat16", 2),
    "F32": ("torch.float32", 4),
    "F64": ("torch.float64", 8),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        dtype: as PyTorch calls it: "torch.float32".
        shape: of the tensor.
        start: of its first byte, counted from the start of the file.
        end: behind its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class ModelFile:
    """What a model file says; the numbers themselves are not read.

    Attributes:
        path: the file.
        header: everything but the weights.
        tensors: by name, in the order in which they lie in the file.
        sha256: of header and tensors, as the file has it; `check_content` compares it.
        header_text: the header as it enters the checksum.
    """

    path: Path
    header: BundleHeader
    tensors: Mapping[str, StoredTensor]
    sha256: str
    header_text: str


def read_model_file(path: str | Path) -> ModelFile:
    """Read the front of a model file.

    Raises:
        BundleError: a file that is missing, corrupted, truncated, no model, or newer than this litheseg.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            return parse_model_file(path, file)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}; check the path") from error


def parse_model_file(path: Path, file: BinaryIO) -> ModelFile:
    """As `read_model_file`, of a file that is open or in memory; `path` is for messages.

    Raises:
        BundleError: as there.
        OSError: the file cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _MAX_PREAMBLE):
        raise BundleError(f"{path} {_FOREIGN} (or it is truncated: {_AGAIN})")
    try:
        content = json.loads(file.read(length), object_pairs_hook=_unique)
        entry = content.pop(_METADATA)[KEY]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} {_FOREIGN} (or it is corrupted: {_AGAIN})") from error
    try:
        own = json.loads(entry)
        text, digest = json.dumps(own["header"], sort_keys=True), str(own["sha256"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is corrupted: its header cannot be read; {_AGAIN}") from error
    try:
        header = BundleHeader.from_json(text)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    try:
        tensors = _tensors(content, 8 + length, size)
    except ValueError as error:
        raise BundleError(f"{path} is corrupted or truncated: {error}; {_AGAIN}") from error
    return ModelFile(path, header, tensors, digest, text)


def check_content(model: ModelFile, file: BinaryIO) -> None:
    """Compare header and tensors with the checksum, reading the whole file once.

    Args:
        model: what `parse_model_file` said of this file.
        file: open or in memory.

    Raises:
        BundleError: they are not what was written.
        OSError: the file cannot be read.
    """
    parts = ((name, at.dtype, at.shape, _chunks(file, at)) for name, at in sorted(model.tensors.items()))
    if content_digest(model.header_text, parts) != model.sha256:
        raise BundleError(f"{model.path} is corrupted: its content does not match its checksum; {_AGAIN}")


def content_digest(text: str, tensors: Iterable[tuple[str, str, tuple[int, ...], Iterable[bytes | memoryview]]]) -> str:
    """SHA-256 over a header and every tensor's name, type, shape and bytes: safetensors itself has no checksum.

    Args:
        text: the header, as JSON with its fields sorted.
        tensors: sorted by name; the bytes may come in pieces.
    """
    result = hashlib.sha256(text.encode())
    for name, dtype, shape, pieces in tensors:
        result.update(f"\n{name} {dtype} {shape}\n".encode())
        for piece in pieces:
            result.update(piece)
    return result.hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _tensors(content: dict[str, Any], first: int, size: int) -> dict[str, StoredTensor]:
    """The tensors of a file, which fill it from byte `first` to its end, each right behind the one before."""
    found = {name: _tensor(name, entry, first) for name, entry in content.items()}
    position = first
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            raise ValueError(f"tensor '{name}' does not lie where the one before it ends")
        position = tensor.end
    if position != size:
        raise ValueError(f"its tensors need {position:,} bytes, it has {size:,}")
    return dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))


def _tensor(name: str, entry: Any, first: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor '{name}' lacks its type, shape or place")
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"tensor '{name}' is of type {kind!r}, which no model has")
    if not _wholes(shape) or len(shape) > _MAX_DIMENSIONS or not _wholes(place) or len(place) != 2:
        raise ValueError(f"tensor '{name}' has no shape and place in whole numbers")
    dtype, bytes_each = _TYPES[kind]
    if place[1] - place[0] != math.prod(shape) * bytes_each:
        raise ValueError(f"tensor '{name}' of shape {tuple(shape)} does not have {place[1] - place[0]:,} bytes")
    return StoredTensor(dtype, tuple(shape), first + place[0], first + place[1])


def _wholes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _chunks(file: BinaryIO, tensor: StoredTensor) -> Iterator[bytes]:
    file.seek(tensor.start)
    for start in range(tensor.start, tensor.end, _CHUNK):
        yield file.read(min(_CHUNK, tensor.end - start))
