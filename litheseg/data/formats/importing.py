"""Recognise how a folder stores its labels, and write it as a folder of images and index masks.

What no shape covers is the class "background" where objects were drawn one by one; it is ignored where every pixel was
to be labelled: if the format says so, or if shapes cover all but a few per cent.

Usage:
    >>> import_dataset("data/coco", "data/mine").splits
    {'train': 367, 'val': 101}
    >>> recognise(Path("data/coco"))
    {'coco': 'annotations/instances_train2017.json'}
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from litheseg.bundle.hub import hub_dataset
from litheseg.data.formats import ade20k, coco, cvat, label_studio, labelme, pairs, tables, trees, voc, yolo
from litheseg.data.formats.collection import (
    Collection,
    CollectionSource,
    Format,
    ImportOptions,
    missing_refusal,
)
from litheseg.data.formats.regions import UNLABELLED, Overlap
from litheseg.data.sources.base import Source
from litheseg.data.sources.download import extract
from litheseg.data.sources.folder import write_folder
from litheseg.data.sources.public import CamVid, Cityscapes, Voc
from litheseg.errors import DataError, did_you_mean, listed
from litheseg.masks.classes import Classes
from litheseg.masks.opening import MAX_PIXELS
from litheseg.values import Quantity

__all__ = ["FORMATS", "ImportedData", "OtherFormatError", "import_command", "import_dataset", "recognise", "refusal"]

FORMATS: dict[str, Format] = {
    "coco": Format(
        "COCO (objects or stuff)", coco.detect, coco.read, "a .json file with images, annotations and categories"
    ),
    "coco-panoptic": Format(
        "COCO panoptic", coco.detect_panoptic, coco.read_panoptic, "a .json file with segments_info, and its PNG files"
    ),
    "yolo": Format("YOLO polygons", yolo.detect, yolo.read, "data.yaml with names and train, beside labels/"),
    "labelme": Format("LabelMe", labelme.detect, labelme.read, ".json files with shapes and imagePath"),
    "cvat": Format("CVAT for images", cvat.detect, cvat.read, "an .xml file with annotations and image"),
    "label-studio": Format(
        "Label Studio", label_studio.detect, label_studio.read, "a .json list of tasks with data and annotations"
    ),
    "voc-tree": Format("a tree as PASCAL VOC's", voc.detect, voc.read, "SegmentationClass/", plain=True),
    "ade20k": Format("ADE20K", trees.detect_ade, trees.read_ade, "objectInfo150.txt beside images/", plain=True),
    "ade20k-full": Format(
        "the full ADE20K", ade20k.detect, ade20k.read, "index_ade20k.mat, or _seg.png files with descriptions"
    ),
    "mapillary": Format(
        "Mapillary Vistas", trees.detect_mapillary, trees.read_mapillary, "config.json beside training/", plain=True
    ),
    "parquet": Format(
        "a table (Parquet or Hugging Face)",
        tables.detect,
        tables.read,
        "tables (.parquet, .arrow) with two pictures a row",
    ),
    "pairs": Format(
        "image and mask files", pairs.detect, pairs.read, "files that pair, such as img_1.jpg and mask_1.png"
    ),
}
"""Formats that are imported; the first word of each is the value of ``--format``."""

_READABLE: dict[str, type[CamVid] | type[Cityscapes] | type[Voc]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "voc": Voc,
}
_FILES = "pairs"
_HUB = "hf:"
_ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".mat", ".nii", ".dcm")
_BACKGROUND = "background"
_BACKGROUNDS = (_BACKGROUND, "_background_", "bg")
_LOOKED_AT = 64  # images, for the share of pixels without a label
_SEAMS = 0.05  # a share up to which these pixels are what was left between shapes


class OtherFormatError(DataError):
    """A folder whose labels have to be imported.

    Attributes:
        command: the shell command that does it.
    """

    def __init__(self, folder: Path, name: str, why: str) -> None:
        self.command = import_command(folder)
        title = FORMATS[name].title
        super().__init__(f"{folder} holds labels in the format {title} ({why}); import them with: {self.command}")


@dataclass(frozen=True)
class ImportedData:
    """The result of an import.

    Attributes:
        folder: the data set.
        format: a key of `FORMATS`, or the name of a data set that is read as it is.
        splits: images by split.
        classes: the names, in the order of the masks' values.
        notes: what was left out, and what became of pixels without a label; a sentence each.
    """

    folder: Path
    format: str
    splits: dict[str, int]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def import_dataset(
    source: str | Path,
    folder: str | Path,
    *,
    format: str = "auto",
    overlap: Overlap | None = None,
    unlabelled_as: str | None = None,
    images: str | Path | None = None,
    labels: str = "",
    skip_missing: bool = False,
    most_frequent: Quantity | None = None,
    classes: str = "",
    max_pixels: Quantity = MAX_PIXELS,
) -> ImportedData:
    """Write a data set of another format as a folder that training takes.

    Args:
        source: the folder of the data set, a label file, an archive (.zip, .tar) of one, or hf:OWNER/NAME for a data
            set of the Hugging Face hub.
        folder: the folder to make; it must not exist, or be empty.
        format: coco, coco-panoptic, yolo, labelme, cvat, label-studio, voc-tree, ade20k, ade20k-full, mapillary,
            parquet, pairs, camvid, cityscapes or voc; "auto" to recognise it.
        overlap: where shapes of two classes overlap, the later one counts, or the smaller one, or none; None for the
            format's own rule.
        unlabelled_as: the class of pixels without a label (made if the data set has none of that name), or "ignore";
            None for "background" where objects were drawn, unless they cover nearly everything.
        images: the folder of the image files; None for those that are found around the labels.
        labels: of several label files only those whose names match, such as "instances_*.json".
        skip_missing: leave out what lacks its image or mask.
        most_frequent: of the full ADE20K, keep so many classes: those with the most pixels in the training images; the
            pixels of others are ignored.
        classes: likewise, keep those of these names, separated by commas.
        max_pixels: of an image, width times height by its header.

    Raises:
        DataError: no known format, or several; labels that cannot be read; images that are not there; a folder that
            holds something already.
        LithesegError: it cannot be written.
    """
    source, folder = Path(source).expanduser(), Path(folder).expanduser()
    title = (source if source.is_dir() else source.absolute().parent).resolve().name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; choose a new folder, or remove it first")
    options = ImportOptions(
        overlap=overlap,
        images=None if images is None else Path(images).expanduser(),
        labels=labels,
        max_pixels=max_pixels,
        most_frequent=most_frequent,
        classes=tuple(filter(None, map(str.strip, classes.split(",")))),
    )
    if (address := source.as_posix()).startswith(_HUB):
        source, title = hub_dataset(address.removeprefix(_HUB)), source.name
    with ExitStack() as stack:
        root = _unpacked(source, folder, stack)
        name = _chosen(root, format)
        if name in _READABLE:
            return _written(_READABLE[name](root), folder, name, ())
        if name != "ade20k-full" and (most_frequent is not None or classes):
            raise DataError(
                f"most_frequent and classes choose among those of the full ADE20K; {root} is {FORMATS[name].title}: "
                "import all classes, and merge or ignore some in classes.yaml (remap, ignore)"
            )
        collection = FORMATS[name].read(root, options)
        notes = list(collection.notes)
        if collection.missing:
            if not skip_missing:
                raise DataError(missing_refusal(collection.missing))
            notes.append(f"{len(collection.missing)} missing files skipped: {listed(collection.missing)}")
        if not collection.items:
            raise DataError(f"{root}: no image has labels; nothing to import")
        opened, note = _with_background(collection, unlabelled_as, max_pixels)
        opened.name = title
        return _written(opened, folder, name, (*notes, *note))


def recognise(source: Path, *, pairs: bool = True) -> dict[str, str]:
    """The formats that a folder or a file may be of, and what in it speaks for each.

    Args:
        source: the folder or file.
        pairs: if there is none, look for names of images and masks that pair, too.
    """
    own = {name: why for name, entry in FORMATS.items() if name != _FILES and (why := entry.detect(source))}
    return own or ({_FILES: why} if pairs and (why := FORMATS[_FILES].detect(source)) else {})


def import_command(folder: Path, *options: str) -> str:
    """The command that imports a folder."""
    target = folder.with_name(f"{folder.resolve().name}-imported")
    return shlex.join(["litheseg", "data", "import", str(folder), str(target), *options])


def refusal(folder: Path, found: dict[str, str]) -> DataError:
    """Why a folder of these formats cannot be trained on as it is."""
    if len(found) == 1:
        name, why = next(iter(found.items()))
        return OtherFormatError(folder, name, why)
    if found:
        ways = " or ".join(import_command(folder, "--format", name) for name in found)
        shown = ", ".join(f"{FORMATS[name].title} ({why})" for name, why in found.items())
        return DataError(f"{folder} holds labels in {len(found)} formats: {shown}; say which one counts: {ways}")
    looked = "; ".join(f"{entry.title}: {entry.looked_for}" for entry in FORMATS.values())
    arrays = sorted({path.suffix for path in folder.rglob("*") if path.suffix in _ARRAYS})
    hint = f". Arrays ({', '.join(arrays)}) are not read: save images and masks as PNG" if arrays else ""
    return DataError(
        f"{folder} holds nothing that is recognised; expected images/ and masks/, train/ and trainannot/, lists "
        f"such as train.txt, leftImg8bit/ or JPEGImages/, or, to be imported, {looked}{hint}"
    )


def _chosen(root: Path, name: str) -> str:
    if name in _READABLE or name in FORMATS:
        if name in FORMATS and not FORMATS[name].detect(root):
            raise DataError(f"{root} is not {FORMATS[name].title}: looked for {FORMATS[name].looked_for}")
        return name
    if name != "auto":
        raise DataError(f"unknown format '{name}'.{did_you_mean(name, [*FORMATS, *_READABLE, 'auto'])}")
    readable = [key for key, kind in _READABLE.items() if root.is_dir() and kind.detects(root)]
    found = recognise(root, pairs=not readable)
    if readable and found:
        raise DataError(
            f"{root} holds {', '.join(readable)} and {', '.join(FORMATS[key].title for key in found)}; say which one "
            f"counts with --format: {', '.join([*readable, *found])}"
        )
    if readable:
        return readable[0]
    if len(found) != 1:
        raise refusal(root, found)
    return next(iter(found))


def _unpacked(source: Path, folder: Path, stack: ExitStack) -> Path:
    """The folder or label file to read: of an archive what it holds, unpacked beside the new folder."""
    if not source.exists():
        raise DataError(f"{source} does not exist; give the folder, file or archive that holds the labels")
    if source.is_dir() or source.suffix.lower() not in (".zip", ".tar", ".gz", ".tgz"):
        return source
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent))
    return extract(source, Path(scratch) / "unpacked")


def _with_background(
    collection: Collection, unlabelled_as: str | None, max_pixels: int
) -> tuple[CollectionSource, tuple[str, ...]]:
    """The data set in which pixels without a label have a meaning, and a note of it."""
    share = _unlabelled_share(collection, max_pixels)
    wanted = unlabelled_as
    names = {name.lower(): name for name in reversed(collection.classes.names)}
    if wanted is None and not collection.complete and share > _SEAMS:
        wanted = next((names[name] for name in _BACKGROUNDS if name in names), _BACKGROUND)
    shown = f"pixels without a label ({share:.1%} of those looked at)"
    if wanted is None or wanted == "ignore":
        source = CollectionSource(collection, max_pixels=max_pixels)
        return source, (f"{shown} are ignored; --unlabelled-as background makes them a class",) if share else ()
    note = f"{shown} are '{wanted}'; --unlabelled-as ignore leaves them out"
    if wanted in collection.classes.names:
        place = collection.classes.names.index(wanted)
        return CollectionSource(collection, unlabelled=place, max_pixels=max_pixels), (note,)
    classes = collection.classes
    more = replace(collection, classes=Classes((wanted, *classes.names), ((0, 0, 0), *classes.colors)))
    return CollectionSource(more, unlabelled=0, first=1, max_pixels=max_pixels), (note,)


def _unlabelled_share(collection: Collection, max_pixels: int) -> float:
    """Of the pixels of some images, spread evenly."""
    source = CollectionSource(collection, max_pixels=max_pixels)
    samples = [sample for split in source.splits() for sample in source.samples(split)]
    chosen = samples[:: -(-len(samples) // _LOOKED_AT)]
    counts = [(int((labels == UNLABELLED).sum()), labels.size) for labels in map(source.raw_mask, chosen)]
    return sum(count for count, _ in counts) / sum(size for _, size in counts)


def _written(source: Source, folder: Path, name: str, notes: Sequence[str]) -> ImportedData:
    write_folder(source, folder)
    splits = {split: len(source.samples(split)) for split in source.splits()}
    return ImportedData(folder, name, splits, source.classes.names, tuple(notes))
