"""Files that are whole or absent: written beside the target, then renamed over it.

Usage:
    >>> with atomic_path("report.html") as temporary:
    ...     temporary.write_text("<h1>done</h1>")
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from litheseg.errors import LithesegError

__all__ = ["atomic_path"]


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
