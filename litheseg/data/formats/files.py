"""Find label files and image files, whatever folders they were moved to since the labels were made.

Usage:
    >>> images = ImageFiles(Path("data/coco"))
    >>> images.find("000000000139.jpg", near=Path("data/coco/annotations/instances_val2017.json"), split="val")
    PosixPath('data/coco/val2017/000000000139.jpg')
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from litheseg.data.sources.base import IMAGE_SUFFIXES, MASK_FOLDERS
from litheseg.errors import DataError
from litheseg.runtime.storage import NamedBytes

__all__ = [
    "ImageFiles",
    "StoredFile",
    "base_folder",
    "below",
    "image_id",
    "label_files",
    "largest",
    "matches",
    "opened",
    "read_json",
    "sniff",
    "split_in",
    "split_of_part",
]

StoredFile = Path | Callable[[], NamedBytes]
"""A file, or what gives its content where that lies in another file."""

_SPLIT = re.compile(
    r"(?:^|[^a-z])(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?))(?=$|[^a-z]|annot|label|mask|image)",
    re.IGNORECASE,
)
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files
_LABEL_FOLDERS = ("annotations", "annotation", "labels", "label", "json", "jsons")
_DEPTH = 3  # folders below the data set's in which label files are looked for
_SNIFFED = 1 << 16  # bytes at either end of a file


def opened(file: StoredFile) -> Path | NamedBytes:
    """The file, or its content, to be decoded."""
    return file if isinstance(file, Path) else file()


def base_folder(source: Path) -> Path:
    """The folder below which the images lie: the source, or the folder of a label file."""
    if source.is_dir():
        return source
    folder = source.absolute().parent
    return folder.parent if folder.name.lower() in _LABEL_FOLDERS else folder


def below(source: Path, path: Path) -> str:
    """What a file is called in messages: its path below the source, or its name where it is the source itself."""
    return path.relative_to(source).as_posix() if source.is_dir() else path.name


def label_files(source: Path, ending: str, pattern: str = "") -> list[Path]:
    """The files of an ending (such as ".json") in a folder and three below, or the source if it is one; sorted.

    Args:
        source: the folder or file.
        ending: in lower case.
        pattern: what names, or paths below the source, are to match, as in shells; "" for all.
    """
    if source.is_file():
        return [source] if source.suffix.lower() == ending else []
    found = []
    for place, folders, names in os.walk(source):
        depth = len(Path(place).relative_to(source).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < _DEPTH else []
        found += [Path(place, name) for name in names if name.lower().endswith(ending) and not name.startswith(".")]
    return sorted(path for path in found if not pattern or matches(path, source, pattern))


def largest(files: list[Path], most: int = 50) -> list[Path]:
    """Of many files the largest ones, sorted: one file for all images is larger than one for each."""
    if len(files) <= most:
        return files
    return sorted(sorted(files, key=lambda path: path.stat().st_size)[-most:])


def matches(path: Path, source: Path, pattern: str) -> bool:
    """Whether a file's name, or its path below the source, is of a pattern as in shells."""
    return fnmatch(path.name, pattern) or fnmatch(path.relative_to(source).as_posix(), pattern)


def sniff(path: Path) -> str:
    """The beginning and the end of a text file, for a look at what it is; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_SNIFFED)
            file.seek(max(len(head), file.seek(0, os.SEEK_END) - _SNIFFED))
            return (head + file.read()).decode("utf-8", "replace")
    except OSError:
        return ""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; restore it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged or no JSON ({error}); export it again") from error


def split_in(name: str | Path) -> str:
    """The split that a name or a path speaks of: "train", "val" or "test", "" if none; the last part counts most.

    "instances_train2017.json", "valid/labels" and "testannot" do, "training_wheels" does too, "restaurant" does not.
    """
    return next((split for part in reversed(PurePosixPath(name).parts) if (split := split_of_part(part)[0])), "")


def split_of_part(part: str) -> tuple[str, str]:
    """The split that one part of a path speaks of, and the part with "*" in its place: "train_labels", "*_labels"."""
    found = _SPLIT.search(part)
    if not found:
        return "", part
    place = next(number for number in (1, 2, 3) if found[number])
    return ("train", "val", "test")[place - 1], f"{part[: found.start(place)]}*{part[found.end(place) :]}"


def image_id(name: str, split: str) -> str:
    """An id from the path that a label file gives an image: without ending, and without folders that say nothing."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    folders = [part for part in parts[:-1] if ":" not in part and part.lower() not in ("images", "image", split)]
    return "/".join([*folders, Path(parts[-1]).stem]) if parts else name


class ImageFiles:
    """The image files in and below a folder, found by what label files call them.

    Args:
        folder: the folder.
        without: folders in it that hold masks or other pictures.
    """

    def __init__(self, folder: Path, without: Iterable[Path] = ()) -> None:
        self.folder = folder
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        left_out = {path.resolve() for path in without}
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and Path(place, name).resolve() not in left_out
            )
            for name in sorted(names):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    self._by_name[name.lower()].append(Path(place, name))

    def all(self) -> list[Path]:
        """All of them, sorted."""
        return sorted(path for paths in self._by_name.values() for path in paths)

    def find(self, name: str, near: Path, split: str = "") -> Path | None:
        """The file that a label file means: that with the most folders as written; then no mask, of the split, nearest.

        Args:
            name: a path as the label file writes it, on any system.
            near: the label file.
            split: the split that it is of.

        Returns:
            None if there is none.

        Raises:
            DataError: two that fit equally.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        file = parts[-1].lower() if parts else ""
        found = self._by_name.get(file) or self._by_name.get(_UPLOADED.sub("", file)) or []

        def fitness(path: Path) -> tuple[int, bool, bool, int]:
            alike = sum(1 for _ in _equal_ends(path.parent.parts, parts[:-1]))
            shared = len(os.path.commonpath([path.absolute(), near.absolute()]))
            folders = path.parent.relative_to(self.folder)
            plain = not any(part.lower() in MASK_FOLDERS for part in folders.parts)
            return alike, plain, bool(split) and split_in(folders) == split, shared

        best = sorted(found, key=fitness, reverse=True)[:2]
        if len(best) > 1 and fitness(best[0]) == fitness(best[1]):
            raise DataError(
                f"{near}: '{name}' may be {best[0]} or {best[1]}; name the folder of the images that are meant with "
                "--images"
            )
        return best[0] if best else None


def _equal_ends(one: Iterable[str], other: Iterable[str]) -> Iterable[str]:
    for a, b in zip(reversed(tuple(one)), reversed(tuple(other)), strict=False):
        if a != b:
            return
        yield a
