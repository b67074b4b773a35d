"""Lists of classes that other tools leave beside masks.

| file | a line, or what it holds |
|---|---|
| `classes.yaml`, `dataset.yaml` | see `litheseg.masks.classes` |
| `labelmap.txt` (CVAT) | `name:r,g,b::` |
| `class_dict.csv`, `_classes.csv` (Kaggle, Roboflow) | `name,r,g,b` or `value,name`, below a heading |
| `label_colors.txt` (CamVid) | `r g b name` |
| `id2label.json` (Hugging Face) | `{"0": "road", ...}` |
| `objectInfo150.txt` (ADE20K) | `Idx Ratio Train Val Stuff Name`, below a heading |
| `labels.txt`, `classes.txt`, `codes.txt` | a name, in the order of the values |

Usage:
    >>> found = find_class_list(Path("data/leaves"))
    >>> found.classes.names if found else ()
    ('background', 'leaf')
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from litheseg.errors import DataError
from litheseg.masks.classes import CLASS_FILES, Classes, LabelScheme, read_class_file

__all__ = ["find_class_list", "parse_labelmap", "scheme_of_values"]

_COLOURED = re.compile(r"^\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*?)\s*$")
_Rows = Sequence[Sequence[str]]


def find_class_list(folder: Path) -> LabelScheme | None:
    """What the first known list in a folder, or in one right below, says of the masks; None if there is none.

    Raises:
        DataError: a list that cannot be read.
    """
    for base in (folder, *sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")):
        for name in (*CLASS_FILES, *_PARSERS):
            path = base / name
            if not path.is_file():
                continue
            if name in CLASS_FILES:
                return read_class_file(path).scheme
            try:
                return _PARSERS[name](path.read_text(encoding="utf-8-sig"))
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
            except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
                raise DataError(f"{path} is no list of classes as its name says ({error!r}); correct it") from error
    return None


def scheme_of_values(names: Mapping[int, str], ignore: Sequence[int] = ()) -> LabelScheme:
    """A scheme from names by value; of values of one name the first one is the class."""
    own = {name: value for value, name in sorted(names.items(), reverse=True)}
    pairs = sorted((value, name) for name, value in own.items())
    remap = {value: name for value, name in names.items() if own[name] != value}
    classes = Classes.from_names([name for _, name in pairs])
    return LabelScheme.build(classes, ids=[value for value, _ in pairs], ignore=ignore, remap=remap)


def parse_labelmap(text: str) -> LabelScheme:
    """CVAT's `labelmap.txt`."""
    rows = [line.split(":") for line in _lines(text)]
    return _coloured([(name, *colour.split(",")) for name, colour, *_ in rows])


def _table(text: str) -> LabelScheme:
    """A CSV file of names and colours, or of values and names."""
    heading, *rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    words = [cell.lower() for cell in heading]
    if {"r", "g", "b"} <= set(words):
        places = [next(place for place, word in enumerate(words) if word not in ("r", "g", "b"))]
        places += [words.index(word) for word in "rgb"]
        return _coloured([[row[place] for place in places] for row in rows])
    number = 0 if rows[0][0].isdigit() else 1
    return scheme_of_values({int(row[number]): row[1 - number] for row in rows})


def _colours(text: str) -> LabelScheme:
    found = [match.groups() for line in _lines(text) if (match := _COLOURED.match(line))]
    return _coloured([(name, red, green, blue) for red, green, blue, name in found])


def _coloured(rows: _Rows) -> LabelScheme:
    """From (name, red, green, blue); what is called void or ignore counts nowhere."""
    colors = {row[0]: (int(row[1]), int(row[2]), int(row[3])) for row in rows}
    void = [color for name, color in colors.items() if name.lower() in ("void", "ignore", "unlabeled", "unlabelled")]
    kept = {name: color for name, color in colors.items() if color not in void}
    return LabelScheme.build(Classes(tuple(kept), tuple(kept.values())), ignore=void, encoding="rgb")


def _names(text: str) -> LabelScheme:
    return scheme_of_values(dict(enumerate(_lines(text))))


def _id2label(text: str) -> LabelScheme:
    return scheme_of_values({int(value): str(name) for value, name in json.loads(text).items()})


def _ade(text: str) -> LabelScheme:
    """ADE20K's 150 classes; 0 is everything else, and ignored. Of several words for a class the first is its name."""
    rows = [re.split(r"\t+|\s{2,}", line.strip()) for line in text.splitlines()[1:] if line.strip()]
    first = {int(row[0]): row[-1].split(",")[0].strip() for row in rows}
    taken = list(first.values())
    return scheme_of_values(
        {
            value: name if taken.index(name) == place else f"{name} {value}"
            for place, (value, name) in enumerate(first.items())
        },
        ignore=[0],
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


_PARSERS: dict[str, Callable[[str], LabelScheme]] = {
    "labelmap.txt": parse_labelmap,
    "class_dict.csv": _table,
    "_classes.csv": _table,
    "label_colors.txt": _colours,
    "id2label.json": _id2label,
    "objectInfo150.txt": _ade,
    "labels.txt": _names,
    "classes.txt": _names,
    "codes.txt": _names,
}
