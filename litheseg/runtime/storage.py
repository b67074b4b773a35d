"""Where images come from and results go to: paths of this machine, and URIs of object stores.

An address is a path or a URI: ``photos/a.jpg``, ``file:///data/a.jpg``, ``s3://bucket/photos/a.jpg``, ``gs://...``,
``memory://...``, or any other that fsspec reads. Amazon's and Google's stores are reached through Arrow, others through
fsspec; both come with the extra `ray`, and paths need neither. Keys and credentials are those that the libraries find
(environment, configuration files, the machine's role).

A result is whole or absent: a file is written beside its target and renamed, an object appears with a single put.

Usage:
    >>> results = open_folder("s3://bucket/labelled")
    >>> results.write("street/a.png", data)
    >>> fetch("s3://bucket/photos/a.jpg").read()[:2]
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from litheseg.errors import DataError, LithesegError, MissingExtraError
from litheseg.files import atomic_path

__all__ = [
    "LocalFolder",
    "NamedBytes",
    "OutputFolder",
    "RemoteFolder",
    "fetch",
    "files_below",
    "is_folder",
    "local_path",
    "open_folder",
    "read_bytes",
]

# Stores whose writes are atomic, so that results can be written straight to their names.
_WHOLE = ("abfs", "abfss", "az", "gcs", "gs", "memory", "s3")
_BY_ARROW = ("gcs", "gs", "s3")


class LocalFolder:
    """A folder for results; names in it are relative, with ``/`` between their parts.

    Attributes:
        address: of the folder.
        appends: whether files can grow; of objects there are new versions only.

    Raises (on use):
        LithesegError: a file cannot be read or written.
    """

    appends = True

    def __init__(self, path: Path) -> None:
        self.address, self._path = str(path), path

    def exists(self, name: str) -> bool:
        """Whether a file is there now."""
        return (self._path / name).exists()

    def names(self, below: str) -> set[str]:
        """The names of all that lies directly in a folder below this one ("" for itself)."""
        try:
            return {entry.name for entry in (self._path / below).iterdir()}
        except OSError:  # not there yet; if it cannot be made, writing raises a clearer error
            return set()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        with atomic_path(self._path / name) as temporary:
            temporary.write_bytes(data)

    def append(self, name: str, data: bytes) -> None:
        """Let a file grow, which is made if it is missing."""
        path = self._path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:  # one write, so that a kill leaves whole lines
                file.write(data)
        except OSError as error:
            reason = error.strerror or error
            raise LithesegError(f"cannot write {path}: {reason}; free space or choose another path") from error

    def read(self, name: str) -> bytes:
        """The content of a file; nothing if there is none."""
        path = self._path / name
        try:
            return path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise LithesegError(f"cannot read {path}: {error.strerror or error}; remove it") from error

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(OSError):
            (self._path / name).unlink()


class RemoteFolder:
    """A folder for results in an object store; objects cannot be appended to."""

    appends = False

    def __init__(self, address: str) -> None:
        self.address, scheme = address.rstrip("/"), urlsplit(address).scheme
        if scheme not in _WHOLE:
            known = ", ".join(f"{name}://" for name in _WHOLE)
            raise DataError(f"output {address}: {scheme}:// may be left with half a file; give a folder or {known}")
        self._store, place = _store(self.address)
        self._root = place.rstrip("/")

    def exists(self, name: str) -> bool:
        """See `LocalFolder.exists`."""
        with _explained(self.address, "looked at"):
            return bool(self._store.get_file_info(self._place(name)).type.name != "NotFound")

    def names(self, below: str) -> set[str]:
        """See `LocalFolder.names`."""
        with _explained(self.address, "listed"):
            return {entry.base_name for entry in self._store.get_file_info(_selector(self._place(below)))}

    def write(self, name: str, data: bytes) -> None:
        """See `LocalFolder.write`."""
        with (
            _explained(f"{self.address}/{name}", "written"),
            self._store.open_output_stream(self._place(name), compression=None) as stream,
        ):
            stream.write(data)

    def append(self, name: str, data: bytes) -> None:
        """Objects do not grow."""
        raise NotImplementedError(self.address)

    def read(self, name: str) -> bytes:
        """See `LocalFolder.read`."""
        return read_bytes(f"{self.address}/{name}") if self.exists(name) else b""

    def remove(self, name: str) -> None:
        """See `LocalFolder.remove`."""
        # Arrow hands the name to fsspec's `rm`, which takes "[" and "*" for patterns and would remove others.
        handler = getattr(self._store, "handler", None)
        with suppress(OSError):
            (handler.fs.rm_file if handler else self._store.delete_file)(self._place(name))

    def _place(self, name: str) -> str:
        return posixpath.join(self._root, name).rstrip("/")


OutputFolder = LocalFolder | RemoteFolder


class NamedBytes(io.BytesIO):
    """The content of a remote file, or of one inside another; its text says where it is from, for messages."""

    def __init__(self, data: bytes, address: str) -> None:
        super().__init__(data)
        self._address = address

    def __str__(self) -> str:
        return self._address


def open_folder(address: str | Path) -> OutputFolder:
    """The folder of an address; nothing is made yet.

    Raises:
        DataError: a file, or a store that could be left with half a file.
        MissingExtraError: a URI, and its library is not installed.
    """
    path = local_path(address)
    if path is None:
        return RemoteFolder(str(address))
    if path.exists() and not path.is_dir():
        raise DataError(f"output {address} is a file; give a folder")
    return LocalFolder(path)


def local_path(address: str | Path) -> Path | None:
    """The path that an address stands for; None if it is another machine's."""
    text = str(address)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return None if "://" in text else Path(text).expanduser()


