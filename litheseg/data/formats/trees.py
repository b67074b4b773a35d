"""Public data sets as they unpack, whose classes a file of their own lists: ADE20K and Mapillary Vistas.

ADE20K's scene parsing benchmark (`ADEChallengeData2016`): `images/` and `annotations/`, each with `training/` and
`validation/`, and `objectInfo150.txt`; 0 is what is none of the 150 classes, and ignored. Zhou et al., "Scene parsing
through ADE20K dataset", CVPR 2017. The full ADE20K, of thousands of classes, is another format.

Mapillary Vistas: `training/` and `validation/`, each with `images/` and `labels/` (or `v1.2/labels/`, `v2.0/labels/`),
and `config.json` (`config_v1.2.json`, ...), whose list of labels is in the order of the values; labels that it does not
evaluate are ignored. Neuhold et al., "The Mapillary Vistas dataset for semantic understanding of street scenes", ICCV
2017.

Usage:
    >>> detect_ade(Path("data/ADEChallengeData2016"))
    'objectInfo150.txt'
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from litheseg.data.formats.class_lists import find_class_list
from litheseg.data.formats.collection import Annotated, Collection, ImportOptions, Tally
from litheseg.data.formats.files import read_json
from litheseg.data.formats.mask_files import labelled_by
from litheseg.data.sources.base import find_images
from litheseg.errors import DataError
from litheseg.masks.classes import Classes, LabelScheme

__all__ = ["detect_ade", "detect_mapillary", "read_ade", "read_mapillary"]

_SPLITS = {"train": "training", "val": "validation"}
_ADE = "objectInfo150.txt"


def detect_ade(source: Path) -> str:
    """The list of classes beside the images."""
    return _ADE if (source / _ADE).is_file() and (source / "images/training").is_dir() else ""


def read_ade(source: Path, options: ImportOptions) -> Collection:
    """Both splits.

    Raises:
        DataError: a list of classes that cannot be read.
    """
    scheme = find_class_list(source)
    assert scheme is not None, "detected before"
    folders = [(split, source / "images" / name, source / "annotations" / name) for split, name in _SPLITS.items()]
    return _read(folders, scheme, options)


def detect_mapillary(source: Path) -> str:
    """A configuration beside the images."""
    found = _versions(source)
    return next(iter(found.values()))[1].name if found else ""


def read_mapillary(source: Path, options: ImportOptions) -> Collection:
    """Both splits.

    Raises:
        DataError: labels of two versions, or a configuration that cannot be read.
    """
    found = {name: entry for name, entry in _versions(source).items() if fnmatch(name, options.labels or "*")}
    if len(found) != 1:
        known = " and ".join(_versions(source))
        raise DataError(f"{source} has labels of the versions {known}; say which are meant: --labels v2.0")
    labels, config = next(iter(found.values()))
    folders = [(split, source / name / "images", source / name / labels) for split, name in _SPLITS.items()]
    return _read(folders, _mapillary_scheme(config), options)


def _versions(source: Path) -> dict[str, tuple[str, Path]]:
    """Folder of labels in a split, and configuration, by version."""
    tried = {"": ("labels", "config.json")} | {
        version: (f"{version}/labels", f"config_{version}.json") for version in ("v1.1", "v1.2", "v2.0")
    }
    return {
        version: (labels, source / config)
        for version, (labels, config) in tried.items()
        if (source / config).is_file() and (source / "training" / labels).is_dir()
    }


def _mapillary_scheme(config: Path) -> LabelScheme:
    try:
        every = list(enumerate(read_json(config)["labels"]))
        entries = [
            (value, str(entry["readable"]), str(entry["name"]), tuple(int(part) for part in entry["color"][:3]))
            for value, entry in every
            if entry.get("evaluate", True)
        ]
        readable = [name for _, name, _, _ in entries]
        names = readable if len(set(readable)) == len(readable) else [name for _, _, name, _ in entries]
        ids = [value for value, *_ in entries]
        ignore = [value for value, _ in every if value not in ids]
        colors = tuple((red, green, blue) for *_, (red, green, blue) in entries)
        return LabelScheme.build(Classes(tuple(names), colors), ids=ids, ignore=ignore)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{config}: no configuration of Mapillary Vistas ({error!r}); unpack it again") from error


def _read(folders: Iterable[tuple[str, Path, Path]], scheme: LabelScheme, options: ImportOptions) -> Collection:
    """Images and masks of equal stems."""
    tally, missing, items = Tally(), list[str](), list[Annotated]()
    for split, image_folder, mask_folder in folders:
        images = find_images(options.images / split if options.images else image_folder, recursive=True)
        masks = find_images(mask_folder, recursive=True)
        for key in images.keys() - masks.keys():
            tally.add("images without a mask left out", images[key])
        missing += [f"the image of {masks[key]}" for key in sorted(masks.keys() - images.keys())]
        for key in sorted(images.keys() & masks.keys()):
            labels = labelled_by(scheme, masks[key], options.max_pixels)
            items.append(Annotated(key, split, images[key], labels, masks[key]))
    return Collection(scheme.classes, tuple(items), True, tuple(missing), tally.notes())
