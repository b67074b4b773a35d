"""Files and folders that are whole or absent: written beside the target, then renamed over it.

Usage:
    >>> with atomic_path("report.html") as temporary:
    ...     temporary.write_text("<h1>done</h1>")
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from litheseg.errors import LithesegError

__all__ = ["atomic_folder", "atomic_path"]


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
        _replace_folder(temporary, target)
    except OSError as error:
        raise LithesegError(
            f"cannot write {target}: {error.strerror or error}; free space or choose another path"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it to `target` on success, remove it on failure.

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
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise LithesegError(
            f"cannot write {target}: {error.strerror or error}; free space or choose another path"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder over another, which no system call does: the old one steps aside first."""
    aside = source.with_name(f"{source.name}.old")
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(source, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
