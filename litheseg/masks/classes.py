"""Class lists: names, colours, and which value in a mask file means which class.

`Classes` is what a model predicts; a `LabelScheme` says how a mask file spells it: by index or by colour, which
values are ignored and which are remapped. A scheme comes from a source (CamVid, Cityscapes, ...) or from a
`classes.yaml` (or `dataset.yaml`) beside the data::

    classes:                        # a plain list of names, or one entry a class
      - {name: road, color: [128, 64, 128], id: 7}      # id: the value in the file; default: the position
      - {name: car, color: "#0000e6"}
    ignore: [11, 255]               # values (colours when the encoding is rgb) that do not count; 255 is always ignored
    remap: {12: road, 13: ignore}   # further file values: to a class (its name or id) or to ignore
    encoding: index                 # or rgb: the masks hold the classes' colours

Usage:
    >>> scheme = LabelScheme.build(Classes.from_names(["road", "car"]), ignore=[11])
    >>> scheme.table()[[0, 1, 11, 255]].tolist()
    [0, 1, 255, 255]
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from litheseg.errors import DataError, did_you_mean
from litheseg.masks.colours import Color, default_colors

__all__ = [
    "CAMVID_CLASSES",
    "CLASS_FILES",
    "IGNORE_INDEX",
    "UNKNOWN_INDEX",
    "ClassFile",
    "Classes",
    "LabelScheme",
    "class_file_text",
    "read_class_file",
]

IGNORE_INDEX = 255
"""The label of pixels that count nowhere, inside the library."""

UNKNOWN_INDEX = 254
"""Marks the file values that stand for nothing, in `LabelScheme.table` only: no mask that is handed out holds it."""

CLASS_FILES = ("classes.yaml", "classes.yml", "dataset.yaml", "dataset.yml")
_ENCODINGS = ("index", "rgb")
_FILE_KEYS = ("citation", "classes", "encoding", "ignore", "licence", "name", "remap")
_CLASS_KEYS = ("color", "id", "name")


@dataclass(frozen=True)
class Classes:
    """What a model tells apart: class `k` is `names[k]`, drawn in `colors[k]` (RGB, 0..255).

    Raises:
        DataError: names that are empty or occur twice, a colour outside 0..255, or more than 254 classes.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise DataError(f"{len(self.names)} class names but {len(self.colors)} colours; give one colour a class")
        if len(self.names) >= UNKNOWN_INDEX + 1:
            raise DataError(f"{len(self.names)} classes; at most {UNKNOWN_INDEX} fit an 8-bit mask: merge some")
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"class name {name!r} is not a text; quote it in the class list")
            if self.names.count(name) > 1:
                raise DataError(f"class name '{name}' occurs twice; names must differ")
        for color in self.colors:
            _color(color)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Classes:
        """Classes in colours that are told apart by most eyes (`litheseg.masks.colours`)."""
        names = tuple(names)
        return cls(names, default_colors(names))

    def __len__(self) -> int:
        return len(self.names)

    def palette(self) -> np.ndarray:
        """Colours by label: uint8 (256, 3); ignored and unused labels are black."""
        table = np.zeros((256, 3), np.uint8)
        if self.colors:
            table[: len(self.colors)] = self.colors
        return table


