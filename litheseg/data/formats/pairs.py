"""Images and masks as files, whose names may differ by what stands before and behind a common part.

`img_001.jpg` and `mask_001.png`, `001_rgb.png` and `001_label.png`, `photos/a.jpg` and `truth/a_gt.png`: folders and
affixes are not known beforehand; those are taken that pair the most files. Which of the two are masks is seen in the
files: they have few different values, and are no JPEGs. A class list of another tool (`class_lists`) says what the
values mean; without one each value becomes a class that is called by it.

Usage:
    >>> detect(Path("data/leaves"))
    'photos/*.jpg with truth/*_gt.png, 60 pairs'
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from litheseg.data.formats.collection import Annotated, Collection, ImportOptions, Tally
from litheseg.data.formats.files import matches, split_of_part
from litheseg.data.formats.mask_files import labelled_by, scheme_of_masks
from litheseg.data.sources.base import IMAGE_SUFFIXES
from litheseg.errors import DataError
from litheseg.masks.opening import open_image

__all__ = ["detect", "read"]

_TOKEN = re.compile(r"[A-Za-z]+|\d+|[^A-Za-z0-9]+")
_BETWEEN = "_-. "  # what words of a name are joined with
_LONGEST = 3  # words that may stand before or behind the common part
_PATTERNS, _ROLES = 12, 8  # of each that are tried, the most frequent ones
_COUNTED, _PROBED = 500, 25  # files that are enough to see affixes by, and to see that two sides share nothing
_OPENED = 5  # files that are looked into
_SHARE = 0.5  # of the fewer files, images or masks, that must have found a partner
_SEEN = 256  # pixels along an edge that are looked at


@dataclass(frozen=True)
class _File:
    """A file: its split, the folders (with "*" for the split), the stem, and the path."""

    split: str
    folders: tuple[str, ...]
    stem: str
    path: Path


@dataclass(frozen=True)
class _Side:
    """Which files are the images, or the masks: a folder's name at a depth, or an ending, and affixes of the stem."""

    depth: int  # of the folder; -1 for none
    name: str  # of the folder, or the ending
    before: str = ""
    behind: str = ""


_Key = tuple[str, tuple[str, ...], str]  # split, other folders, common part of the names


@dataclass(frozen=True)
class _Found:
    images: _Side
    masks: _Side
    image_files: Mapping[_Key, Path]
    mask_files: Mapping[_Key, Path]


def detect(source: Path) -> str:
    """Which names pair; "" if few do."""
    every = _find(source, "") if source.is_dir() else []
    if not every:
        return ""
    found = every[0]
    count = len(found.image_files.keys() & found.mask_files.keys())
    return f"{_shown(found.images, found.image_files)} with {_shown(found.masks, found.mask_files)}, {count} pairs"


def read(source: Path, options: ImportOptions) -> Collection:
    """The pairs.

    Raises:
        DataError: two kinds of masks for the same images, or masks that hold too many values.
    """
    every = _find(source, options.labels)
    if not every:
        raise DataError(f"{source}: no names of images and masks that pair")
    if len(every) > 1:
        one, other = (next(iter(found.mask_files.values())) for found in every[:2])
        raise DataError(
            f"{source}: images pair with masks such as {one} and with masks such as {other}; say which are meant, e.g. "
            f"--labels '{one.relative_to(source).parent.as_posix()}/*{one.suffix}'"
        )
    found = every[0]
    tally = Tally()
    for key in found.image_files.keys() - found.mask_files.keys():
        tally.add("images without a mask left out", found.image_files[key])
    keys = sorted(found.image_files.keys() & found.mask_files.keys())
    scheme, notes = scheme_of_masks(source, [found.mask_files[key] for key in keys], options.max_pixels)
    items = tuple(
        Annotated(
            _id(folders, stem),
            split or "train",
            found.image_files[split, folders, stem],
            labelled_by(scheme, found.mask_files[split, folders, stem], options.max_pixels),
            found.mask_files[split, folders, stem],
        )
        for split, folders, stem in keys
    )
    lone = tuple(str(found.mask_files[key]) for key in sorted(found.mask_files.keys() - found.image_files.keys()))
    missing = tuple(f"the image of {path}" for path in lone)
    return Collection(scheme.classes, items, complete=True, missing=missing, notes=(*tally.notes(), *notes))


