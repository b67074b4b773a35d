"""Keeping two processes from writing one folder at once, by a lock that the system itself releases when one dies.

The lock is on an open file, so a process that is killed leaves a file but no lock. The file names the process that
holds it, for the error message of a second one. Some network file systems have no locks; there a warning says that
nothing keeps a second process out.

Usage:
    >>> with folder_lock(Path("runs/slimseg")):
    ...     write_into(Path("runs/slimseg"))
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from litheseg.errors import FolderInUseError, LithesegError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LOCK_FILE", "folder_lock"]

LOCK_FILE = ".lock"
"""Lies in the folder while it is locked."""

_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_BYTE = 1 << 30  # the byte that Windows locks: beyond the text, which others must be able to read

_held: set[int] = set()  # descriptors of this process


@contextmanager
def folder_lock(folder: str | Path, *, beside: bool = False) -> Iterator[None]:
    """Hold a folder for this process, so that no second one writes there at the same time.

    Processes that this one starts or forks do not hold it. Locking twice in one process is refused like a second
    process.

    Args:
        folder: made if it is not there, unless `beside`; what was made and is empty in the end goes again.
        beside: lock a file beside the folder, which itself is going to be replaced as a whole.

    Raises:
        FolderInUseError: another process holds it; the message names it.
        LithesegError: the folder cannot be made or written to.
    """
    folder = Path(folder).expanduser().absolute()
    path = folder.with_name(f".{folder.name}{LOCK_FILE}") if beside else folder / LOCK_FILE
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, folder)
    except OSError as error:
        raise LithesegError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another path"
        ) from error
    try:
        yield
    finally:
        _release(descriptor, path)
        if made:
            with suppress(OSError):
                path.parent.rmdir()  # which removes empty folders only


def _locked(path: Path, folder: Path) -> int:
    """An open, locked descriptor of the file that lies at `path`, with this process's name in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(descriptor)
        try:
            _lock(descriptor, folder)
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _myself().encode())
                return descriptor
            _close(descriptor)  # the one that held it has removed the file in between
        except BaseException as error:
            _close(descriptor)
            if isinstance(error, OSError) and error.errno in _HELD:
                raise FolderInUseError(_in_use(path, folder)) from None
            raise


def _lock(descriptor: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(f"{folder} is on a file system without locks: make sure that nothing else writes there")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(descriptor: int, path: Path) -> None:
    if descriptor not in _held:  # a fork of the process that holds it
        return
    if sys.platform == "win32":  # which removes no open file
        _close(descriptor)
    with suppress(OSError):  # held until the file is gone: a process that opened it meanwhile sees that and tries again
        path.unlink()
    if sys.platform != "win32":
        _close(descriptor)


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _forget() -> None:
    """In a fork: it must not keep a lock alive whose process is dead."""
    for descriptor in tuple(_held):
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _myself() -> str:
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return json.dumps(
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join([name or "python", *sys.argv[1:]]),
            "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        }
    )


def _in_use(path: Path, folder: Path) -> str:
    remedy = "wait until it has ended, stop it, or choose another folder"
    try:
        other = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {other['pid']} on {other['host']} since {other['since']} ({other['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its name yet
        who = "another process"
    return f"{folder} is in use by {who}; {remedy}"
