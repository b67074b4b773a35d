"""Write files and folders atomically: beside the target, synced to the disk, then renamed over it.

When the process or the machine stops in between, the target is either the old or the new one. At most
a hidden file or folder is left beside it (a dot, the target's name, eight digits), which nothing reads.

Usage:
    >>> with atomic_path("report.html") as temporary:
    ...     temporary.write_text("<h1>done</h1>")
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from litheseg.errors import LithesegError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "cache_folder",
    "file_digest",
    "make_folder",
    "names_full_disk",
    "write_text",
]

# What file systems answer that cannot, or need not, bring a file to the disk.
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS, errno.EBADF)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; put it in the place of `target` on success, remove it on failure.

    Args:
        target: the final path; missing parent folders are made. What is there is replaced as a whole: whether it may
            be is the caller's business.

    Raises:
        LithesegError: a folder cannot be made or written to, or the disk is full.
    """
    target = Path(target).absolute()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                _sync_file(Path(folder, name))
            _sync_folder(Path(folder))
        _replace_folder(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise LithesegError(
            f"cannot write {target}: {error.strerror or error}; free space or choose another path"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it to `target` on success, remove it on failure.

    The file gets the permissions of any new file in that folder, whatever its writer gave it.

    Args:
        target: the final path; missing parent folders are made.

    Raises:
        LithesegError: the folder cannot be made or written to, or the disk is full.
    """
    target = Path(target)
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = _usual_mode(temporary)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        _sync_file(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise LithesegError(
            f"cannot write {target}: {error.strerror or error}; free space or choose another path"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(target: str | Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all.

    Raises:
        LithesegError: the file cannot be written.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if they are not there.

    Raises:
        LithesegError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LithesegError(f"cannot make the folder {path}: {error.strerror or error}; choose another") from error


def names_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that the disk or somebody's share of it is full."""
    while error is not None:
        # safetensors has an error of its own, with the system's words
        if (isinstance(error, OSError) and error.errno in _FULL) or f"(os error {errno.ENOSPC})" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def cache_folder(name: str) -> Path:
    """Where what can be made or fetched again is kept: below ``$LITHESEG_CACHE``, or else ``~/.cache/litheseg``.

    ``$XDG_CACHE_HOME`` is honoured. The folder need not exist.

    Args:
        name: of what is kept there.
    """
    own = os.environ.get("LITHESEG_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litheseg"
    return (Path(own).expanduser() if own else usual) / name


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal text.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _usual_mode(path: Path) -> int:
    """The permissions that a new file gets there, by the umask (which only a change would show) and the folder."""
    path.touch(exist_ok=False)
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()  # some writers want to make it themselves
    return mode


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        _sync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where folders can be opened for that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # on Windows, and where one may write but not list
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder over another; `source` may be left holding what was there.

    Where the system cannot swap the two, the old one steps aside for a moment.
    """
    if not target.exists():
        os.replace(source, target)
    elif not _swap(source, target):
        aside = source.with_name(f"{source.name}.old")
        os.replace(target, aside)
        try:
            os.replace(source, target)
        except OSError:
            os.replace(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _swap(first: Path, second: Path) -> bool:
    """Exchange two paths in one step; False where that cannot be done (other systems than Linux, some file systems)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)