def _id(folders: Sequence[str], stem: str) -> str:
    """Folders that say more than the split, and what images and masks have in common."""
    parts = [part.replace("*", "").strip(_BETWEEN) for part in (*folders, stem)]
    return "/".join(part for part in parts if part)


def _find(source: Path, pattern: str) -> list[_Found]:
    """The pairing that explains most files; several if there is more than one kind of masks."""
    files = _files(source)
    if len(files) < 2:
        return []
    return _best(files, {file.path for file in files if not pattern or matches(file.path, source, pattern)})


def _files(source: Path) -> list[_File]:
    files = []
    for place, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = [split_of_part(part) for part in Path(place).relative_to(source).parts]
        split = next((split for split, _ in reversed(parts) if split), "")
        generic = tuple(part for _, part in parts)
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                files.append(_File(split, generic, path.stem, path))
    return files


def _best(files: Sequence[_File], masks: set[Path]) -> list[_Found]:
    """The pairings of the most files; several only if they differ in their masks."""
    roles = _roles(files)
    keys = {
        role: {side: _keys(group, side) for side in (_Side(*role, *pair) for pair in _affixes(group))}
        for role, group in roles.items()
    }
    counts: dict[tuple[_Side, _Side], int] = {}
    for one, other in itertools.combinations_with_replacement(roles, 2):
        if one[0] == other[0]:
            counts |= _shared(keys[one], keys[other])
    ranked = sorted(counts, key=lambda pair: (-counts[pair], _spelled(pair)))
    chosen: list[_Found] = []
    for one_side, other_side in ranked[:_PATTERNS]:
        if chosen and counts[one_side, other_side] < len(chosen[0].image_files.keys() & chosen[0].mask_files.keys()):
            break
        own = [keys[side.depth, side.name][side] for side in (one_side, other_side)]
        found = _judged((one_side, other_side), own, masks)
        if found and not any(_same(found, before) for before in chosen):
            chosen.append(found)
    return chosen


def _roles(files: Sequence[_File]) -> dict[tuple[int, str], list[_File]]:
    """Files by a folder's name at a depth, and by their ending (depth -1); the most frequent ones."""
    roles = defaultdict[tuple[int, str], list[_File]](list)
    for file in files:
        roles[-1, ""].append(file)
        roles[-1, file.path.suffix.lower()].append(file)
        for depth, name in enumerate(file.folders):
            roles[depth, name].append(file)
    kept = dict[tuple[int, str], list[_File]]()
    for depth in {depth for depth, _ in roles}:
        here = sorted((key for key in roles if key[0] == depth), key=lambda key: (-len(roles[key]), key))[:_ROLES]
        kept |= {key: roles[key] for key in here}
    # An ending that is a folder's files says nothing more.
    by_files = {tuple(file.path for file in group): key for key, group in sorted(kept.items())}
    return {key: kept[key] for key in sorted(by_files.values())}


