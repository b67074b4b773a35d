"""The front of a model file: its header, read without PyTorch and without the weights.

A model file is a `.safetensors` file: eight bytes with a length (little endian), JSON of that length, then the raw
numbers of all tensors. The JSON says where each tensor lies and, under ``__metadata__``, holds litheseg's entry: the
header and a SHA-256 of header and tensors. The weights are read, by safetensors, and compared with the checksum in
`litheseg.models.bundle.load_bundle`.

Format: github.com/huggingface/safetensors, "Format".

Usage:
    >>> read_model_file("model.safetensors").header.classes.names
    ('sky', 'road', 'car')
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from litheseg.bundle.description import KEY
from litheseg.bundle.header import BundleHeader
from litheseg.bundle.names import model_path
from litheseg.errors import BundleError

__all__ = ["ModelFile", "parse_model_file", "read_model_file"]

_MAX_PREAMBLE = 1 << 24  # bytes; ten thousand tensors need some million
_FOREIGN = "is no litheseg model; give a .safetensors file written by `litheseg train` or `save_bundle`"
_AGAIN = "copy or download it again, or export the model anew"


@dataclass(frozen=True)
class ModelFile:
    """What a model file says of itself.

    Attributes:
        header: everything but the weights.
        header_text: the header as it enters the checksum.
        sha256: of header and tensors, as the file has it.
    """

    header: BundleHeader
    header_text: str
    sha256: str


def read_model_file(path: str | Path) -> ModelFile:
    """Read the front of a model file, which is given by its path or a name (`litheseg.bundle.names`).

    Raises:
        BundleError: a file that is missing, no model, or newer than this litheseg, or whose header is damaged.
    """
    path = model_path(path)
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
        entry = json.loads(file.read(length), object_pairs_hook=_unique)["__metadata__"][KEY]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} {_FOREIGN} (or it is corrupted: {_AGAIN})") from error
    try:
        own = json.loads(entry)
        text, digest = json.dumps(own["header"], sort_keys=True), str(own["sha256"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is corrupted: its header cannot be read; {_AGAIN}") from error
    try:
        return ModelFile(BundleHeader.from_json(text), text, digest)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice")
    return content
