"""What there is to label: images among the inputs, and the results that each of them still lacks.

Inputs are images, folders, manifests (`manifest`), and their URIs (`storage`). Folders are searched recursively and
mirrored below the output folder. No result may replace an input or the result of another input; what exists is kept
unless it is to be replaced. Names are all that is held, some hundred bytes an image. It does not look into images.

Usage:
    >>> plan = make_plan(find_items(["photos/"], folder), folder, ("mask",), force=False)
    >>> plan.jobs[0]
    Job(index=0, image='photos/a.jpg', name='a', parts=('mask',))
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from litheseg.errors import DataError
from litheseg.runtime.manifest import SUFFIXES, Item, read_manifest
from litheseg.runtime.storage import OutputFolder, files_below, is_folder, local_path

__all__ = ["ENDINGS", "Job", "WorkPlan", "find_items", "make_plan"]

ENDINGS = {"mask": ".png", "overlay": "_overlay.png"}
"""What the names of results end in, by what they are."""

_IMAGES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


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
        refused: (index, reason) of images that cannot be labelled.
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
    resolve = _Resolver()
    for address in (_tidy(entry) for entry in inputs):
        for item in _items(address, output, resolve):
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
    existing, guard = _Existing(output), _Guard(items, output)
    jobs: list[Job] = []
    kept, refused = 0, []
    for index, item in enumerate(items):
        names = {part: item.name + ENDINGS[part] for part in parts}
        problem = item.problem or guard.problem(item, names.values())
        if problem is not None:
            refused.append((index, problem))
            continue
        due = tuple(part for part, name in names.items() if force or name not in existing)
        kept += len(names) - len(due)
        if due:
            jobs.append(Job(index, item.image, item.name, due))
    return WorkPlan(items, jobs, kept, refused)


class _Existing:
    """What lies in the output folder, listed once, folder by folder."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output
        self._names: dict[str, set[str]] = {}

    def __contains__(self, name: str) -> bool:
        below, last = posixpath.split(name)
        if below not in self._names:
            self._names[below] = self._output.names(below)
        return last in self._names[below]


class _Guard:
    """Remembers whose result is whose, so that none replaces an input nor another's result."""

    def __init__(self, items: Sequence[Item], output: OutputFolder) -> None:
        self._resolve = _Resolver()
        self._sources = {self._resolve(item.image) for item in items if item.problem is None}
        self._output = output
        self._owner: dict[str, str] = {}

    def problem(self, item: Item, names: Iterable[str]) -> str | None:
        for name in names:
            target = f"{self._output.address}/{name}"
            if not self._output.appends and any("\udc80" <= char <= "\udcff" for char in name):
                return f"{item.image}: its name is no UTF-8, which objects need; rename it, or give an output folder"
            if self._resolve(target) in self._sources:
                return f"{target} is one of the inputs and is not overwritten; choose another output folder"
            first = self._owner.setdefault(name, item.image)
            if first != item.image:
                return f"{target} already holds the result of {first}; rename one of them or label them apart"
        return None


def _items(address: str, output: OutputFolder, resolve: _Resolver) -> Iterator[Item]:
    if address.lower().endswith(SUFFIXES):
        yield from read_manifest(address)
    elif is_folder(address):
        if resolve(address) == resolve(output.address):
            raise DataError(
                f"output {output.address} is an input folder; results would mix with the images: choose another"
            )
        yield from _images_in(address, resolve(output.address), resolve)
    else:
        yield Item(address, posixpath.splitext(posixpath.basename(Path(address).as_posix()))[0])


def _images_in(folder: str, output: str, resolve: _Resolver) -> Iterator[Item]:
    """Image files below a folder, without hidden ones and without results of an earlier run."""
    results = output.rstrip("/") + "/"
    for address, name in files_below(folder):
        stem, ending = posixpath.splitext(name)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if ending.lower() in _IMAGES and not hidden and not resolve(address).startswith(results):
            yield Item(address, stem)


def _tidy(address: str | Path) -> str:
    """A path without needless parts; a URI as it is."""
    path = local_path(address)
    return str(address) if path is None else str(path)


class _Resolver:
    """What two addresses of the same file have in common; links in the way to a folder are followed once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, address: str) -> str:
        path = local_path(address)
        if path is None:
            return address.rstrip("/")
        if path.name in ("", "..") or path.is_symlink():
            return os.path.realpath(path)
        folder = str(path.parent)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], path.name)
