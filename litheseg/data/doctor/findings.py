"""What the doctor can find: codes, how grave each is, and what helps.

Usage:
    >>> make_finding("no-val", "there is no split 'val'", ["val"]).severity
    'warning'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["KNOWN", "Finding", "Severity", "in_order", "make_finding"]

Severity = Literal["error", "warning", "info"]

# Severity and remedy by code; findings are listed in this order.
KNOWN: dict[str, tuple[Severity, str]] = {
    "other-format": ("error", "import them, then run the doctor on the new folder"),
    "cannot-open": ("error", "mend what the message names, then run the doctor again"),
    "missing-split": ("error", "add the split's folder or list, or hold out a part of train"),
    "empty-split": ("error", "add images and masks to the split, or remove it"),
    "unusable-split": ("error", "mend what the message names, then run the doctor again"),
    "unpaired-image": (
        "error",
        "add the masks, remove the images, or set allow_unlabelled=True to use them unlabelled",
    ),
    "unpaired-mask": ("error", "add the images or remove the masks; stems must be equal"),
    "same-stem": ("error", "keep one of each, or rename the others: files are distinguished by their stems"),
    "missing-file": ("error", "restore the files or remove the lines; paths are relative to the data folder"),
    "too-large": ("error", "make them smaller, cut them into tiles, or allow more: --max-pixels, --data.max_pixels"),
    "unreadable-image": ("error", "copy or download the files again, or remove them with their masks"),
    "mixed-images": ("error", "convert them, or move them to a data set of their own: all images must be of one kind"),
    "unreadable-mask": ("error", "export the masks again as index PNG, or remove them with their images"),
    "size-mismatch": ("error", "export each mask at its image's size; never resize one alone"),
    "rgb-mask": ("error", "set 'encoding: rgb' and each class's 'color' in classes.yaml, or export index masks"),
    "index-mask": ("error", "set 'encoding: index' in classes.yaml, or export colour masks"),
    "unknown-label": ("error", "name the values under 'classes' (id), 'remap' or 'ignore' in classes.yaml"),
    "off-by-one": ("error", "labels seem to count from 1: give the classes 'id: 1', 'id: 2', ... in classes.yaml"),
    "zero-255": (
        "error",
        "255 is ignored unless a class has it: 'classes: [{name: A, id: 0}, {name: B, id: 255}]' in classes.yaml",
    ),
    "one-class": ("error", "label a second class, or name the values of the others in classes.yaml ('id', 'remap')"),
    "nothing-labelled": ("error", "check 'ignore' and 'remap' in classes.yaml: every pixel is ignored"),
    "no-val": ("warning", "hold out a part of train: without val, learning and memorising look the same"),
    "maybe-off-by-one": (
        "warning",
        "compare an overlay with the class list; if labels count from 1, give each class its id",
    ),
    "all-ignored": ("warning", "label these images, or leave them out: nothing can be learned from them"),
    "mostly-ignored": ("warning", "check 'ignore' and 'remap' in classes.yaml, or label more"),
    "absent-class": ("warning", "label some, merge the class into another, or take it out of the list"),
    "absent-in-split": ("warning", "divide the splits anew, so that each class is in all of them"),
    "rare-class": ("warning", "weight the loss by class, label more, or merge the class into another"),
    "dark-image": (
        "warning",
        "if a camera of 10 to 14 bits wrote them, save its values as they are, with 16 bits, in training and wherever "
        "the network runs",
    ),
    "transparent": (
        "warning",
        "transparent parts become black; if the fourth channel is depth or infrared, save all four as .npy, or as TIFF "
        "that does not call it alpha",
    ),
    "few-images": ("warning", "label more images with them, or merge them into others ('remap' in classes.yaml)"),
    "small-objects": (
        "warning",
        "train at the images' own size, or larger (--data.size), with crops; or merge the classes into others",
    ),
    "duplicate": ("warning", "keep one of each: copies count twice"),
    "leak": ("warning", "keep each image in one split: otherwise scores measure memory"),
    "near-leak": (
        "warning",
        "keep frames of one scene in one split; where val is held out of train: --data.options '{hold_out: groups}'",
    ),
    "shared-sequence": (
        "warning",
        "hold out the end of each sequence, or whole ones: --data.options '{hold_out: last}', '{hold_out: sequences}'",
    ),
    "small-image": ("warning", "train with a smaller crop, or leave these images out: borders will be padded"),
    "near-duplicate": (
        "info",
        "they teach less than their number; where val is held out of train, keep groups together: --data.options "
        "'{hold_out: groups}'",
    ),
    "mixed-sizes": ("info", "nothing to do: set 'size' if all should be resized to one"),
    "not-rgb": ("info", "nothing to do: the network gets an input for each channel, and numbers of this type"),
    "unlabelled": ("info", "nothing to do: they serve as unlabelled images"),
}


@dataclass(frozen=True)
class Finding:
    """One kind of trouble.

    Attributes:
        code: its name, stable across versions, e.g. "size-mismatch".
        severity: "error" (training cannot go on), "warning" or "info".
        message: what was found, with the values.
        files: the files, or what else is concerned (splits, classes).
        count: number of files.
        remedy: how to mend it.
    """

    code: str
    severity: Severity
    message: str
    files: tuple[str, ...]
    count: int
    remedy: str


def make_finding(code: str, message: str, files: Sequence[str]) -> Finding:
    """A finding of a code, which is a key of `KNOWN`."""
    severity, remedy = KNOWN[code]
    return Finding(code, severity, message, tuple(files), len(files), remedy)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first."""
    codes = list(KNOWN)
    return tuple(sorted(findings, key=lambda item: codes.index(item.code)))
