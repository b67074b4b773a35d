"""Where images come from and results go to: paths of this machine, and URIs of object stores.

An address is a path or a URI: ``photos/a.jpg``, ``file:///data/a.jpg``, ``s3://bucket/photos/a.jpg``, ``gs://...``,
``memory://...``, or any other that fsspec reads. Amazon's and Google's stores are reached through Arrow, others through
fsspec; both come with the extra `ray`, and paths need neither. Keys and credentials are those that the libraries find
(environment, configuration files, the machine's role). It does not know images.

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
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from litheseg.errors import DataError, LithesegError, MissingExtraError
from litheseg.files import atomic_path

__all__ = ["Named", "OutputFolder", "fetch", "files_below", "is_folder", "local_path", "open_folder", "read_bytes"]

# Stores in which an object is there as a whole or not at all, so that one may write straight to its name.
_WHOLE = ("abfs", "abfss", "az", "gcs", "gs", "memory", "s3")
_BY_ARROW = ("gcs", "gs", "s3")


class OutputFolder(Protocol):
    """A place for results; names in it are relative, with ``/`` between their parts.

    Attributes:
        address: of the folder.
        appends: whether files can grow; of objects there are new versions only.
    """

    address: str
    appends: bool

    def exists(self, name: str) -> bool:
        """Whether it is there now."""

    def names(self, below: str) -> set[str]:
        """The names of all that lies directly in a folder below this one ("" for itself)."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            LithesegError: it cannot be written.
        """

    def append(self, name: str, data: bytes) -> None:
        """Let a file grow, which is made if it is missing; only where `appends`.

        Raises:
            LithesegError: it cannot be written.
        """

    def read(self, name: str) -> bytes:
        """The content of a file; nothing if there is none.

        Raises:
            LithesegError: it is there and cannot be read.
        """

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""


class Named(io.BytesIO):
    """The content of a remote file; its text is the file's address, so that messages can name it."""

    def __init__(self, data: bytes, address: str) -> None:
        super().__init__(data)
        self._address = address

    def __str__(self) -> str:
        return self._address


def local_path(address: str | Path) -> Path | None:
    """The path that an address stands for; None if it is another machine's."""
    text = str(address)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return None if "://" in text else Path(text).expanduser()


def fetch(address: str) -> Path | Named:
    """A file as image libraries take it: a path stays where it is, everything else is read now.

    Raises:
        DataError: it cannot be read.
    """
    path = local_path(address)
    return Named(read_bytes(address), address) if path is None else path


def read_bytes(address: str | Path) -> bytes:
    """The whole content of a file.

    Raises:
        DataError: it is not there or cannot be read.
        MissingExtraError: a URI, and its library is not installed.
    """
    path = local_path(address)
    try:
        if path is not None:
            return path.read_bytes()
        store, place = _store(str(address))
        with store.open_input_stream(place, compression=None) as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise DataError(f"{address} does not exist; restore it or leave it out") from error
    except LithesegError:
        raise
    except Exception as error:  # each storage library has errors of its own
        raise DataError(f"{address} cannot be read ({_reason(error)})") from error


def is_folder(address: str | Path) -> bool:
    """Whether there is a folder, or a prefix with something below it.

    Raises:
        DataError: the store does not answer.
    """
    path = local_path(address)
    if path is not None:
        return path.is_dir()
    store, place = _store(str(address))
    try:
        return bool(store.get_file_info(place).type.name == "Directory")
    except Exception as error:
        raise DataError(f"{address} cannot be looked at ({_reason(error)})") from error


def files_below(address: str | Path) -> Iterator[tuple[str, str]]:
    """(address, name below the folder) of all files in a folder and the folders in it, sorted.

    Raises:
        DataError: the store cannot list it.
    """
    path = local_path(address)
    if path is not None:
        found = sorted(entry for entry in path.rglob("*") if entry.is_file())
        yield from ((str(entry), entry.relative_to(path).as_posix()) for entry in found)
        return
    store, place = _store(str(address))
    base, root = str(address).rstrip("/"), place.rstrip("/")
    try:
        entries = store.get_file_info(_selector(root, recursive=True))
    except Exception as error:
        raise DataError(f"{address} cannot be listed ({_reason(error)})") from error
    for name in sorted(entry.path[len(root) :].lstrip("/") for entry in entries if entry.type.name == "File"):
        yield f"{base}/{name}", name


def open_folder(address: str | Path) -> OutputFolder:
    """The folder of an address; nothing is made yet.

    Raises:
        DataError: a file, or a store that could be left with half a file.
        MissingExtraError: a URI, and its library is not installed.
    """
    path = local_path(address)
    if path is None:
        return _RemoteFolder(str(address))
    if path.exists() and not path.is_dir():
        raise DataError(f"output {address} is a file; give a folder")
    return _LocalFolder(path)


