"""Turn a corrected export into a `folder` data set: images, index masks and a `classes.yaml`.

Everything is read before anything is written: an unusable export leaves nothing behind. Several exports
may go into one folder, as long as they have the same classes and no image twice.

Usage:
    >>> import_labels("job_12.zip", "data/corrected", images="photos", classes="labelled/classes.yaml").images
    20
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litheseg.bundle.names import is_named
from litheseg.data.sources.base import existing_folder, find_images
from litheseg.errors import DataError, did_you_mean
from litheseg.labelling.cvat import CvatExport
from litheseg.labelling.label_studio import LabelStudioExport
from litheseg.labelling.tools import CorrectedExport, image_key, match_image
from litheseg.masks.classes import (
    CLASS_FILES,
    IGNORE_INDEX,
    Classes,
    LabelScheme,
    class_file_text,
    read_class_file,
)
from litheseg.masks.pictures import write_mask
from litheseg.masks.reading import read_image
from litheseg.models.bundle import load_bundle

__all__ = ["Imported", "import_labels"]

_BACKGROUND = "background"
_CLASSES = CLASS_FILES[0]


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        folder: the data set.
        images: how many images with masks were written.
        left_out: images of the export without annotations.
        classes: the names, in the order of the masks' values.
    """

    folder: Path
    images: int
    left_out: tuple[str, ...]
    classes: tuple[str, ...]


def import_labels(
    export: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    classes: str | Path | Classes | None = None,
    unlabelled_as: str | None = None,
    force: bool = False,
) -> Imported:
    """Write the labels of a corrected export as a data set.

    Args:
        export: CVAT's "Segmentation mask 1.1" (a zip, or the folder it was unpacked to) or Label Studio's "JSON".
        output: the folder of the data set; made if missing.
        images: the folder of the images that were annotated; None if the export brings them.
        classes: a `classes.yaml` or a model file, whose order the masks take; None for the export's own labels.
        unlabelled_as: the class of pixels without annotation; None leaves them 255 (ignored).
        force: replace masks and images that exist.

    Raises:
        DataError: an export of no known format, damaged, or with labels, shapes or sizes that do not fit; an image that
            is missing; files that would be replaced; no annotation at all.
        LithesegError: it cannot be written.
    """
    output = Path(output).expanduser()
    if output.exists() and not output.is_dir():
        raise DataError(f"output {output} is a file; give a folder")
    with _open(Path(export).expanduser()) as opened:
        known = classes if isinstance(classes, Classes) else _read_classes(classes, opened, unlabelled_as)
        if unlabelled_as is not None and unlabelled_as not in known.names:
            hint = did_you_mean(unlabelled_as, known.names)
            raise DataError(f"'{unlabelled_as}' for unlabelled pixels is no class.{hint}")
        if not opened.keys:
            raise DataError(f"{opened.path} holds no image that anybody drew on; save the annotations and export again")
        items = _matched(opened, images)
        _check_classes(output, known)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as name:
                draft = Path(name)
                for item in items:
                    _write(opened, item, known, unlabelled_as, draft)
                text = class_file_text(known, name=output.resolve().name)
                (draft / _CLASSES).write_text(text, encoding="utf-8")
                _place(draft, output, force)
        except OSError as error:
            raise DataError(f"cannot write {output}: {error.strerror or error}; choose another folder") from error
        return Imported(output, len(items), opened.left_out, known.names)


def _open(path: Path) -> CorrectedExport:
    if not path.exists():
        raise DataError(f"{path} does not exist; give the file that CVAT or Label Studio exported")
    for kind in (CvatExport, LabelStudioExport):
        if kind.detects(path):
            return kind(path)
    raise DataError(
        f"{path} is no export that is known; give CVAT's 'Segmentation mask 1.1' (.zip or its folder) or Label "
        "Studio's 'JSON' (.json)"
    )


