"""Images and masks in the columns of a table: Parquet files, and what Hugging Face's `datasets` saved to disk.

A picture is a column of bytes, of paths, or of both (the struct `bytes`, `path` of Hugging Face). The masks are in the
column whose name says so (mask, label, annotation, segmentation, ...), the images in the first of the others; a list of
classes beside the files is read (`class_lists`, such as `id2label.json`). Splits come from the names of files and
folders. Needs pyarrow, the extra `parquet`.

Usage:
    >>> detect(Path("data/sidewalks"))
    'data/train-00000-of-00002.parquet'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.data.formats.collection import Annotated, Collection, ImportOptions
from litheseg.data.formats.files import base_folder, below, label_files, split_in
from litheseg.data.formats.mask_files import labelled_by, scheme_of_masks
from litheseg.errors import DataError, MissingExtraError, listed
from litheseg.progress import track
from litheseg.runtime.storage import NamedBytes

__all__ = ["detect", "read"]

_ENDINGS = (".parquet", ".arrow")
_MASKS = re.compile(r"mask|label|annot|seg|gt|target|truth", re.IGNORECASE)


def detect(source: Path) -> str:
    """The first table that has two columns of pictures."""
    return next((below(source, path) for path in _files(source) if _has_columns(path)), "")


def read(source: Path, options: ImportOptions) -> Collection:
    """All rows.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: tables that cannot be read, or no telling which column holds the masks.
    """
    cells = list[tuple[str, str, Path, _Cell, _Cell]]()
    for path in track(_files(source, options.labels), "reading tables"):
        image, mask = _columns(path)
        split = split_in(below(source, path)) or "train"
        names = _names(path, image)
        for row in range(len(names)):
            pair = _Cell(path, image, row), _Cell(path, mask, row)
            cells.append((split, names[row], path, *pair))
    if not cells:
        raise DataError(f"{source}: the tables have no rows; give those of a data set with masks")
    scheme, notes = scheme_of_masks(base_folder(source), [mask for *_, mask in cells], options.max_pixels)
    items = [
        Annotated(name, split, image, labelled_by(scheme, mask, options.max_pixels), path)
        for (split, _, path, image, mask), name in zip(cells, _ids(cells), strict=True)
    ]
    return Collection(scheme.classes, tuple(items), True, (), notes)


def _files(source: Path, pattern: str = "") -> list[Path]:
    """Tables; what `datasets` keeps beside them as a cache is none."""
    found = [path for ending in _ENDINGS for path in label_files(source, ending, pattern)]
    return [path for path in found if not path.name.startswith("cache-")]


def _has_columns(path: Path) -> bool:
    """Whether a table has two columns of pictures; without pyarrow nobody knows, and reading says what is missing."""
    try:
        return len(_picture_columns(path)) > 1
    except MissingExtraError:
        return True
    except DataError:
        return False


def _picture_columns(path: Path) -> list[str]:
    """Columns of bytes, or of bytes and a path."""
    arrow = _arrow()
    found = []
    for field in _table(path)[0]:
        kind = field.type
        inner = {kind.field(place).name for place in range(kind.num_fields)} if arrow.types.is_struct(kind) else set()
        if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind) or "bytes" in inner:
            found.append(field.name)
    return found


def _columns(path: Path) -> tuple[str, str]:
    """Of images, and of masks."""
    found = _picture_columns(path)
    masks = [name for name in found if _MASKS.search(name)]
    images = [name for name in found if name not in masks]
    if len(masks) != 1 or not images:
        raise DataError(
            f"{path}: its columns of pictures are {listed(found) or 'none'}; one must be called an image, and one a "
            "mask or label: rename or remove the others"
        )
    named = [name for name in images if "image" in name.lower()]
    return (named or images)[0], masks[0]


@dataclass(frozen=True)
class _Cell:
    """A picture in a table."""

    path: Path
    column: str
    row: int

    def __call__(self) -> NamedBytes:
        name = f"{self.path}, column '{self.column}', row {self.row}"
        value = _table(self.path)[1](self.column, self.row)
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            file = self.path.parent / str(value["path"])
            content = file.read_bytes() if file.is_file() else None
            name = str(file)
        if not isinstance(content, bytes):
            raise DataError(f"{name} holds no picture; remove the row, or save the data set with its images in it")
        return NamedBytes(content, name)


def _names(path: Path, column: str) -> list[str]:
    """The names that images had as files; "" where nobody says."""
    paths = _table(path)[2](column)
    return [Path(str(name)).stem if name else "" for name in paths]


def _ids(cells: Sequence[tuple[str, str, Path, _Cell, _Cell]]) -> list[str]:
    """The names of the files if they are in order, so that rows are read one after the other; else numbers."""
    by_split: dict[str, list[str]] = {}
    for split, name, *_ in cells:
        by_split.setdefault(split, []).append(name)
    named = all("" not in names and names == sorted(set(names)) for names in by_split.values())
    count = dict.fromkeys(by_split, 0)
    ids = []
    for split, name, *_ in cells:
        ids.append(name if named else f"{count[split]:06}")
        count[split] += 1
    return ids


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "reading Parquet and Arrow files") from error
    return pyarrow


@lru_cache(maxsize=64)
def _table(path: Path) -> tuple[Any, Callable[[str, int], Any], Callable[[str], list[str | None]]]:
    """Of a table: its schema, a function that gives a cell, and one that gives the paths in a column."""
    arrow = _arrow()
    try:
        if path.suffix.lower() == ".parquet":
            return _parquet(arrow, path)
        mapped = arrow.memory_map(str(path))
        try:
            table = arrow.ipc.open_stream(mapped).read_all()
        except arrow.ArrowInvalid:
            table = arrow.ipc.open_file(mapped).read_all()
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path} is damaged or no table ({error}); save it again") from error

    def cell(column: str, row: int) -> Any:
        return table.column(column)[row].as_py()

    return table.schema, cell, lambda column: _paths(arrow, table.column(column))


def _parquet(arrow: Any, path: Path) -> tuple[Any, Callable[[str, int], Any], Callable[[str], list[str | None]]]:
    file = arrow.parquet.ParquetFile(path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes)

    @lru_cache(maxsize=4)  # image and mask, of this group of rows and the last one
    def group_of(column: str, group: int) -> Any:
        return file.read_row_group(group, columns=[column]).column(0)

    def cell(column: str, row: int) -> Any:
        group = int(np.searchsorted(ends, row, side="right"))
        return group_of(column, group)[row - int(ends[group] - sizes[group])].as_py()

    def paths(column: str) -> list[str | None]:
        kind = file.schema_arrow.field(column).type
        named = arrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
        if not named:
            return [None] * int(file.metadata.num_rows)
        return _paths(arrow, file.read(columns=[f"{column}.path"]).column(0))

    return file.schema_arrow, cell, paths


def _paths(arrow: Any, column: Any) -> list[str | None]:
    """The paths in a column of pictures."""
    if not arrow.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return [None] * len(column)
    return [name for chunk in column.chunks for name in chunk.field("path").to_pylist()]
