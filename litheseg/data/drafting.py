"""A first `classes.yaml`, for masks whose values nobody has written down.

Masks tell which values there are and how much each covers, never what they mean: the draft has a class for each value,
to be given a name by who knows it.

Usage:
    >>> draft_classes("data/leaves")
    PosixPath('data/leaves/classes.yaml')
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from litheseg.data.folder import FolderSource
from litheseg.errors import DataError
from litheseg.files import write_text
from litheseg.masks.classes import CLASS_FILES, IGNORE_INDEX, UNKNOWN_INDEX, show_value
from litheseg.masks.reading import MAX_PIXELS, mask_numbers, read_raw_mask

__all__ = ["draft_classes"]

_SHOWN = 6


def draft_classes(data: str | Path, *, max_pixels: int = MAX_PIXELS, progress: bool = False) -> Path:
    """Write a `classes.yaml` that has a class for each value in the masks of a folder, and its share as a comment.

    255 beside two values or more is ignored, as most tools mean it.

    Args:
        data: a folder in one of the layouts of `litheseg.data.folder`.
        max_pixels: of a mask, width times height by its header.
        progress: show a progress bar on standard error.

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
    steps = track(masks, "Reading masks", transient=True, console=Console(stderr=True), disable=not progress)
    found = [_values(path, max_pixels) for path in steps]
    encoding = "rgb" if any(mask.colours for mask in found) else "index"
    pixels, images = Counter[int](), Counter[int]()
    for path, mask in zip(masks, found, strict=True):
        if encoding == "rgb" and not mask.channels:
            raise DataError(f"{path} holds indices where other masks hold colours; export all in one way")
        # A grey mask of three channels among colours: #070707 is what reads as index 7.
        factor = 0x010101 if encoding == "rgb" and not mask.colours else 1
        pixels.update({value * factor: count for value, count in mask.pixels.items()})
        images.update(value * factor for value in mask.pixels)
    if len(pixels) > UNKNOWN_INDEX:
        shown = ", ".join(show_value(value, encoding) for value, _ in pixels.most_common(_SHOWN))
        raise DataError(
            f"the masks of {folder} hold {len(pixels)} different values ({shown}, ...), and at most "
            f"{UNKNOWN_INDEX} classes are possible; were they smoothed or resized with interpolation? Export them again"
        )
    write_text(folder / CLASS_FILES[0], _text(encoding, pixels, images, len(masks)))
    return folder / CLASS_FILES[0]


@dataclass(frozen=True)
class _MaskValues:
    """Pixels by value; whether the file has three channels, and whether these differ."""

    pixels: dict[int, int]
    channels: bool
    colours: bool


def _values(path: Path, max_pixels: int) -> _MaskValues:
    mask = read_raw_mask(path, max_pixels=max_pixels)
    numbers = mask_numbers(mask, "index")
    colours = numbers is None
    if numbers is None:
        numbers = mask_numbers(mask, "rgb")
        assert numbers is not None
    values, counts = np.unique(numbers, return_counts=True)
    return _MaskValues(dict(zip(values.tolist(), counts.tolist(), strict=True)), mask.ndim == 3, colours)


def _text(encoding: str, pixels: Counter[int], images: Counter[int], masks: int) -> str:
    """The class file, with what each value covers as a comment."""
    total = pixels.total()
    about = {value: f"{pixels[value] / total:.2%} of the pixels, in {images[value]} of {masks}" for value in pixels}
    ignored = encoding == "index" and IGNORE_INDEX in pixels and len(pixels) > 2
    lines = [f"# Drafted from {masks} masks: give the classes names of your own.", f"encoding: {encoding}", "classes:"]
    for value in sorted(pixels):
        if ignored and value == IGNORE_INDEX:
            continue
        shown = show_value(value, encoding)
        spelled = (
            f'name: "class {shown}", color: "{shown}"' if encoding == "rgb" else f"name: class {value}, id: {value}"
        )
        lines.append(f"  - {{{spelled}}}  # {about[value]}")
    if ignored:
        lines.append(
            f"ignore: [{IGNORE_INDEX}]  # {about[IGNORE_INDEX]}; if it is a class, list it above with 'id: 255'"
        )
    return "\n".join(lines) + "\n"
