"""A first `classes.yaml`, for masks whose values nobody has written down.

Masks tell which values there are and how much each covers, never what they mean: the draft has a class for each value,
to be given a name by who knows it.

Usage:
    >>> draft_classes("data/leaves")
    PosixPath('data/leaves/classes.yaml')
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litheseg.data.formats.files import StoredFile, opened
from litheseg.data.sources.folder import FolderSource
from litheseg.errors import DataError
from litheseg.files import write_text
from litheseg.masks.classes import CLASS_FILES, IGNORE_INDEX, UNKNOWN_INDEX, Classes, LabelScheme, show_value
from litheseg.masks.opening import MAX_PIXELS
from litheseg.masks.reading import mask_numbers, read_raw_mask
from litheseg.progress import track

__all__ = ["MaskTally", "count_values", "draft_classes"]

_SHOWN = 6
_MOST_VALUES = 1 << 16  # beyond these, counting goes on for nothing


def draft_classes(data: str | Path, *, max_pixels: int = MAX_PIXELS) -> Path:
    """Write a `classes.yaml` that has a class for each value in the masks of a folder, and its share as a comment.

    255 beside two values or more is ignored, as most tools mean it.

    Args:
        data: a folder in one of the layouts of `litheseg.data.sources.folder`.
        max_pixels: of a mask, width times height by its header.

    Returns:
        The file.

    Raises:
        DataError: there is a class file, there are no masks, they hold more values than classes are possible, or some
            hold indices and others colours.
    """
    folder = Path(data).expanduser()
    for name in CLASS_FILES:
        if (folder / name).exists():
            raise DataError(f"{folder / name} is there already; edit it, or move it away to have a new one drafted")
    source = FolderSource(folder, allow_unlabelled=True, val_fraction=0)
    masks = [sample.mask for split in source.splits() for sample in source.samples(split) if sample.mask]
    if not masks:
        raise DataError(f"{folder} has no masks; a draft of the classes needs some")
    values = count_values(track(masks, "reading masks"), max_pixels=max_pixels)
    write_text(folder / CLASS_FILES[0], _text(values))
    return folder / CLASS_FILES[0]


@dataclass(frozen=True)
class MaskTally:
    """What values masks hold.

    Attributes:
        encoding: "index" or "rgb".
        pixels: by value; a colour is the number 0xRRGGBB.
        images: masks by value.
        masks: how many there are.
    """

    encoding: str
    pixels: Counter[int]
    images: Counter[int]
    masks: int

    @property
    def ignored(self) -> tuple[int, ...]:
        """255 beside two values or more."""
        alone = self.encoding != "index" or len(self.pixels) < 3
        return () if alone or IGNORE_INDEX not in self.pixels else (IGNORE_INDEX,)

    @property
    def values(self) -> tuple[int, ...]:
        """The values that are classes, sorted."""
        return tuple(sorted(self.pixels.keys() - set(self.ignored)))

    def name(self, value: int) -> str:
        """A class name for a value that nobody gave a name."""
        return f"class {show_value(value, self.encoding)}"

    def about(self, value: int) -> str:
        """What a value covers."""
        share = self.pixels[value] / self.pixels.total()
        return f"{share:.2%} of the pixels, in {self.images[value]} of {self.masks}"

    def scheme(self) -> LabelScheme:
        """A class for each value."""
        names = [self.name(value) for value in self.values]
        if self.encoding == "rgb":
            colors = tuple((value >> 16, value >> 8 & 255, value & 255) for value in self.values)
            return LabelScheme.build(Classes(tuple(names), colors), encoding="rgb")
        return LabelScheme.build(Classes.from_names(names), ids=self.values, ignore=self.ignored)


def count_values(masks: Iterable[StoredFile], *, max_pixels: int = MAX_PIXELS) -> MaskTally:
    """Count the values in masks.

    Args:
        masks: the files.
        max_pixels: of a mask, width times height by its header.

    Raises:
        DataError: a mask that cannot be read, more values than classes are possible, or indices beside colours.
    """
    pixels, images = {"index": Counter[int](), "rgb": Counter[int]()}, {"index": Counter[int](), "rgb": Counter[int]()}
    flat = coloured = None  # the first mask of one channel, and of colours
    count = 0
    for mask in map(opened, masks):
        found = _values(read_raw_mask(mask, max_pixels=max_pixels))
        count += 1
        coloured = coloured or (mask if found.colours else None)
        flat = flat or (None if found.channels else mask)
        if flat and coloured:
            raise DataError(f"{flat} holds indices where other masks hold colours; export all in one way")
        # A grey mask of three channels may turn out to be among colours: #070707 is what reads as index 7 elsewhere.
        for encoding, factor in (("index", 1), ("rgb", 0x010101)):
            own = 1 if found.colours else factor
            pixels[encoding].update({value * own: number for value, number in found.pixels.items()})
            images[encoding].update(value * own for value in found.pixels)
        if len(pixels["index"]) > _MOST_VALUES:
            break
    encoding = "rgb" if coloured else "index"
    if len(pixels[encoding]) > UNKNOWN_INDEX:
        shown = ", ".join(show_value(value, encoding) for value, _ in pixels[encoding].most_common(_SHOWN))
        raise DataError(
            f"the masks hold {len(pixels[encoding])} different values or more ({shown}, ...), and at most "
            f"{UNKNOWN_INDEX} classes are possible; were they smoothed or resized with interpolation? Export them again"
        )
    return MaskTally(encoding, pixels[encoding], images[encoding], count)


@dataclass(frozen=True)
class _MaskValues:
    """Pixels by value; whether the file has three channels, and whether these differ."""

    pixels: dict[int, int]
    channels: bool
    colours: bool


def _values(mask: np.ndarray) -> _MaskValues:
    numbers = mask_numbers(mask, "index")
    colours = numbers is None
    if numbers is None:
        numbers = mask_numbers(mask, "rgb")
        assert numbers is not None
    values, counts = np.unique(numbers, return_counts=True)
    return _MaskValues(dict(zip(values.tolist(), counts.tolist(), strict=True)), mask.ndim == 3, colours)


def _text(tally: MaskTally) -> str:
    """The class file, with what each value covers as a comment."""
    lines = [
        f"# Drafted from {tally.masks} masks: give the classes names of your own.",
        f"encoding: {tally.encoding}",
        "classes:",
    ]
    for value in tally.values:
        name = tally.name(value)
        spelled = f'name: "{name}", color: "{name[6:]}"' if tally.encoding == "rgb" else f"name: {name}, id: {value}"
        lines.append(f"  - {{{spelled}}}  # {tally.about(value)}")
    for value in tally.ignored:
        lines.append(f"ignore: [{value}]  # {tally.about(value)}; if it is a class, list it above with 'id: {value}'")
    return "\n".join(lines) + "\n"