@dataclass(frozen=True)
class LabelScheme:
    """How mask files spell the classes.

    Attributes:
        classes: the classes.
        encoding: "index" (one channel, values 0..65535) or "rgb" (three channels of 8 bits).
        values: every known file value and its train id (`IGNORE_INDEX` for ignored ones), sorted; an RGB colour is the
            number 0xRRGGBB.
    """

    classes: Classes
    encoding: str
    values: tuple[tuple[int, int], ...]

    @classmethod
    def build(
        cls,
        classes: Classes,
        *,
        ids: Sequence[int | None] | None = None,
        ignore: Iterable[Any] = (),
        remap: Mapping[Any, Any] | None = None,
        encoding: str = "index",
    ) -> LabelScheme:
        """Resolve ids, ignored values and remaps into one table; `remap` wins over `ignore`, that over the ids.

        Args:
            classes: the classes.
            ids: the file value of each class, None for its position; for encoding "rgb" the colours are the values.
            ignore: further ignored values, or colours ((r, g, b) or "#rrggbb") for encoding "rgb".
            remap: file value -> class name, class id, ignored value or "ignore".
            encoding: "index" or "rgb".

        Raises:
            DataError: an unknown encoding, a value out of range, one with two meanings, or a class that no value means.
        """
        if encoding not in _ENCODINGS:
            raise DataError(f"encoding {encoding!r} is not known.{did_you_mean(str(encoding), _ENCODINGS)}")
        own = _class_values(classes, ids, encoding)
        ignored = {_value(entry, encoding) for entry in ignore}
        if encoding == "index" and IGNORE_INDEX not in own:
            ignored.add(IGNORE_INDEX)
        table = {value: index for index, value in enumerate(own)} | dict.fromkeys(ignored, IGNORE_INDEX)
        table |= {_value(k, encoding): _target(v, classes, own, ignored, encoding) for k, v in (remap or {}).items()}
        for index, name in enumerate(classes.names):
            if index not in table.values():
                raise DataError(
                    f"class '{name}' can never occur: its value {show_value(own[index], encoding)} is ignored or "
                    "remapped; give classes the values that masks hold ('id'), or take it out of 'ignore' or 'remap'"
                )
        return cls(classes, encoding, tuple(sorted(table.items())))

    def table(self) -> np.ndarray:
        """Train ids by file value, `UNKNOWN_INDEX` elsewhere: uint8 (65536,), or (2**24,) for "rgb"; read-only."""
        return _table(self)

    def show(self, value: int) -> str:
        """A file value as text: `12`, or `#rrggbb`."""
        return show_value(value, self.encoding)


@dataclass(frozen=True)
class ClassFile:
    """What a `classes.yaml` says: the scheme, and whatever it tells about the data set (empty when it does not)."""

    scheme: LabelScheme
    name: str = ""
    licence: str = ""
    citation: str = ""