def fetch(address: str) -> Path | NamedBytes:
    """A file as image libraries take it: a path stays where it is, everything else is read now.

    Raises:
        DataError: it cannot be read.
    """
    path = local_path(address)
    return NamedBytes(read_bytes(address), address) if path is None else path


def read_bytes(address: str | Path) -> bytes:
    """The whole content of a file.

    Raises:
        DataError: it is not there or cannot be read.
        MissingExtraError: a URI, and its library is not installed.
    """
    path = local_path(address)
    with _explained(address, "read"):
        try:
            if path is not None:
                return path.read_bytes()
            store, place = _store(str(address))
            with store.open_input_stream(place, compression=None) as stream:
                return bytes(stream.read())
        except FileNotFoundError as error:
            raise DataError(f"{address} does not exist; restore it or leave it out") from error


def is_folder(address: str | Path) -> bool:
    """Whether there is a folder, or a prefix with something below it.

    Raises:
        DataError: the store does not answer.
    """
    path = local_path(address)
    if path is not None:
        return path.is_dir()
    store, place = _store(str(address))
    with _explained(address, "looked at"):
        return bool(store.get_file_info(place).type.name == "Directory")


def files_below(address: str | Path) -> list[tuple[str, str]]:
    """(address, name below the folder) of all files in a folder and the folders in it, sorted.

    Raises:
        DataError: the store cannot list it.
    """
    path = local_path(address)
    if path is not None:
        found = sorted(entry for entry in path.rglob("*") if entry.is_file())
        return [(str(entry), entry.relative_to(path).as_posix()) for entry in found]
    store, place = _store(str(address))
    root = place.rstrip("/")
    with _explained(address, "listed"):
        entries = store.get_file_info(_selector(root, recursive=True))
    names = sorted(entry.path[len(root) :].lstrip("/") for entry in entries if entry.type.name == "File")
    return [(f"{str(address).rstrip('/')}/{name}", name) for name in names]


def _store(address: str) -> tuple[Any, str]:
    """The Arrow file system of a URI, and the place in it."""
    parts = urlsplit(address)
    if parts.scheme in _BY_ARROW:
        # Only the bucket is parsed as a URI: keys may hold spaces, "#" and "%".
        return _file_system(parts.scheme, parts.netloc), address.partition("://")[2]
    store = _file_system(parts.scheme)
    return store, str(store.handler.fs._strip_protocol(address))


@lru_cache(maxsize=64)
def _file_system(scheme: str, bucket: str = "") -> Any:
    try:
        import fsspec
        from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
    except ImportError as error:
        raise MissingExtraError("pyarrow", "ray", f"{scheme}://") from error
    with _explained(f"{scheme}://{bucket}", "opened"):
        if scheme not in _BY_ARROW:
            return PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme)))
        # Without this option S3 gets three requests for an object of any size.
        uri = f"s3://{bucket}?allow_delayed_open=true" if scheme == "s3" else f"gs://{bucket}"
        return FileSystem.from_uri(uri)[0]


def _selector(place: str, *, recursive: bool = False) -> Any:
    from pyarrow.fs import FileSelector

    return FileSelector(place, allow_not_found=True, recursive=recursive)


@contextmanager
def _explained(address: str | Path, verb: str) -> Iterator[None]:
    """One error in place of those that each storage library has of its own."""
    try:
        yield
    except LithesegError:
        raise
    except Exception as error:
        raise DataError(
            f"{address} cannot be {verb} ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error
