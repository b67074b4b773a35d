"""Text that network files carry inside: where each format keeps it, and how it is read without running anything.

It needs none of the libraries that wrote the files, and reads little more of them than the text. It does not know what
the text says (`litheseg.bundle.exported` does), nor how the files are written.

Usage:
    >>> text = read_description(Path("street.onnx"))
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from xml.parsers import expat

from litheseg.bundle.onnx_file import read_onnx
from litheseg.errors import BundleError

__all__ = ["ARCHIVE_ENTRY", "KEY", "read_description", "read_entry"]

KEY = "litheseg"
"""Under which the text is kept: in ONNX's metadata_props and OpenVINO's rt_info."""
ARCHIVE_ENTRY = "litheseg.json"
"""The extra file of a `torch.export` archive that holds it."""

_MAX_TEXT = 1 << 24  # bytes; recipes and class names make up some thousand
_MAX_XML = 1 << 26  # bytes; a graph of ten thousand layers has some million


def read_description(path: Path) -> str:
    """The text inside a network file.

    Args:
        path: an .onnx, .xml or .pt2 file.

    Raises:
        BundleError: another kind of file, a damaged one, one whose weights are not beside it, or one that litheseg did
            not write.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BundleError(f"{path} is no export: give a folder, or a file that ends in {', '.join(_READERS)}")
    try:
        text = reader(path)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, expat.ExpatError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path} cannot be read ({reason}); it is damaged, or no such file: copy it again") from error
    if text is None:
        raise BundleError(f"{path} was not exported by litheseg: it says nothing of classes; use `litheseg export`")
    return text


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


def _check_beside(path: Path, weights: str) -> None:
    """Weights must lie beside the network, or below: a name that leads elsewhere could read any file."""
    outside = PureWindowsPath(weights).anchor or PurePosixPath(weights).anchor or ".." in PureWindowsPath(weights).parts
    if outside or "\0" in weights:
        raise BundleError(f"{path} wants its weights from '{weights}', outside its folder; export the model anew")
    if not (path.parent / weights).is_file():
        raise BundleError(f"{path} lacks its weights, {weights}; copy both files together")


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
    ".onnx": _from_onnx,
    ".pt2": _from_archive,
    ".xml": _from_openvino,
}
