r"""The interface to annotation tools, and writing files without replacing others.

`Chosen` is an image to correct, `CorrectedExport` the base class of a tool's exports; `cvat` and `label_studio`
implement the formats.

Usage:
    >>> chosen = Chosen("deep/b", Path("photos/deep/b.jpg"), Path("labelled/masks/deep/b.png"))
    >>> with CvatExport(Path("job.zip")) as export:
    ...     labels = export.labels(export.keys[0], classes, (360, 480))
    >>> with write_once("labelled/ranking.csv", force=False) as draft:
    ...     draft.write_text("rank,image\n")
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from litheseg.errors import DataError, did_you_mean
from litheseg.files import atomic_path
from litheseg.masks.classes import Classes, Color, LabelScheme
from litheseg.masks.reading import read_mask

__all__ = ["Chosen", "CorrectedExport", "class_index", "image_key", "link_image", "match_image", "write_once"]

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files


@dataclass(frozen=True)
class Chosen:
    """An image to correct, with its labels so far.

    Attributes:
        key: its id: the path below the images' folder without its ending.
        image: the file.
        mask: an index PNG of train ids, 255 where nothing is known.
    """

    key: str
    image: Path
    mask: Path

    def labels(self, classes: Classes) -> np.ndarray:
        """uint8 H x W: the mask at the size of the upright image.

        Raises:
            DataError: a file that cannot be read, sizes that differ, or labels that are no classes.
        """
        return read_mask(self.mask, LabelScheme.build(classes), self.image)


class CorrectedExport(ABC):
    """An export of an annotation tool.

    Attributes:
        path: the file or folder, for messages.
        colors: the labels it declares, with their colours; empty where it does not say.
        keys: images with annotations, each the image's path without its ending.
        left_out: images without annotations.
    """

    path: Path
    colors: Mapping[str, Color]
    keys: tuple[str, ...]
    left_out: tuple[str, ...]

    @abstractmethod
    def image(self, key: str) -> tuple[str, bytes] | None:
        """Ending (as in ".jpg") and content of an image file that the export brings; None if it brings none.

        Raises:
            DataError: it cannot be read.
        """

    @abstractmethod
    def labels(self, key: str, classes: Classes, size: tuple[int, int]) -> np.ndarray:
        """What was drawn on an image.

        Args:
            key: one of `keys`.
            classes: what labels may be.
            size: height and width of the upright image.

        Returns:
            uint8 H x W: class indices, 255 where nothing was drawn.

        Raises:
            DataError: damaged data, another size, a label that is no class, or a shape that makes no mask.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Give the file back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def class_index(label: str, classes: Classes, where: str) -> int:
    """The class of that name.

    Raises:
        DataError: there is none; names `where`.
    """
    if label not in classes.names:
        raise DataError(
            f"{where}: label '{label}' is none of the {len(classes)} classes.{did_you_mean(label, classes.names)} "
            "Rename it in the annotation tool, or give the class list with --classes"
        )
    return classes.names.index(label)


def match_image(key: str, known: Collection[str]) -> str | None:
    """The id of an image that an annotation tool calls `key` (a path without ending, "/" between folders).

    Tools put folders in front of names, and Label Studio eight characters and a dash; so these are taken off until a
    known id is left, the longest one first.
    """
    parts = [part for part in key.split("/") if part]
    for start in range(len(parts)):
        folders, name = parts[start:-1], parts[-1]
        for spelling in (name, _UPLOADED.sub("", name)):
            candidate = "/".join([*folders, spelling])
            if candidate in known:
                return candidate
    return None


def image_key(key: str, where: str) -> str:
    """`key` (a path below a folder, without ending), if it names a file that surely lies below that folder.

    Args:
        key: from an untrusted file.
        where: that file, for messages.

    Raises:
        DataError: an absolute path, one with "..", or one that no file can have.
    """
    parts = key.split("/")
    if "\\" in key or "\0" in key or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"{where}: '{key}' is no path below the data folder; rename the image, or remove the entry")
    return key


@contextmanager
def write_once(target: str | Path, force: bool) -> Iterator[Path]:
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
    """Make `target` a relative link to `image`, or a copy where links are impossible.

    Raises:
        LithesegError: neither can be written.
    """
    with atomic_path(target) as draft:
        try:
            draft.symlink_to(os.path.relpath(image.resolve(), draft.parent.resolve()))
        except (OSError, NotImplementedError, ValueError):  # no links, no right to make them, or another drive
            shutil.copyfile(image, draft)