def _shared(
    one: Mapping[_Side, Mapping[_Key, Path]], other: Mapping[_Side, Mapping[_Key, Path]]
) -> Iterator[tuple[tuple[_Side, _Side], int]]:
    """How many files the sides of two roles share; only the best numbers."""
    most = 1
    pairs = [(min(len(one[a]), len(other[b])), a, b) for a in one for b in other if a != b]
    for size, a, b in sorted(pairs, key=lambda pair: -pair[0]):
        if size < most:
            break
        fewer, more = sorted((one[a].keys(), other[b].keys()), key=len)
        if not any(key in more for key in itertools.islice(fewer, 0, None, max(1, len(fewer) // _PROBED))):
            continue
        count = len(fewer & more)
        if count >= max(most, _SHARE * size):
            most = count
            yield (a, b), count


def _affixes(files: Sequence[_File]) -> list[tuple[str, str]]:
    """What many stems begin and end with."""
    counts: Counter[tuple[str, str]] = Counter()
    for file in files[:: max(1, len(files) // _COUNTED)]:
        words = _TOKEN.findall(file.stem)
        for first in range(min(_LONGEST, len(words) - 1) + 1):
            for last in range(min(_LONGEST, len(words) - first - 1) + 1):
                counts["".join(words[:first]), "".join(words[len(words) - last :])] += 1
    ranked = sorted(counts, key=lambda pair: (-counts[pair], len(pair[0]) + len(pair[1]), pair))
    return [pair for pair in ranked if counts[pair] > 1 or pair == ("", "")][:_PATTERNS]


def _keys(files: Sequence[_File], side: _Side) -> dict[_Key, Path]:
    """The files of a side by what they share with the other one."""
    found: dict[_Key, Path] = {}
    for file in files:
        stem = file.stem
        if len(stem) > len(side.before) + len(side.behind) and stem.startswith(side.before):
            if stem.endswith(side.behind):
                rest = tuple(part for depth, part in enumerate(file.folders) if depth != side.depth)
                found.setdefault((file.split, rest, stem[len(side.before) : len(stem) - len(side.behind)]), file.path)
    return found


def _spelled(pair: tuple[_Side, _Side]) -> tuple[int, int]:
    """Prefer few affixes, and roles that are folders or endings."""
    return sum(len(side.before) + len(side.behind) for side in pair), sum(not side.name for side in pair)


def _judged(sides: tuple[_Side, _Side], files: Sequence[Mapping[_Key, Path]], allowed: set[Path]) -> _Found | None:
    """Which of two sides are the masks, by what is in their files."""
    both = sorted(key for key in files[0].keys() & files[1].keys() if files[0][key] != files[1][key])
    if not both:
        return None
    chosen = both[:: -(-len(both) // _OPENED)]
    values = [median(_different_values(found[key]) for key in chosen) for found in files]
    if values[0] == values[1]:
        return None
    images, masks = (0, 1) if values[1] < values[0] else (1, 0)
    if values[masks] > 254 or not allowed.issuperset(files[masks][key] for key in both):
        return None
    # Of one role without affixes: what is a mask is no image.
    taken = {files[masks][key] for key in both}
    own = {key: path for key, path in files[images].items() if path not in taken}
    pictures = {files[images][key] for key in both}
    theirs = {key: path for key, path in files[masks].items() if path not in pictures}
    return _Found(sides[images], sides[masks], own, theirs)


@lru_cache(maxsize=1024)
def _different_values(path: Path) -> int:
    """How many values or colours a part of a picture has; one that cannot be read has very many."""
    try:
        with open_image(path) as image:
            left, top = max(0, (image.width - _SEEN) // 2), max(0, (image.height - _SEEN) // 2)
            part = np.asarray(image.crop((left, top, left + _SEEN, top + _SEEN)))
    except (DataError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 1 << 24
    if part.ndim == 3:
        part = part[..., :3].astype(np.int32) @ np.array([1, 1 << 8, 1 << 16][: part.shape[2]], np.int32)
    return len(np.unique(part))


def _same(one: _Found, other: _Found) -> bool:
    """Whether two pairings join the same masks with images, however their affixes are cut."""
    return set(one.mask_files.values()) == set(other.mask_files.values())


def _shown(side: _Side, files: Mapping[_Key, Path]) -> str:
    folder = f"{side.name}/" if side.depth >= 0 else ""
    return f"{folder}{side.before}*{side.behind}{next(iter(files.values())).suffix}"
