"""Lists of images: Parquet and CSV files with a column `image`, and `output` for the names of the results.

An image is a path or a URI; a relative one starts at the manifest's own folder. Its result is named by `output`, with
or without ``.png``; where there is none, a relative image keeps its path, and any other its path below the root or the
bucket, so that names depend on nothing but their own row. It does not look at the images.

Usage:
    >>> read_manifest("s3://bucket/frames.parquet")[0]
    Item(image='s3://bucket/2024/a.jpg', name='2024/a', problem=None)
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from litheseg.errors import DataError, MissingExtraError
from litheseg.runtime.storage import files_below, is_folder, local_path, read_bytes

__all__ = ["SUFFIXES", "Item", "read_manifest"]

SUFFIXES = (".csv", ".parquet")
"""How the names of manifests end."""

_COLUMNS = ("image", "output")


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be labelled.

    Attributes:
        image: path or URI.
        name: of its results below the output folder, with ``/`` between folders and without an ending.
        problem: why it cannot be labelled; None if nothing is known against it.
    """

    image: str
    name: str
    problem: str | None = None


def read_manifest(address: str | Path) -> list[Item]:
    """The rows of a manifest, in order; a row that names no image has a problem and is otherwise like the others.

    Args:
        address: a CSV or Parquet file, or a folder of Parquet files whose own name ends in ``.parquet``.

    Raises:
        DataError: it cannot be read, or has no column `image` of text.
        MissingExtraError: a Parquet file, and PyArrow is not installed.
    """
    rows = _csv_rows(address) if str(address).lower().endswith(".csv") else _parquet_rows(address)
    return [_item(str(address), number, image, output) for number, (image, output) in enumerate(rows, 1)]


def _item(manifest: str, number: int, image: str | None, output: str | None) -> Item:
    row = f"{manifest}, row {number}"
    if not image or not image.strip():
        return Item(row, "", f"{row} names no image; fill in its column 'image'")
    place, name = _located(manifest, image.strip())
    if output and output.strip():
        name = output.strip()
        name = name[:-4] if name.lower().endswith(".png") else name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or name.endswith("/"):
            return Item(place, "", f"{row}: output '{output}' is no file name inside the output folder")
    return Item(place, PurePosixPath(name).as_posix())


def _located(manifest: str, image: str) -> tuple[str, str]:
    """Where an image lies, and the name that its place gives to its results."""
    path = local_path(image)
    if path is None:
        return image, _stem(image.partition("://")[2].partition("/")[2])  # keys may hold "?" and "#"
    if path.is_absolute():
        return str(path), _stem(path.relative_to(path.anchor).as_posix())
    below = path.as_posix()
    folder = local_path(manifest)
    place = posixpath.join(posixpath.dirname(manifest), below) if folder is None else str(folder.parent / below)
    return place, _stem(below)


def _stem(path: str) -> str:
    """Without ending, and without steps that lead upwards."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return PurePath(*parts).with_suffix("").as_posix() if parts else ""


def _csv_rows(address: str | Path) -> Iterator[tuple[str | None, str | None]]:
    try:
        text = read_bytes(address).decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""))
        _check_columns(address, table.fieldnames or ())
        yield from ((row["image"], row.get("output")) for row in table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{address} is no CSV file in UTF-8 ({error}); write it anew") from error


def _parquet_rows(address: str | Path) -> Iterator[tuple[str | None, str | None]]:
    parts = [part for part, _ in files_below(address) if part.endswith(".parquet")] if is_folder(address) else [address]
    if not parts:
        raise DataError(f"{address} is a folder without Parquet files; give one that holds some")
    for part in parts:
        table = _parquet_table(part)
        image = table["image"].to_pylist()
        output = table["output"].to_pylist() if "output" in table.column_names else [None] * len(image)
        yield from zip(image, output, strict=True)


def _parquet_table(address: str | Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "ray", "a Parquet manifest") from error
    data = read_bytes(address)
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        _check_columns(address, file.schema_arrow.names)
        table = file.read(columns=[name for name in _COLUMNS if name in file.schema_arrow.names])
        return table.cast(pyarrow.schema([(name, pyarrow.large_string()) for name in table.column_names]))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{address} cannot be read as Parquet ({reason}); 'image' and 'output' hold text") from error


def _check_columns(address: str | Path, names: Iterable[str]) -> None:
    if "image" not in names:
        raise DataError(
            f"{address} has no column 'image' (but {', '.join(names) or 'none'}); rename the one with paths"
        )