def read_class_file(path: str | Path) -> ClassFile:
    """Read a `classes.yaml` or `dataset.yaml` (format: the module docstring).

    Raises:
        DataError: a file that is missing or no YAML, unknown keys, or a list that makes no scheme; names the file.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; write a list of class names there") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not readable YAML: {error}; see the format in litheseg.masks.classes") from error
    try:
        return _class_file(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def class_file_text(classes: Classes, **about: str) -> str:
    """The text of a `classes.yaml` for masks of train ids; `about` may hold name, licence and citation."""
    pairs = zip(classes.names, classes.colors, strict=True)
    entries = [{"name": label, "color": list(color)} for label, color in pairs]
    content = {**about, "classes": entries, "ignore": [IGNORE_INDEX]}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def show_value(value: int, encoding: str) -> str:
    """`12`, or `#rrggbb` for an RGB colour packed into a number."""
    return f"#{value:06x}" if encoding == "rgb" else str(value)


def _class_file(content: Any) -> ClassFile:
    if isinstance(content, list):
        content = {"classes": content}
    if not isinstance(content, dict) or "classes" not in content:
        raise DataError("holds no 'classes'; write e.g. 'classes: [road, car]'")
    _check_keys(content, _FILE_KEYS)
    entries = content["classes"]
    if not isinstance(entries, list) or not entries:
        raise DataError("'classes' must be a list of names, or of {name, color, id}")
    encoding = content.get("encoding", "index")
    classes, ids = _class_entries(entries, encoding)
    ignore, remap = content.get("ignore"), content.get("remap")
    if remap is not None and not isinstance(remap, dict):
        raise DataError("'remap' must map file values to classes, e.g. 'remap: {12: road}'")
    ignore = [] if ignore is None else ignore if isinstance(ignore, list) else [ignore]
    scheme = LabelScheme.build(classes, ids=ids, ignore=ignore, remap=remap, encoding=encoding)
    return ClassFile(scheme, *(str(content.get(key) or "") for key in ("name", "licence", "citation")))


def _class_entries(entries: list[Any], encoding: Any) -> tuple[Classes, list[int | None]]:
    names, colors, ids = [], [], []
    for index, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {"name": entry}
        _check_keys(entry, _CLASS_KEYS)
        if "name" not in entry:
            raise DataError(f"class {index} has no 'name'")
        if encoding == "rgb" and "color" not in entry:
            raise DataError(
                f"class '{entry['name']}' has no 'color', but the encoding is rgb; give its colour in the masks"
            )
        names.append(entry["name"])
        colors.append(_color(entry["color"]) if "color" in entry else None)
        ids.append(entry.get("id"))
    return Classes(tuple(names), default_colors(list(map(str, names)), colors)), ids


def _check_keys(mapping: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in mapping:
        if key not in known:
            raise DataError(f"unknown key '{key}'.{did_you_mean(str(key), known)}")


def _class_values(classes: Classes, ids: Sequence[int | None] | None, encoding: str) -> list[int]:
    given = list(ids) if ids is not None else [None] * len(classes)
    if len(given) != len(classes):
        raise DataError(f"{len(classes)} classes but {len(given)} ids; give one id a class")
    if encoding == "rgb":
        if any(value is not None for value in given):
            raise DataError("'id' has no meaning when the encoding is rgb: the colours are the values; remove it")
        values = [_value(color, encoding) for color in classes.colors]
    else:
        values = [_value(index if value is None else value, encoding) for index, value in enumerate(given)]
    for index, value in enumerate(values):
        first = values.index(value)
        if first != index:
            shown = show_value(value, encoding)
            raise DataError(f"classes '{classes.names[first]}' and '{classes.names[index]}' share the value {shown}")
    return values


def _target(target: Any, classes: Classes, own: list[int], ignored: set[int], encoding: str) -> int:
    if isinstance(target, str) and target in classes.names:
        return classes.names.index(target)
    if target == "ignore":
        return IGNORE_INDEX
    if isinstance(target, str) and not target.startswith("#"):
        raise DataError(f"remap to '{target}', which is no class.{did_you_mean(target, [*classes.names, 'ignore'])}")
    value = _value(target, encoding)
    if value in own:
        return own.index(value)
    if value in ignored:
        return IGNORE_INDEX
    shown = show_value(value, encoding)
    raise DataError(f"remap to {shown}, which is neither a class nor ignored; use a class name or 'ignore'")


def _value(entry: Any, encoding: str) -> int:
    """A file value, checked: 0..65535, or a colour as 0xRRGGBB."""
    if encoding == "rgb":
        red, green, blue = _color(entry)
        return red << 16 | green << 8 | blue
    if isinstance(entry, bool) or not isinstance(entry, (int, np.integer)) or not 0 <= entry <= 0xFFFF:
        raise DataError(f"label value {entry!r} is not a whole number in 0..65535")
    return int(entry)


def _color(entry: Any) -> Color:
    """(r, g, b), from three numbers in 0..255 or from "#rrggbb"."""
    try:
        if isinstance(entry, str):
            digits = entry.removeprefix("#")
            channels = tuple(bytes.fromhex(digits)) if entry != digits else ()
        else:
            channels = tuple(int(channel) for channel in entry)
    except (TypeError, ValueError):
        channels = ()
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise DataError(f'colour {entry!r} is not three numbers in 0..255 or a quoted "#rrggbb"')
    return channels[0], channels[1], channels[2]


def voc_color(index: int) -> Color:
    """Colour `index` of the PASCAL VOC map: the index's bits dealt in turn to red, green, blue, highest bit first."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


@functools.lru_cache(maxsize=8)
def _table(scheme: LabelScheme) -> np.ndarray:
    # A full table (16 MiB for colours) maps a mask in one pass; sorting or comparing per class takes tens.
    table = np.full(1 << (24 if scheme.encoding == "rgb" else 16), UNKNOWN_INDEX, np.uint8)
    for value, train_id in scheme.values:
        table[value] = train_id
    table.setflags(write=False)
    return table


_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
CAMVID_CLASSES = Classes(tuple(name for name, _ in _CAMVID), tuple(color for _, color in _CAMVID))
"""The eleven classes of CamVid in their usual order, which the procedural streets have too."""
