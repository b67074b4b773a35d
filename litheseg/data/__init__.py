"""Data sets: where images and masks come from, and how they become batches.

`SOURCES` names every data set; `open_source` opens one, or finds out which one a folder holds.

Usage:
    >>> source = open_source("auto", "data/camvid")
    >>> source.splits()
    ('train', 'val')
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litheseg.data.camvid import CamVid
from litheseg.data.cityscapes import Cityscapes
from litheseg.data.download import fetch
from litheseg.data.folder import Folder
from litheseg.data.source import FileSource, Sample, Source, existing_folder
from litheseg.data.splits import Partition, partition
from litheseg.data.streets import Streets
from litheseg.data.unlabelled import Unlabelled, find_unlabelled
from litheseg.data.voc import Voc
from litheseg.errors import DataError, did_you_mean
from litheseg.masks.classes import CLASS_FILES, IGNORE_INDEX, Classes
from litheseg.masks.reading import MAX_PIXELS

__all__ = [
    "IGNORE_INDEX",
    "SOURCES",
    "Classes",
    "Partition",
    "Sample",
    "Source",
    "Unlabelled",
    "fetch",
    "find_unlabelled",
    "open_source",
    "partition",
]

SOURCES: dict[str, type[Source]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "folder": Folder,
    "streets": Streets,
    "voc": Voc,
}

# In this order: a folder is anything.
_DETECTORS: dict[str, Callable[[Path], bool]] = {
    "cityscapes": Cityscapes.detects,
    "voc": Voc.detects,
    "camvid": CamVid.detects,
    "folder": Folder.detects,
}


def open_source(name: str, root: str | Path | None = None, *, max_pixels: int = MAX_PIXELS, **options: Any) -> Source:
    """Open a data set.

    Args:
        name: a key of `SOURCES`, or "auto" to detect the layout of `root`.
        root: the folder of the data; a source that makes its own images takes none.
        max_pixels: width times height above which a file is an error; it is told by the file's header.
        options: what the source's constructor takes.

    Raises:
        DataError: an unknown name or option, a missing root, or a folder that is not such a data set.
    """
    if name == "auto":
        name = _detect(root)
    if name not in SOURCES:
        raise DataError(f"unknown data set '{name}'.{did_you_mean(name, [*SOURCES, 'auto'])}")
    if max_pixels < 1:
        raise DataError(f"max_pixels is {max_pixels}; give 1 or more")
    make: Callable[..., Source] = SOURCES[name]
    parameters = inspect.signature(make).parameters
    for option in options:
        if option not in parameters:
            raise DataError(f"data set '{name}' has no option '{option}'.{did_you_mean(option, parameters)}")
    if "root" not in parameters:
        if root is not None:
            raise DataError(f"data set '{name}' makes its own images; leave out the folder {root}")
        return make(**options)
    if root is None:
        raise DataError(f"data set '{name}' needs the folder it lies in; name it, or try 'streets', which needs none")
    source = make(root, **options)
    if isinstance(source, FileSource):
        source.max_pixels = max_pixels
    return source


def _detect(root: str | Path | None) -> str:
    if root is None:
        raise DataError("'auto' looks into a folder; name it, or choose 'streets', which needs none")
    folder = existing_folder(root)
    # Whoever wrote a class file means it, whatever the folders are called.
    if any((folder / name).is_file() for name in CLASS_FILES):
        return "folder"
    for name, detects in _DETECTORS.items():
        if detects(folder):
            return name
    raise DataError(
        f"{folder} has no layout that is known; expected e.g. images/ and masks/, or train/ and trainannot/"
    )
