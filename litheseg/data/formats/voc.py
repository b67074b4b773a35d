"""Trees in the manner of PASCAL VOC with classes of their own: `JPEGImages/` and `SegmentationClass/`.

CVAT's "Segmentation mask" is one, with a `labelmap.txt`; so are many converted data sets. Lists in
`ImageSets/Segmentation/` say which images belong to a split, if there are any. Pascal VOC itself is read as it is
(`litheseg.data.sources.public`).

Usage:
    >>> detect(Path("data/job_12"))
    'SegmentationClass/ with labelmap.txt'
"""

from __future__ import annotations

from pathlib import Path

from litheseg.data.formats.class_lists import find_class_list
from litheseg.data.formats.collection import Annotated, Collection, ImportOptions, Tally
from litheseg.data.formats.files import ImageFiles, image_id, split_in
from litheseg.data.formats.mask_files import labelled_by, scheme_of_masks
from litheseg.data.sources.base import find_images
from litheseg.data.sources.public import Voc
from litheseg.data.sources.splits import read_list

__all__ = ["detect", "read"]

_MASKS, _LISTS = "SegmentationClass", "ImageSets/Segmentation"


def detect(source: Path) -> str:
    """Masks in a tree that `Voc` does not read."""
    base = _base(source)
    if base is None or Voc.detects(source):
        return ""
    listed = find_class_list(base) is not None
    return f"{_MASKS}/ with {'a list of classes' if listed else 'no list of classes'}"


def read(source: Path, options: ImportOptions) -> Collection:
    """All masks, by split.

    Raises:
        DataError: masks or lists that cannot be read.
    """
    base = _base(source)
    assert base is not None, "detected before"
    masks = find_images(base / _MASKS, recursive=True)
    others = [base / name for name in (_MASKS, "SegmentationObject", "SegmentationClassAug")]
    images = ImageFiles(options.images or base, without=others)
    missing, tally, items = list[str](), Tally(), list[Annotated]()
    scheme, notes = scheme_of_masks(base, list(masks.values()), options.max_pixels)
    for split, key in _listed(base, list(masks)):
        if key not in masks:
            tally.add("listed images without a mask left out", key)
            continue
        # The image has another ending than the mask.
        found = next(filter(None, (images.find(f"{key}{end}", masks[key], split) for end in _ENDINGS)), None)
        if found is None:
            missing.append(f"{key} (image)")
        else:
            labels = labelled_by(scheme, masks[key], options.max_pixels)
            items.append(Annotated(image_id(f"{key}.png", split), split, found, labels, masks[key]))
    return Collection(scheme.classes, tuple(items), True, tuple(missing), (*notes, *tally.notes()))


_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def _base(source: Path) -> Path | None:
    """The folder of the masks: the source, or one right below."""
    if not source.is_dir():
        return None
    tried = (source, *sorted(path for path in source.iterdir() if path.is_dir()))
    return next((folder for folder in tried if (folder / _MASKS).is_dir()), None)


def _listed(base: Path, keys: list[str]) -> list[tuple[str, str]]:
    """(split, id) of all images: those of the lists, else those of all masks."""
    lists = sorted((base / _LISTS).glob("*.txt"))
    named = {split: path for path in reversed(lists) if (split := split_in(path.stem))}
    chosen = sorted(named.items()) or [("", path) for path in lists]
    pairs = [(split, line) for split, path in chosen for _, line in read_list(path)]
    return [(split or split_in(key) or "train", key) for split, key in pairs or [("", key) for key in keys]]