class _LocalFolder:
    appends = True

    def __init__(self, path: Path) -> None:
        self.address, self._path = str(path), path

    def exists(self, name: str) -> bool:
        return (self._path / name).exists()

    def names(self, below: str) -> set[str]:
        try:
            return {entry.name for entry in (self._path / below).iterdir()}
        except OSError:  # not there yet; or it cannot be, which writing says better
            return set()

    def write(self, name: str, data: bytes) -> None:
        with atomic_path(self._path / name) as temporary:
            temporary.write_bytes(data)

    def append(self, name: str, data: bytes) -> None:
        path = self._path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:  # one write, so that a kill leaves whole lines
                file.write(data)
        except OSError as error:
            reason = error.strerror or error
            raise LithesegError(f"cannot write {path}: {reason}; free space or choose another path") from error

    def read(self, name: str) -> bytes:
        path = self._path / name
        try:
            return path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise LithesegError(f"cannot read {path}: {error.strerror or error}; remove it") from error

    def remove(self, name: str) -> None:
        with suppress(OSError):
            (self._path / name).unlink()


class _RemoteFolder:
    appends = False

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        scheme = urlsplit(address).scheme
        if scheme not in _WHOLE:
            known = ", ".join(f"{name}://" for name in _WHOLE)
            raise DataError(f"output {address}: {scheme}:// may be left with half a file; give a folder or {known}")
        self._store, place = _store(self.address)
        self._root = place.rstrip("/")

    def exists(self, name: str) -> bool:
        try:
            return bool(self._store.get_file_info(self._place(name)).type.name != "NotFound")
        except Exception as error:
            raise self._unusable("looked at", error) from error

    def names(self, below: str) -> set[str]:
        try:
            entries = self._store.get_file_info(_selector(self._place(below)))
        except Exception as error:
            raise self._unusable("listed", error) from error
        return {entry.base_name for entry in entries}

    def write(self, name: str, data: bytes) -> None:
        try:
            with self._store.open_output_stream(self._place(name), compression=None) as stream:
                stream.write(data)
        except Exception as error:
            raise LithesegError(f"cannot write {self.address}/{name}: {_reason(error)}") from error

    def append(self, name: str, data: bytes) -> None:
        raise NotImplementedError(f"{self.address} holds objects, which do not grow")

    def read(self, name: str) -> bytes:
        if not self.exists(name):
            return b""
        try:
            with self._store.open_input_stream(self._place(name), compression=None) as stream:
                return bytes(stream.read())
        except Exception as error:
            raise self._unusable("read", error) from error

    def remove(self, name: str) -> None:
        # Arrow hands the name to fsspec's `rm`, which takes "[" and "*" for patterns and would remove others.
        handler = getattr(self._store, "handler", None)
        with suppress(OSError):
            (handler.fs.rm_file if handler else self._store.delete_file)(self._place(name))

    def _place(self, name: str) -> str:
        return posixpath.join(self._root, name).rstrip("/")

    def _unusable(self, verb: str, error: Exception) -> LithesegError:
        return LithesegError(f"output {self.address} cannot be {verb} ({_reason(error)})")


def _store(address: str) -> tuple[Any, str]:
    """The Arrow file system of a URI, and the place in it.

    Raises:
        MissingExtraError: its library is not installed.
        DataError: nobody knows such URIs.
    """
    parts = urlsplit(address)
    if parts.scheme in _BY_ARROW:
        # Only the bucket is parsed as a URI: keys may hold spaces, "#" and "%".
        return _bucket(parts.scheme, parts.netloc), address.partition("://")[2]
    store = _by_fsspec(parts.scheme)
    return store, str(store.handler.fs._strip_protocol(address))


@lru_cache(maxsize=64)
def _bucket(scheme: str, bucket: str) -> Any:
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise MissingExtraError("pyarrow", "ray", f"{scheme}://") from error
    # Without this option S3 gets three requests for an object of any size.
    uri = f"s3://{bucket}?allow_delayed_open=true" if scheme == "s3" else f"gs://{bucket}"
    try:
        return FileSystem.from_uri(uri)[0]
    except Exception as error:
        raise DataError(f"{scheme}://{bucket} cannot be opened ({_reason(error)})") from error


@lru_cache(maxsize=16)
def _by_fsspec(scheme: str) -> Any:
    try:
        import fsspec
        from pyarrow.fs import FSSpecHandler, PyFileSystem
    except ImportError as error:
        raise MissingExtraError("pyarrow", "ray", f"{scheme}://") from error
    try:
        return PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme)))
    except (ImportError, ValueError) as error:
        raise DataError(f"{scheme}:// cannot be opened ({_reason(error)})") from error


def _selector(place: str, *, recursive: bool = False) -> Any:
    from pyarrow.fs import FileSelector

    return FileSelector(place, allow_not_found=True, recursive=recursive)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
