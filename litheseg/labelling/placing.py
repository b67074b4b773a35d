r"""Putting results into folders without replacing what lies there.

Images are linked and not copied where the file system has links. It does not know what the files hold.

Usage:
    >>> with settled("labelled/ranking.csv", force=False) as draft:
    ...     draft.write_text("rank,image\n")
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litheseg.errors import DataError
from litheseg.files import atomic_path

__all__ = ["copy_image", "image_key", "link_image", "settled"]


@contextmanager
def settled(target: str | Path, force: bool) -> Iterator[Path]:
    """Yield a draft to write; it becomes `target` unless that exists and differs.

    Args:
        target: the file; its folder is made.
        force: replace it even then.

    Raises:
        DataError: the file exists and holds something else.
        LithesegError: it cannot be written.
    """
    target = Path(target)
    with atomic_path(target) as draft:
        yield draft
        if target.exists() and not force and not filecmp.cmp(draft, target, shallow=False):
            raise DataError(
                f"{target} exists and would change; move it away and run again (what is labelled stays), or replace "
                "everything with --force"
            )


def link_image(image: Path, target: Path) -> None:
    """Let `target` be `image`: a relative link, or a copy where links are not to be had.

    Raises:
        LithesegError: neither can be written.
    """
    with atomic_path(target) as draft:
        try:
            draft.symlink_to(os.path.relpath(image.resolve(), draft.parent.resolve()))
        except (OSError, NotImplementedError, ValueError):  # no links, no right to make them, or another drive
            shutil.copyfile(image, draft)


def copy_image(image: Path, target: Path, force: bool) -> None:
    """Copy an image, unless something else lies there.

    Raises:
        DataError: `target` holds something else and is not to be replaced.
        LithesegError: it cannot be written.
    """
    with settled(target, force) as draft:
        shutil.copyfile(image, draft)


def image_key(key: str, where: str) -> str:
    """`key` (a path below a folder, without ending), if it names a file that surely lies below that folder.

    Args:
        key: from a file that anyone may have written.
        where: that file, for messages.

    Raises:
        DataError: an absolute path, one that climbs ("..") or one that no file can have.
    """
    parts = key.split("/")
    if "\\" in key or "\0" in key or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"{where}: '{key}' is no path below the data folder; rename the image, or remove the entry")
    return key
