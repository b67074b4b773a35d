"""The face that every corrected export shows: which images it has labels for, and those labels.

It does not know where the result goes: see `corrected`.

Usage:
    >>> with CvatExport(Path("job.zip")) as export:
    ...     labels = export.labels(export.keys[0], classes, (360, 480))
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from litheseg.errors import DataError, did_you_mean
from litheseg.masks.classes import Classes, Color

__all__ = ["Export", "class_index", "match_image"]

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files


class Export(ABC):
    """What an annotation tool gave back.

    Attributes:
        path: the file or folder, for messages.
        colors: the labels it declares, with their colours; empty where it does not say.
        keys: images that somebody drew on, each the image's path without its ending.
        left_out: images that nobody drew on.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
    """The id of an image that an annotation tool calls `key`.

    Tools put folders in front of names, and Label Studio eight characters and a dash; so these are taken off until a
    known id is left, the longest one first.

    Args:
        key: a path without ending, "/" between folders.
        known: the ids to choose from.
    """
    parts = [part for part in key.split("/") if part]
    for start in range(len(parts)):
        folders, name = parts[start:-1], parts[-1]
        for spelling in (name, _UPLOADED.sub("", name)):
            candidate = "/".join([*folders, spelling])
            if candidate in known:
                return candidate
    return None
