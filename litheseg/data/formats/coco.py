"""COCO: one JSON file for each split, with the shapes of all its images (https://cocodataset.org/#format-data).

Three kinds: objects and "stuff" as polygons or run lengths (`detect`, `read`), and panoptic labels as PNG files whose
colours are numbers of segments, red + 256 green + 65536 blue (`detect_panoptic`, `read_panoptic`). Category ids may
have gaps: classes are in the order of the ids. Objects have no order, so that of two that overlap the smaller one
counts; a crowd is of its class like any object.

Usage:
    >>> detect(Path("data/coco"))
    'annotations/instances_train2017.json'
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.data.formats.collection import Annotated, Collection, ImportOptions, Tally
from litheseg.data.formats.files import (
    ImageFiles,
    base_folder,
    below,
    image_id,
    label_files,
    largest,
    read_json,
    sniff,
    split_in,
)
from litheseg.data.formats.regions import UNLABELLED, Overlap, Region, runs_region
from litheseg.data.formats.shapes import Drawn, NamedShape, outlined, shapes_collection
from litheseg.errors import DataError, listed
from litheseg.masks.classes import Classes
from litheseg.masks.reading import mask_numbers, read_raw_mask
from litheseg.progress import track

__all__ = ["detect", "detect_panoptic", "read", "read_panoptic"]

_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def detect(source: Path) -> str:
    """The first file of objects or stuff."""
    return next((below(source, path) for path in _files(source, panoptic=False)), "")


def detect_panoptic(source: Path) -> str:
    """The first file of panoptic labels."""
    return next((below(source, path) for path in _files(source, panoptic=True)), "")


def read(source: Path, options: ImportOptions) -> Collection:
    """Objects and stuff.

    Raises:
        DataError: files that are damaged, no shapes at all, or an image in two files.
    """
    reader = _Reader(source, options, ImageFiles(options.images or base_folder(source)))
    files = _without_keypoints([*_files(source, options.labels, panoptic=False)], reader.tally)
    for path in track(files, "reading labels"):
        reader.file(path)
    return reader.collection(options.overlap or "smaller")


def read_panoptic(source: Path, options: ImportOptions) -> Collection:
    """Panoptic labels; pixels of no segment are ignored.

    Raises:
        DataError: files that are damaged, or masks that are not there.
    """
    files = [*_files(source, options.labels, panoptic=True)]
    masks = [folder for path in files if (folder := _mask_folder(path)) is not None]
    reader = _Reader(source, options, ImageFiles(options.images or base_folder(source), without=masks))
    for path in track(files, "reading labels"):
        reader.panoptic_file(path)
    return reader.panoptic_collection()


def _files(source: Path, pattern: str = "", *, panoptic: bool) -> Iterator[Path]:
    for path in largest(label_files(source, ".json", pattern)):
        text = sniff(path)
        if all(f'"{key}"' in text for key in ("images", "annotations", "categories")):
            if ('"segments_info"' in text) == panoptic:
                yield path


def _without_keypoints(files: Sequence[Path], tally: Tally) -> list[Path]:
    """COCO's keypoint files repeat some of the objects: they are left out beside others."""
    others = [path for path in files if '"skeleton"' not in sniff(path)]
    for path in files if others else ():
        if path not in others:
            tally.add("files of keypoints left out", path)
    return others or list(files)


def _mask_folder(path: Path) -> Path | None:
    """Where the PNG files of a panoptic JSON file lie: usually a folder of its name beside it."""
    names = (path.stem, path.parent.name, "masks")
    tried = [path.with_suffix(""), *(base / name for base in (path.parent, path.parent.parent) for name in names)]
    return next((folder for folder in tried if folder.is_dir() and next(folder.glob("*.png"), None)), None)


