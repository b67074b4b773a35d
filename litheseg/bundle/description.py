"""Read the text that network files carry inside, without running anything.

It needs none of the libraries that wrote the files, and reads little more of them than the text, which
`litheseg.bundle.exported` parses.

Usage:
    >>> text = read_description(Path("street.onnx"))
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, NamedTuple
from xml.parsers import expat

from litheseg.bundle.targets import TARGETS
from litheseg.errors import BundleError, first_line

__all__ = [
    "ARCHIVE_ENTRY",
    "COREML_MODEL",
    "KEY",
    "OnnxTexts",
    "append_description",
    "read_description",
    "read_entry",
    "read_onnx",
]

KEY = "litheseg"
"""Under which the text is kept: in ONNX's metadata_props, in OpenVINO's rt_info, in the last line of other files."""
ARCHIVE_ENTRY = "litheseg.json"
"""The extra file of a `torch.export` archive that holds it."""
COREML_MODEL = "Data/com.apple.CoreML/model.mlmodel"
"""The file of a Core ML package that holds it."""

_LAST_LINE = f"\n{KEY} ".encode()  # how the last line of other formats begins
_MAX_TEXT = 1 << 24  # bytes; recipes and class names make up some thousand
_MAX_XML = 1 << 26  # bytes; a graph of ten thousand layers has some million
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
_COREML_MESSAGES: dict[str, dict[int, str]] = {  # their entries of a map are stored like those of ONNX
    "Model": {2: "ModelDescription"},
    "ModelDescription": {100: "Metadata"},
    "Metadata": {100: "StringStringEntryProto"},
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


def read_description(path: Path) -> str:
    """The text inside a network file.

    Args:
        path: its main file, such as .onnx, .xml or .pt2.

    Raises:
        BundleError: another kind of file, a damaged one, one whose weights are not beside it, or one that litheseg did
            not write.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BundleError(f"{path} is no export: give a folder, or a file that ends in {', '.join(sorted(_READERS))}")
    try:
        text = reader(path)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, expat.ExpatError) as error:
        reason = first_line(error)
        raise BundleError(f"{path} cannot be read ({reason}); it is damaged, or no such file: copy it again") from error
    if text is None:
        raise BundleError(f"{path} was not exported by litheseg: it says nothing of classes; use `litheseg export`")
    return text


def append_description(path: Path, text: str) -> None:
    """Add the text to a file whose format has no place for it and whose readers do not mind what follows the end.

    Args:
        path: the network file.
        text: in one line.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab") as file:
        file.write(_LAST_LINE + text.encode() + b"\n")


def read_onnx(path: Path) -> OnnxTexts:
    """The texts in an ONNX file.

    An ONNX file is a protobuf message. This walks through it and skips everything else unread, weights above all, so
    that a file of any size is looked through in milliseconds, without the package `onnx`. No length in the file is
    trusted: what claims to reach beyond what holds it, or to be longer than such a text ever is, is refused.

    Format: protobuf.dev/programming-guides/encoding; numbers of the fields: onnx.proto of github.com/onnx/onnx.

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


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    """One file of a `torch.export` archive; a small archive may unpack to a huge one, and its directory may lie.

    Args:
        archive: open for reading.
        entry: of this archive.
        limit: bytes that it may have, whatever the directory says.

    Raises:
        ValueError: it is larger, or compressed, which no such archive is.
        zipfile.BadZipFile: it is damaged.
    """
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"'{entry.filename}' in it is compressed, which PyTorch never does")
    if entry.file_size <= limit:
        with archive.open(entry) as file:
            content = file.read(limit + 1)
        if len(content) <= limit:
            return content
    raise ValueError(f"'{entry.filename}' in it is larger than {limit:,} bytes")


def _from_onnx(path: Path) -> str | None:
    metadata, files = read_onnx(path)
    for name in files:
        _check_beside(path, name)
    return metadata.get(KEY)


def _from_openvino(path: Path) -> str | None:
    _check_beside(path, path.with_suffix(".bin").name)
    if path.stat().st_size > _MAX_XML:
        raise ValueError(f"it has more than {_MAX_XML:,} bytes")
    reader = _RuntimeInfo()
    with path.open("rb") as file:
        reader.parser.ParseFile(file)
    return reader.text


def _from_archive(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{ARCHIVE_ENTRY}")]
        if len(entries) > 1:
            raise ValueError(f"it holds {len(entries)} accounts of itself")
        return read_entry(archive, entries[0], _MAX_TEXT).decode() if entries else None


def _from_last_line(path: Path) -> str | None:
    for suffix in next(target.beside for target in TARGETS.values() if target.suffix == path.suffix.lower()):
        _check_beside(path, path.with_suffix(suffix).name)
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _MAX_TEXT))
        last = file.read().rpartition(_LAST_LINE)
    return last[2].decode().rstrip("\n") if last[1] else None


def _from_coreml(path: Path) -> str | None:
    """Of a package: a folder with the graph in one file and the weights in another."""
    model = path / COREML_MODEL
    with model.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        return {key: value for _, key, value in _entries(file, size, "Model", 0)}.get(KEY)


def _check_beside(path: Path, weights: str) -> None:
    """Weights must lie beside the network, or below: a name that leads elsewhere could read any file."""
    outside = PureWindowsPath(weights).anchor or PurePosixPath(weights).anchor or ".." in PureWindowsPath(weights).parts
    if outside or "\0" in weights:
        raise BundleError(f"{path} wants its weights from '{weights}', outside its folder; export the model anew")
    if not (path.parent / weights).is_file():
        raise BundleError(f"{path} lacks its weights, {weights}; copy both files together")


def _entries(file: BinaryIO, end: int, kind: str, depth: int) -> Iterator[tuple[str, str, str]]:
    """(kind of message that holds it, key, value) of all entries in the message from here to `end`."""
    if depth > _MAX_DEPTH:
        raise ValueError("messages lie too deep in each other")
    inside = _MESSAGES.get(kind) or _COREML_MESSAGES[kind]
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


class _RuntimeInfo:
    """Finds ``<rt_info><litheseg value="TEXT"/>`` in OpenVINO's XML; refuses a DOCTYPE, which could define text."""

    def __init__(self) -> None:
        self.text: str | None = None
        self._open: list[str] = []
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def _doctype(self, *_: Any) -> None:
        raise ValueError("it has a DOCTYPE, which no network has")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if self._open == ["net", "rt_info", KEY]:
            self.text = attributes.get("value")

    def _end(self, _: str) -> None:
        self._open.pop()


_READERS: dict[str, Callable[[Path], str | None]] = {
    **{target.suffix: _from_last_line for target in TARGETS.values()},
    ".mlpackage": _from_coreml,
    ".onnx": _from_onnx,
    ".pt2": _from_archive,
    ".xml": _from_openvino,
}
