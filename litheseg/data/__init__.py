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

from litheseg.data.formats.importing import (
    FORMATS,
    ImportedData,
    OtherFormatError,
    import_command,
    import_dataset,
    recognise,
    refusal,
)
from litheseg.data.sources.base import FileSource, Sample, Source, existing_folder
from litheseg.data.sources.download import fetch
from litheseg.data.sources.folder import FolderSource
from litheseg.data.sources.public import CamVid, Cityscapes, Voc
from litheseg.data.sources.splits import Partition, partition, write_list
from litheseg.data.sources.streets import Streets, make_streets
from litheseg.data.sources.unlabelled import Unlabelled, find_unlabelled
from litheseg.errors import DataError, did_you_mean
from litheseg.masks.classes import CLASS_FILES, IGNORE_INDEX, Classes
from litheseg.masks.opening import MAX_PIXELS

__all__ = [
    "IGNORE_INDEX",
    "SOURCES",
    "Classes",
    "ImportedData",
    "OtherFormatError",
    "Partition",
    "Sample",
    "Source",
    "Unlabelled",
    "choose_labelled",
    "describe",
    "fetch",
    "find_unlabelled",
    "import_dataset",
    "make_streets",
    "open_source",
    "partition",
]

SOURCES: dict[str, type[Source]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "folder": FolderSource,
    "streets": Streets,
    "voc": Voc,
}

# Detected in this order; `folder` fits any.
_DETECTORS: dict[str, Callable[[Path], bool]] = {
    "cityscapes": Cityscapes.detects,
    "voc": Voc.detects,
    "camvid": CamVid.detects,
    "folder": FolderSource.detects,
}


def open_source(name: str, root: str | Path | None = None, *, max_pixels: int = MAX_PIXELS, **options: Any) -> Source:
    """Open a data set.

    Args:
        name: a key of `SOURCES`, or "auto" to detect the layout of `root`.
        root: the folder of the data; a source that makes its own images takes none.
        max_pixels: width times height, by the file's header, above which a file is an error.
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
    try:
        source = make(root, **options)
    except DataError as error:
        if name == "folder" and (found := _foreign(Path(root).expanduser())):
            raise refusal(Path(root), found) from error
        raise
    if isinstance(source, FileSource):
        source.max_pixels = max_pixels
    return source


def _detect(root: str | Path | None) -> str:
    if root is None:
        raise DataError("'auto' looks into a folder; name it, or choose 'streets', which needs none")
    folder = existing_folder(root)
    # A class file decides, whatever the folders are called.
    if _has_class_file(folder):
        return "folder"
    name = next((name for name, detects in _DETECTORS.items() if detects(folder)), "")
    if name not in ("", "folder"):
        return name
    pairs = bool(name) and FolderSource.holds_pairs(folder)
    found = recognise(folder, pairs=not pairs)
    if found and (not pairs or all(FORMATS[other].plain for other in found)):
        name = ""
    if not name:
        raise refusal(Path(root), found)
    if found:
        ways = " or ".join(import_command(Path(root), "--format", other) for other in found)
        shown = ", ".join(f"{FORMATS[other].title} ({why})" for other, why in found.items())
        raise DataError(
            f"{folder} is a data set '{name}', and holds labels as {shown}; say which counts: --data.source {name} "
            f"(--source {name} of other commands), or {ways}"
        )
    return name


def _foreign(folder: Path) -> dict[str, str]:
    """The formats of a folder that says nothing of its classes."""
    if not folder.is_dir() or _has_class_file(folder):
        return {}
    return recognise(folder, pairs=not FolderSource.holds_pairs(folder))


def _has_class_file(folder: Path) -> bool:
    """Whether there is one; YOLO calls its description `dataset.yaml`, too."""
    own = FORMATS["yolo"].detect
    return any((folder / name).is_file() and not own(folder / name) for name in CLASS_FILES)


def describe(data: str | Path | None = None, source: str = "auto") -> dict[str, Any]:
    """What a data set holds: its "source", "licence" and "citation", images by split ("splits"), and "classes".

    Args:
        data: the folder of the data; None for a source that makes its own images.
        source: a key of `SOURCES`, or "auto" to detect the layout.

    Raises:
        DataError: as `open_source`, and for a split that cannot be used.
    """
    opened = open_source(source, data)
    return {
        "source": opened.name,
        "licence": opened.licence or "not stated",
        "citation": opened.citation,
        "splits": {split: len(opened.samples(split)) for split in opened.splits()},
        "classes": opened.classes.names,
    }


def choose_labelled(
    data: str | Path | None = None,
    source: str = "auto",
    *,
    output: str | Path,
    ratio: str | float | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Partition:
    """Choose which training images count as labelled, and write their ids to a list file, one a line.

    Args:
        data: the folder of the data; None for a source that makes its own images.
        source: a key of `SOURCES`, or "auto" to detect the layout.
        output: the list file, for `--data.labelled` of training.
        ratio: the labelled share in (0, 1], such as "1/8"; either this or `count`.
        count: the number of labelled images.
        seed: random seed of the choice.

    Raises:
        DataError: as `open_source` and `partition`.
        LithesegError: the list cannot be written.
    """
    chosen = partition(
        [sample.id for sample in open_source(source, data).samples("train")], ratio=ratio, count=count, seed=seed
    )
    write_list(output, chosen.labelled)
    return chosen
