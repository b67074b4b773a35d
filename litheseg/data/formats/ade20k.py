"""The full ADE20K, of about 3,000 classes (Zhou et al., "Semantic understanding of scenes through ADE20K", IJCV 2019).

Beside each `NAME.jpg` lies `NAME_seg.png`, whose red and green say the class of a pixel, red / 10 * 256 + green (0 is
none), and whose blue tells objects apart; parts of objects lie in further files and are not read. What a class is
called says `index_ade20k.mat` (its field `objectnames`, counted from 1), or, in the edition of 2021, `NAME.json` of
each image (`name` and `name_ndx` of its objects). The index of that edition is a pickle, which may hold code, and is
not read.

Masks hold at most 254 classes, so those to keep are asked for: the most frequent ones, by their pixels in the training
images, or those that are named. All other pixels are ignored.

Usage:
    >>> import_dataset("data/ADE20K_2021_17_01", "data/ade", most_frequent=150)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.data.formats.collection import Annotated, Collection, ImportOptions, Tally
from litheseg.data.formats.files import read_json
from litheseg.errors import DataError, did_you_mean, listed
from litheseg.machine import cores
from litheseg.masks.classes import IGNORE_INDEX, Classes
from litheseg.masks.reading import read_image
from litheseg.progress import track

__all__ = ["detect", "read"]

_INDEX = "index_ade20k.mat"
_SEG = "_seg.png"
_MOST = 254  # classes of a mask
_VALUES = 26 * 256  # that a pixel may have


def detect(source: Path) -> str:
    """An index, or a description of objects beside an image and its classes."""
    if not source.is_dir():
        return ""
    if found := next((name for name in (_INDEX, "index_ade20k.pkl") if (source / name).is_file()), ""):
        return found
    mask = next((path for path in source.rglob(f"*{_SEG}") if _image_of(path).is_file()), None)
    if mask is None or not (described := _described_by(mask)).is_file():
        return ""
    with suppress(DataError, OSError):
        return described.name if "name_ndx" in described.read_text(encoding="latin-1") else ""
    return ""


def read(source: Path, options: ImportOptions) -> Collection:
    """Both splits, with the classes that are asked for.

    Raises:
        DataError: more classes than a mask can hold, an unknown name, or files that cannot be read.
    """
    masks = sorted(path for path in source.rglob(f"*{_SEG}") if not path.name.startswith("."))
    tally, missing = Tally(), [f"the image of {mask}" for mask in masks if not _image_of(mask).is_file()]
    masks = [mask for mask in masks if _image_of(mask).is_file()]
    train = [mask for mask in masks if _split(mask, source) == "train"]
    pixels = _count(train or masks, options.max_pixels)
    names = _names(source, masks, pixels)
    kept = _kept(pixels, names, options)
    table = np.full(_VALUES, IGNORE_INDEX, np.uint8)
    table[kept] = np.arange(len(kept))
    items = [
        Annotated(
            _image_of(mask).stem,
            _split(mask, source),
            _image_of(mask),
            partial(_labels, mask, table, options.max_pixels),
            mask,
        )
        for mask in masks
    ]
    total, share = sum(pixels.values()), sum(pixels[value] for value in kept)
    if left := len(pixels) - len(kept):
        tally.add(
            "classes left out", f"{100 * (1 - share / total):.1f} % of the labelled pixels, which are ignored", left
        )
    return Collection(
        Classes.from_names(names[value] for value in kept), tuple(items), True, tuple(missing), tally.notes()
    )


def _kept(pixels: Counter[int], names: Mapping[int, str], options: ImportOptions) -> list[int]:
    """The values of the classes to keep, the most frequent first."""
    ranked = [value for value, _ in pixels.most_common()]
    if options.classes:
        known = {names[value]: value for value in ranked}
        for name in options.classes:
            if name not in known:
                raise DataError(f"no training image holds a class '{name}'.{did_you_mean(name, known)}")
        return [known[name] for name in options.classes]
    if options.most_frequent is not None:
        ranked = ranked[: options.most_frequent]
    if len(ranked) > _MOST:
        raise DataError(
            f"{len(ranked)} classes, and masks hold {_MOST} at most: keep the most frequent ones, as with "
            f"--most-frequent 150, or name some: --classes '{','.join(names[value] for value in ranked[:3])}'"
        )
    return ranked


def _image_of(mask: Path) -> Path:
    return mask.with_name(f"{mask.name.removesuffix(_SEG)}.jpg")


def _described_by(mask: Path) -> Path:
    return mask.with_name(f"{mask.name.removesuffix(_SEG)}.json")


def _split(mask: Path, source: Path) -> str:
    """By the folder, or by the name: ADE_train_00000001, ADE_val_00000001."""
    folders = mask.relative_to(source).parts[:-1]
    if "validation" in folders or mask.name.startswith("ADE_val"):
        return "val"
    return "test" if "test" in folders else "train"


def _values(mask: Path, max_pixels: int) -> np.ndarray:
    """Class of each pixel, int32 H W; 0 for none."""
    colours = read_image(mask, max_pixels=max_pixels)
    return colours[..., 0].astype(np.int32) // 10 * 256 + colours[..., 1]


def _labels(mask: Path, table: np.ndarray, max_pixels: int, _size: tuple[int, int]) -> np.ndarray:
    labels: np.ndarray = table[_values(mask, max_pixels)]
    return labels


def _count(masks: Sequence[Path], max_pixels: int) -> Counter[int]:
    """Pixels by class."""

    def counted(mask: Path) -> np.ndarray:
        return np.bincount(_values(mask, max_pixels).ravel(), minlength=_VALUES)

    total = np.zeros(_VALUES, np.int64)
    with ThreadPoolExecutor(cores()) as pool:
        for counts in track(pool.map(counted, masks), "counting classes, images", len(masks)):
            total += counts
    return Counter({int(value): int(total[value]) for value in np.flatnonzero(total) if value})


def _names(source: Path, masks: Iterable[Path], values: Iterable[int]) -> dict[int, str]:
    """What classes are called; of several words the first, where no other class has it."""
    full = _indexed(source / _INDEX) if (source / _INDEX).is_file() else _described(masks)
    unknown = [value for value in values if value not in full]
    if unknown:
        raise DataError(
            f"{source}: what is the class {listed(unknown)} called? Restore {_INDEX} or the .json files of the images"
        )
    first = {value: full[value].split(",")[0].strip() for value in values}
    often, whole = Counter(first.values()), Counter(full[value] for value in first)
    return {
        value: name if often[name] == 1 else full[value] if whole[full[value]] == 1 else f"{name} {value}"
        for value, name in first.items()
    }


def _indexed(file: Path) -> dict[int, str]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: Any = loadmat(file, squeeze_me=True, simplify_cells=True)["index"]
        return {number: str(name) for number, name in enumerate(content["objectnames"], 1)}
    except (MatReadError, OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DataError(f"{file}: no index of ADE20K ({error!r}); unpack it again") from error


def _described(masks: Iterable[Path]) -> dict[int, str]:
    """From the descriptions of all images."""
    found: dict[int, str] = {}
    for mask in masks:
        file = _described_by(mask)
        if file.is_file():
            try:
                entries = read_json(file)["annotation"]["object"]
                found |= {int(entry["name_ndx"]): str(entry["name"]) for entry in entries}
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file}: no description of an image of ADE20K ({error!r}); unpack it again") from error
    return found
