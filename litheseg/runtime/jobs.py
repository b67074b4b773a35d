"""Find the images among the inputs, and the results that each of them still lacks.

Inputs are images, folders and manifests, as paths or URIs (`storage`). Folders are searched recursively and mirrored
below the output folder. No result may replace an input or the result of another input; what exists is kept unless it is
to be replaced. Only names are held in memory, some hundred bytes an image.

A manifest is a Parquet or CSV file with a column `image`, and `output` for the names of the results. An image in it is
a path or a URI; a relative one starts at the manifest's own folder. Its result is named by `output`, with or without
``.png``; without it, a relative image keeps its path, and any other its path below the root or the bucket. A name
depends on its own row only.

Usage:
    >>> plan = make_plan(find_items(["photos/", "s3://bucket/frames.parquet"], folder), folder, ("mask",), force=False)
    >>> plan.jobs[0]
    Job(index=0, image='photos/a.jpg', name='a', parts=('mask',))
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from litheseg.errors import DataError, MissingExtraError, first_line
from litheseg.runtime.storage import OutputFolder, files_below, is_folder, local_path, read_bytes

__all__ = ["ENDINGS", "Item", "Job", "WorkPlan", "find_items", "make_plan", "read_manifest"]

ENDINGS = {"mask": ".png", "overlay": "_overlay.png"}
"""What the names of results end in, by what they are."""

_IMAGES = (".bmp", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MANIFESTS = (".csv", ".parquet")
_COLUMNS = ("image", "output")


@dataclass(frozen=True, slots=True)
class Item:
    """An image among the inputs.

    Attributes:
        image: path or URI.
        name: of its results below the output folder, with ``/`` between folders and without an ending.
        problem: why there can be no result; None if nothing is known against it.
    """

    image: str
    name: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """An image whose results are due.

    Attributes:
        index: its place among all images.
        image: path or URI.
        name: of its results, without ending.
        parts: which results: keys of `ENDINGS`.
    """

    index: int
    image: str
    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class WorkPlan:
    """What is to be done.

    Attributes:
        items: every image found.
        jobs: those with results due.
        kept: results that exist and stay.
        refused: (index, reason) of images that cannot have results.
    """

    items: Sequence[Item]
    jobs: Sequence[Job]
    kept: int
    refused: Sequence[tuple[int, str]]


def find_items(inputs: Iterable[str | Path], output: OutputFolder) -> list[Item]:
    """Every image among the inputs once, folders in sorted order, without results of an earlier run.

    Raises:
        DataError: no images, a manifest that cannot be read, or an output that is one of the input folders.
        MissingExtraError: a URI or a Parquet manifest, and its library is not installed.
    """
    found: dict[str, Item] = {}
    resolve = _resolver()
    for entry in inputs:
        path = local_path(entry)
        for item in _items(str(entry) if path is None else str(path), output, resolve):
            found.setdefault(item.image, item)
    if not found:
        raise DataError("no images among the inputs; give image files, folders that hold some, or a manifest")
    return list(found.values())


def make_plan(items: Sequence[Item], output: OutputFolder, parts: Sequence[str], *, force: bool) -> WorkPlan:
    """Compare what is asked for with what exists.

    Args:
        items: of `find_items`.
        output: where results go.
        parts: which results each image gets: keys of `ENDINGS`.
        force: results that exist are due, too.

    Raises:
        LithesegError: the output folder cannot be looked at.
    """
    names_in = cache(output.names)  # each folder is listed once
    problem_of = _guard(items, output)
    jobs: list[Job] = []
    kept, refused = 0, []
    for index, item in enumerate(items):
        names = {part: item.name + ENDINGS[part] for part in parts}
        problem = item.problem or problem_of(item, names.values())
        if problem is not None:
            refused.append((index, problem))
            continue
        places = {part: posixpath.split(name) for part, name in names.items()}
        due = tuple(part for part, (below, name) in places.items() if force or name not in names_in(below))
        kept += len(names) - len(due)
        if due:
            jobs.append(Job(index, item.image, item.name, due))
    return WorkPlan(items, jobs, kept, refused)


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


def _guard(items: Sequence[Item], output: OutputFolder) -> Callable[[Item, Iterable[str]], str | None]:
    """A function that says why results may not get these names: they would replace an input or another's result."""
    resolve = _resolver()
    sources = {resolve(item.image) for item in items if item.problem is None}
    owners: dict[str, str] = {}

    def problem(item: Item, names: Iterable[str]) -> str | None:
        for name in names:
            target = f"{output.address}/{name}"
            if not output.appends and any("\udc80" <= char <= "\udcff" for char in name):
                return f"{item.image}: its name is no UTF-8, which objects need; rename it, or give an output folder"
            if resolve(target) in sources:
                return f"{target} is one of the inputs and is not overwritten; choose another output folder"
            first = owners.setdefault(name, item.image)
            if first != item.image:
                return f"{target} already holds the result of {first}; rename one of them or predict them apart"
        return None

    return problem


def _items(address: str, output: OutputFolder, resolve: Callable[[str], str]) -> Iterator[Item]:
    if address.lower().endswith(_MANIFESTS):
        yield from read_manifest(address)
    elif is_folder(address):
        if resolve(address) == resolve(output.address):
            raise DataError(
                f"output {output.address} is an input folder; results would mix with the images: choose another"
            )
        results = resolve(output.address).rstrip("/") + "/"
        for image, name in files_below(address):
            stem, ending = posixpath.splitext(name)
            hidden = any(part.startswith(".") for part in name.split("/"))
            if ending.lower() in _IMAGES and not hidden and not resolve(image).startswith(results):
                yield Item(image, stem)
    else:
        yield Item(address, posixpath.splitext(posixpath.basename(Path(address).as_posix()))[0])


def _resolver() -> Callable[[str], str]:
    """A function that maps all addresses of a file to one text; links in the path of a folder are resolved once."""
    real = cache(os.path.realpath)

    def resolve(address: str) -> str:
        path = local_path(address)
        if path is None:
            return address.rstrip("/")
        if path.name in ("", "..") or path.is_symlink():
            return os.path.realpath(path)
        return os.path.join(real(str(path.parent)), path.name)

    return resolve


def _item(manifest: str, number: int, image: str | None, output: str | None) -> Item:
    """A row of a manifest."""
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
    """Where an image of a manifest lies, and the name that its place gives to its results."""
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
        reason = first_line(error)
        raise DataError(f"{address} cannot be read as Parquet ({reason}); 'image' and 'output' hold text") from error


def _check_columns(address: str | Path, names: Iterable[str]) -> None:
    if "image" not in names:
        raise DataError(
            f"{address} has no column 'image' (but {', '.join(names) or 'none'}); rename the one with paths"
        )