@dataclass
class _Reader:
    """Gathers the files of all splits, whose classes are joined by name."""

    source: Path
    options: ImportOptions
    files: ImageFiles
    tally: Tally = field(default_factory=Tally)
    names: dict[str, None] = field(default_factory=dict)  # of the classes of all files, in order
    missing: list[str] = field(default_factory=list)
    found: dict[Path, tuple[dict[str, Any], list[NamedShape]]] = field(default_factory=dict)
    segments: dict[Path, tuple[dict[str, Any], Path, dict[int, str]]] = field(default_factory=dict)

    def file(self, path: Path) -> None:
        """Read a file of objects or stuff."""
        content, classes = self._opened(path)
        shapes: dict[Any, list[NamedShape]] = defaultdict(list)
        sizes = {entry["id"]: entry for entry in content["images"]}
        for place, entry in enumerate(content["annotations"], 1):
            where = f"{path}: annotation {entry.get('id', place) if isinstance(entry, dict) else place}"
            try:
                image = sizes.get(entry["image_id"])
                if image is None:
                    self.tally.add("annotations of images that are not listed left out", where)
                    continue
                name = classes[entry["category_id"]]
                region = self._region(entry.get("segmentation"), image, where)
            except KeyError as error:
                raise DataError(f"{where}: {error} is missing, or a category that is not listed") from error
            except (DataError, *_DAMAGED) as error:
                raise DataError(f"{where}: {error}; export it again") from error
            if region is not None:
                shapes[entry["image_id"]].append((name, region))
        for entry, image_path in self._images(path, content):
            self.found[image_path] = (entry, shapes[entry["id"]])

    def panoptic_file(self, path: Path) -> None:
        """Read a file of panoptic labels."""
        content, classes = self._opened(path)
        folder = _mask_folder(path)
        if folder is None:
            raise DataError(f"{path}: the folder of its masks, {path.with_suffix('').name}/, is not beside it; add it")
        try:
            labels = {
                entry["image_id"]: (
                    folder / entry["file_name"],
                    {segment["id"]: classes[segment["category_id"]] for segment in entry["segments_info"]},
                )
                for entry in content["annotations"]
            }
        except _DAMAGED as error:
            raise DataError(f"{path}: no panoptic labels as COCO has them ({error!r}); export it again") from error
        for entry, image_path in self._images(path, content):
            mask, segments = labels.get(entry["id"], (None, {}))
            if mask is None:
                self.tally.add("images without labels left out", image_path)
            elif not mask.is_file():
                self.missing.append(str(mask))
            else:
                self.segments[image_path] = (entry, mask, segments)

    def collection(self, overlap: Overlap) -> Collection:
        """Of objects and stuff."""
        drawn = [
            Drawn(*self._named(entry), path, entry["where"], shapes, _stated(entry))
            for path, (entry, shapes) in self.found.items()
        ]
        return shapes_collection(drawn, self.names, overlap, self.tally, self.missing)

    def panoptic_collection(self) -> Collection:
        """Of panoptic labels."""
        used = {name for _, _, segments in self.segments.values() for name in segments.values()}
        classes = Classes.from_names([name for name in self.names if name in used])
        items = []
        for path, (entry, mask, segments) in self.segments.items():
            own = {number: classes.names.index(name) for number, name in segments.items()}
            items.append(Annotated(*self._named(entry), path, partial(_segments, mask, own), mask))
        unused = [name for name in self.names if name not in used]
        if unused:
            self.tally.add(f"categories without a segment left out ({listed(unused)})", self.source, len(unused))
        return Collection(classes, tuple(items), True, tuple(self.missing), self.tally.notes())

    def _opened(self, path: Path) -> tuple[dict[str, Any], dict[Any, str]]:
        """The content of a file, and the names of classes by category id."""
        content = read_json(path)
        try:
            categories = sorted((entry["id"], str(entry["name"])) for entry in content["categories"])
            if not all(isinstance(content[key], list) for key in ("images", "annotations")):
                raise TypeError("'images' and 'annotations' are no lists")
        except _DAMAGED as error:
            raise DataError(f"{path}: no file as COCO has them ({error!r}); export it again") from error
        self.names |= dict.fromkeys(name for _, name in categories)
        return content, dict(categories)

    def _images(self, path: Path, content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Path]]:
        """The images of a file that are there."""
        split = split_in(below(self.source, path))
        for entry in content["images"]:
            try:
                name = str(entry["file_name"])
                own = split or split_in(name) or "train"
                image = self.files.find(name, path, own)
                entry = {**entry, "split": own, "where": path, "id": entry["id"]}
            except _DAMAGED as error:
                raise DataError(f"{path}: an image without 'id' or 'file_name' ({error!r}); export it again") from error
            if image is None:
                self.missing.append(f"{name} (of {path.name})")
            elif image in self.found or image in self.segments:
                before = (self.found.get(image) or self.segments[image])[0]["where"]
                raise DataError(
                    f"{image} is in {before} and in {path}; say which is meant, e.g. --labels '{path.name}', or give "
                    "the file instead of the folder"
                )
            else:
                yield entry, image

    @staticmethod
    def _named(entry: Mapping[str, Any]) -> tuple[str, str]:
        """Id and split."""
        return image_id(str(entry["file_name"]), entry["split"]), entry["split"]

    def _region(self, shape: Any, image: Mapping[str, Any], where: str) -> Region | None:
        if isinstance(shape, dict):
            return runs_region(shape["counts"], shape["size"])
        if not shape:
            self.tally.add("annotations without a shape left out", where)
            return None
        rings = shape if isinstance(shape[0], (list, tuple)) else [shape]
        return outlined(rings, where, self.tally, _stated(image))


def _stated(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) as the file states it."""
    height, width = entry.get("height"), entry.get("width")
    return (int(height), int(width)) if height and width else None


def _segments(mask: Path, classes: Mapping[int, int], _size: tuple[int, int]) -> np.ndarray:
    """Classes of the pixels of a panoptic mask."""
    pixels = read_raw_mask(mask)
    if pixels.ndim == 2:  # grey, of numbers below 256
        numbers = pixels.astype(np.int64)
    else:
        packed = mask_numbers(pixels[..., ::-1], "rgb")  # red is the lowest byte
        assert packed is not None
        numbers = packed
    found, inverse = np.unique(numbers, return_inverse=True)
    unknown = [number for number in found.tolist() if number and number not in classes]
    if unknown:
        raise DataError(f"segments {listed(unknown)} are in {mask.name} and not in the JSON file; export both again")
    table = np.array([classes.get(number, UNLABELLED) for number in found.tolist()], np.uint8)
    return table[inverse].reshape(numbers.shape)
