"""CVAT's "Segmentation mask 1.1": written for its import, read from its export.

The format is PASCAL VOC's, in a zip: ``labelmap.txt`` (a line ``name:r,g,b::`` each), ``ImageSets/Segmentation/*.txt``
(ids), ``SegmentationClass/ID.png`` (labels in those colours), ``SegmentationObject/ID.png`` (which object, in VOC's
colour map; black where nothing was drawn) and, optionally, ``JPEGImages/``; see CVAT's page "Segmentation mask". A
class becomes one object per image. Unknown pixels have no object and the label "background", which the format
requires: CVAT leaves it out where a project has no such label.

Nothing is ever unpacked: members are read one by one.

Usage:
    >>> write_cvat(chosen, classes, "labelled/cvat.zip")
    >>> with CvatExport(Path("job_12.zip")) as export:
    ...     export.colors, export.keys
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from litheseg.errors import DataError
from litheseg.labelling.tools import Chosen, CorrectedExport, class_index, image_key, write_once
from litheseg.masks.classes import IGNORE_INDEX, Classes, Color, voc_color

__all__ = ["CvatExport", "write_cvat"]

_BACKGROUND = "background"
_LABELS, _LISTS = "labelmap.txt", "ImageSets/Segmentation/"
_CLASS, _OBJECT, _IMAGES = "SegmentationClass/", "SegmentationObject/", "JPEGImages/"
_MAX_BYTES = 1 << 30  # of a member; guards against zip bombs
_WHEN = (1980, 1, 1, 0, 0, 0)  # of members: equal content gives an equal file
_FORMAT = "export with the format 'Segmentation mask 1.1'"
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError)


def write_cvat(chosen: Sequence[Chosen], classes: Classes, path: str | Path, *, force: bool = False) -> Path:
    """Write a zip that CVAT imports, and beside it ``NAME_labels.json`` for the "Raw" tab of its label editor.

    Args:
        chosen: images and masks; the images go into the zip.
        classes: names and colours; a colour that occurs twice, or a black one, is replaced by one of VOC's.
        path: the zip.
        force: replace what exists.

    Returns:
        `path`.

    Raises:
        DataError: a name that the format cannot hold, an image or mask that cannot be read, or a file that
            would change.
        LithesegError: it cannot be written.
    """
    path = Path(path)
    colors = _distinct(classes)
    for name in (*classes.names, *(item.key for item in chosen)):
        if ":" in name or name.startswith("#") or name != name.strip() or "\n" in name:
            raise DataError(f"CVAT's format cannot hold the name '{name}' (':', '#' in front, or spaces around it)")
    labels = [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colors[name]), "type": "any", "attributes": []}
        for name in classes.names
    ]
    with write_once(path.with_name(f"{path.stem}_labels.json"), force) as draft:
        draft.write_text(json.dumps(labels, indent=2) + "\n", encoding="utf-8")
    with write_once(path, force) as draft, zipfile.ZipFile(draft, "w") as archive:
        lines = [f"{name}:{','.join(map(str, color))}::" for name, color in colors.items()]
        _add(archive, _LABELS, "\n".join(["# label:color_rgb:parts:actions", *lines, ""]).encode())
        _add(archive, f"{_LISTS}default.txt", "".join(f"{item.key}\n" for item in chosen).encode())
        for item in chosen:
            values = item.labels(classes)
            painted = _painted(values, [colors[name] for name in classes.names], colors[_BACKGROUND])
            # Objects are in VOC's colours, from 1: black means that nothing was drawn.
            objects = _painted(values, [voc_color(index + 1) for index in range(len(classes))], (0, 0, 0))
            _add(archive, f"{_CLASS}{item.key}.png", painted)
            _add(archive, f"{_OBJECT}{item.key}.png", objects)
            _add(archive, f"{_IMAGES}{item.key}{item.image.suffix}", item.image.read_bytes())
    return path


def _distinct(classes: Classes) -> dict[str, Color]:
    """Colours by label, "background" first (black, unless it is a class with a colour); all differ."""
    given = dict(zip(classes.names, classes.colors, strict=True))
    colors = {_BACKGROUND: given.get(_BACKGROUND, (0, 0, 0))}
    spare = (voc_color(index) for index in range(1, 1 << 12))
    for name, color in given.items():
        if name != _BACKGROUND:
            taken = color in colors.values() or color == (0, 0, 0)
            used = {*colors.values(), *classes.colors, (0, 0, 0)}
            colors[name] = next(value for value in spare if value not in used) if taken else color
    return colors


def _painted(labels: np.ndarray, colors: Sequence[Color], elsewhere: Color) -> bytes:
    """An RGB PNG; colour and not palette, since readers disagree on whether palettes are to be looked up."""
    table = np.full((256, 3), elsewhere, np.uint8)
    table[: len(colors)] = colors
    buffer = io.BytesIO()
    Image.fromarray(table[labels]).save(buffer, format="PNG")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, _WHEN)
    member.external_attr = 0o644 << 16
    packed = not name.startswith((_IMAGES, _CLASS, _OBJECT))
    archive.writestr(member, content, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)


class CvatExport(CorrectedExport):
    """A corrected export: a zip, or the folder that it was unpacked to.

    Args:
        path: the zip or folder.

    Raises:
        DataError: a damaged zip, another format, a label map that is no label map, or names that leave the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = None if path.is_dir() else _opened(path)
        files = self._zip.namelist() if self._zip else _files(path)
        base = next((name.partition(_CLASS)[0] for name in files if _CLASS in name), None)
        if base is None or f"{base}{_LABELS}" not in files:
            self.close()
            raise DataError(f"{path} holds no {_LABELS} and {_CLASS}; {_FORMAT} (in Label Studio: JSON)")
        self._members = {name.removeprefix(base): name for name in files if name.startswith(base) and name[-1] != "/"}
        self._base = base
        self.colors = self._label_map()
        self._names = tuple(self.colors)
        listed = self._listed()
        self.keys = tuple(key for key in listed if f"{_CLASS}{key}.png" in self._members)
        self.left_out = tuple(key for key in listed if key not in set(self.keys))
        self._images = {
            PurePosixPath(name.removeprefix(_IMAGES)).with_suffix("").as_posix(): name
            for name in self._members
            if name.startswith(_IMAGES)
        }

    @staticmethod
    def detects(path: Path) -> bool:
        """Whether the file or folder looks like one."""
        return path.is_dir() or path.suffix.lower() == ".zip"

    def close(self) -> None:
        """See `CorrectedExport.close`."""
        if self._zip is not None:
            self._zip.close()

    def image(self, key: str) -> tuple[str, bytes] | None:
        """See `CorrectedExport.image`."""
        name = self._images.get(key)
        return (PurePosixPath(name).suffix, self._read(name)) if name else None

    def labels(self, key: str, classes: Classes, size: tuple[int, int]) -> np.ndarray:
        """See `CorrectedExport.labels`."""
        name = f"{_CLASS}{key}.png"
        where = f"{self.path}: {name}"
        places = self._places(name, size)
        drawn = self._drawn(key, size)
        result = np.full(size, IGNORE_INDEX, np.uint8)
        for place in np.unique(places).tolist():
            label = self._names[place]
            here = places == place
            if label == _BACKGROUND:
                # CVAT also paints undrawn pixels as background; only objects tell the two apart.
                here &= drawn if drawn is not None else label in classes.names
                if not here.any():
                    continue
            result[here] = class_index(label, classes, where)
        return result

    def _places(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """Each pixel's line in the label map: integers H x W."""
        image = self._decoded(name, size)
        if image.ndim == 2:  # one channel holds the line itself
            if image.max(initial=0) >= len(self._names):
                raise DataError(f"{self.path}: {name}: label {image.max()}, but {_LABELS} lists {len(self._names)}")
            return image
        packed = image.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        known = {red << 16 | green << 8 | blue: place for place, (red, green, blue) in enumerate(self.colors.values())}
        found, inverse = np.unique(packed, return_inverse=True)
        unknown = [f"#{value:06x}" for value in found.tolist() if value not in known]
        if unknown:
            raise DataError(f"{self.path}: {name}: colours that {_LABELS} does not list: {', '.join(unknown[:8])}")
        return np.array([known[value] for value in found.tolist()])[inverse].reshape(packed.shape)

    def _drawn(self, key: str, size: tuple[int, int]) -> np.ndarray | None:
        """Where there is an object: bool H x W; None where the export does not tell objects."""
        name = f"{_OBJECT}{key}.png"
        if name not in self._members:
            return None
        image = self._decoded(name, size)
        return np.asarray(image.any(-1) if image.ndim == 3 else image > 0)

    def _decoded(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """uint8 H x W (one channel) or H x W x 3 (colours, also of a palette)."""
        where = f"{self.path}: {name}"
        try:
            with Image.open(io.BytesIO(self._read(name))) as image:
                pixels = np.array(image if image.mode == "L" else image.convert("RGB"))
        except (*_BROKEN, Image.DecompressionBombError) as error:
            raise DataError(f"{where} is damaged or no image ({error}); {_FORMAT} again") from error
        if pixels.shape[:2] != size:
            height, width = pixels.shape[:2]
            raise DataError(
                f"{where} is {height}x{width} (HxW), but its image is {size[0]}x{size[1]}; give the images that were "
                "annotated, at their own size"
            )
        return pixels

    def _label_map(self) -> dict[str, Color]:
        where = f"{self.path}: {_LABELS}"
        colors: dict[str, Color] = {}
        for line in self._text(_LABELS):
            name, _, rest = line.partition(":")
            channels = rest.partition(":")[0].split(",")
            if len(channels) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in channels):
                raise DataError(f"{where}: '{line}' is no 'name:r,g,b::'; {_FORMAT} again")
            red, green, blue = (int(part) for part in channels)
            double = next((other for other, color in colors.items() if color == (red, green, blue)), None)
            if name in colors or double is not None:
                other = name if double is None else double
                raise DataError(f"{where}: '{other}' and '{name}' have the same name or colour; change that in CVAT")
            colors[name] = (red, green, blue)
        return colors

    def _listed(self) -> list[str]:
        """The ids of all lists, or of all masks where there is no list; sorted."""
        lists = [name for name in self._members if name.startswith(_LISTS) and name.endswith(".txt")]
        keys = {line for name in lists for line in self._text(name)}
        if not lists:
            masks = (name.removeprefix(_CLASS) for name in self._members if name.startswith(_CLASS))
            keys = {name.removesuffix(".png") for name in masks if name.endswith(".png")}
        return sorted(image_key(key, str(self.path)) for key in keys)

    def _text(self, name: str) -> list[str]:
        """Lines without blank ones and comments."""
        try:
            lines = self._read(name).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: {name} is no UTF-8 text ({error}); {_FORMAT} again") from error
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def _read(self, name: str) -> bytes:
        member = self._members[name]
        if self._zip and self._zip.getinfo(member).file_size > _MAX_BYTES:
            raise DataError(f"{self.path}: {name} claims to be larger than {_MAX_BYTES >> 20} MiB; {_FORMAT} again")
        try:
            return self._zip.read(member) if self._zip else (self.path / member).read_bytes()
        except _BROKEN as error:
            raise DataError(f"{self.path}: {name} cannot be read ({error}); {_FORMAT} again") from error


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give the file that CVAT exported") from error
    except _BROKEN as error:
        raise DataError(f"{path} is a damaged zip, or none ({error}); download it again") from error


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