def _read_classes(given: str | Path | None, export: CorrectedExport, unlabelled_as: str | None) -> Classes:
    if given is not None:
        if is_named(given) or Path(given).suffix == ".safetensors":
            return load_bundle(given).header.classes
        return read_class_file(Path(given).expanduser()).scheme.classes
    if not export.colors:
        raise DataError(
            f"{export.path} does not list its classes; give them with --classes: the classes.yaml that pseudo-label "
            "wrote, or the model"
        )
    # CVAT adds this label by itself; it is a class only if `classes` has it.
    kept = {name: c for name, c in export.colors.items() if name != _BACKGROUND or unlabelled_as == _BACKGROUND}
    return Classes(tuple(kept), tuple(kept.values()))


@dataclass(frozen=True)
class _Item:
    """An image: its id, what the export calls it, and its file (None: the export brings it)."""

    key: str
    theirs: str
    image: Path | None


def _matched(export: CorrectedExport, images: str | Path | None) -> list[_Item]:
    found = None if images is None else find_images(existing_folder(images), recursive=True)
    items: dict[str, _Item] = {}
    for theirs in export.keys:
        if found is not None:
            key = match_image(theirs, found)
            remedy = f"{images} is to hold all images that were annotated"
        else:
            key = image_key(theirs, str(export.path)) if export.image(theirs) else None
            remedy = "give the folder of the images with --images"
        if key is None:
            raise DataError(f"{export.path}: no image for '{theirs}'; {remedy}")
        if key in items:
            raise DataError(f"{export.path}: '{items[key].theirs}' and '{theirs}' are one image '{key}'; remove one")
        items[key] = _Item(key, theirs, found[key] if found is not None else None)
    return list(items.values())


def _check_classes(output: Path, classes: Classes) -> None:
    """A folder of masks that mean something else is not added to."""
    for path in (output / name for name in CLASS_FILES if (output / name).exists()):
        there, here = read_class_file(path).scheme, LabelScheme.build(classes)
        if (there.classes.names, there.values, there.encoding) != (here.classes.names, here.values, here.encoding):
            raise DataError(f"{path} lists other classes or values; choose another output folder")


def _write(export: CorrectedExport, item: _Item, classes: Classes, unlabelled_as: str | None, folder: Path) -> None:
    """An image and its mask."""
    brought = export.image(item.theirs) if item.image is None else None
    suffix = brought[0] if brought else item.image.suffix if item.image else ""
    image = folder / "images" / f"{item.key}{suffix}"
    image.parent.mkdir(parents=True, exist_ok=True)
    if brought:
        image.write_bytes(brought[1])
    elif item.image:
        shutil.copyfile(item.image, image)
    try:
        height, width = read_image(image).shape[:2]
    except DataError as error:
        origin = item.image or f"{export.path}: image '{item.theirs}'"
        raise DataError(f"{origin} cannot be decoded; replace it, or leave it out of the export") from error
    labels = export.labels(item.theirs, classes, (height, width))
    if unlabelled_as is not None:
        labels = np.where(labels == IGNORE_INDEX, np.uint8(classes.names.index(unlabelled_as)), labels)
    write_mask(folder / "masks" / f"{item.key}.png", labels, classes)


def _place(draft: Path, output: Path, force: bool) -> None:
    """Move the files of a finished draft; a class list that is there stays."""
    files = [path.relative_to(draft) for path in sorted(draft.rglob("*")) if path.is_file()]
    if any((output / name).exists() for name in CLASS_FILES):
        files.remove(Path(_CLASSES))
    before = find_images(output / "images", recursive=True)
    for key, image in find_images(draft / "images", recursive=True).items():
        if key in before and before[key].suffix != image.suffix:
            raise DataError(f"{before[key]} has the stem of {image.name}, which would come beside it; remove one")
    there = [output / file for file in files if (output / file).exists()]
    if there and not force:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise DataError(f"{there[0]} exists{more}; choose another folder, or replace with --force")
    for file in files:
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / file, output / file)
