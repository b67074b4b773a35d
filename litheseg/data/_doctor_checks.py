"""From measurements to findings: what each kind of trouble means, how grave it is, and the remedy.

It opens no file: see `_doctor_exam`.

Usage:
    >>> findings = in_order(file_findings({"train": exams}))
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from litheseg.data._doctor_exam import Exam
from litheseg.masks.classes import IGNORE_INDEX, LabelScheme

__all__ = [
    "Finding",
    "Severity",
    "class_findings",
    "file_findings",
    "finding",
    "histogram",
    "ignore_findings",
    "in_order",
    "label_findings",
    "likeness_findings",
    "size_findings",
    "split_findings",
    "total",
]

Severity = Literal["error", "warning", "info"]
Exams = Mapping[str, Sequence[Exam]]
_Key = TypeVar("_Key", bound=Hashable)

_ALIKE_BITS = 8  # of 64; re-encoded copies differ in 0 to 3, CamVid frames a second apart mostly in more than 8
_ALIKE_LEVELS = 6.0  # mean grey levels between thumbnails of equal mean; CamVid's train and val differ in 27 and more
_RARE_SHARE = 0.001  # of the labelled pixels
_MOSTLY_IGNORED = 0.5
_CHUNK = 2048  # rows of a comparison of all with all
_SHOWN = 6

# Severity and remedy by code: the whole of what the doctor knows.
_KNOWN: dict[str, tuple[Severity, str]] = {
    "cannot-open": ("error", "mend what the message names, then run the doctor again"),
    "missing-split": ("error", "add the split's folder or list, or hold out a part of train"),
    "no-val": ("warning", "hold out a part of train: without val no result can be told from memorising"),
    "empty-split": ("error", "add images and masks to the split, or remove it"),
    "unusable-split": ("error", "mend what the message names, then run the doctor again"),
    "unpaired-image": (
        "error",
        "add the masks, remove the images, or set allow_unlabelled=True to use them unlabelled",
    ),
    "unpaired-mask": ("error", "add the images or remove the masks; stems must be equal"),
    "same-stem": ("error", "keep one of each, or rename the others: files are told apart by their stems"),
    "missing-file": ("error", "restore the files or remove the lines; paths are relative to the data folder"),
    "too-large": ("error", "make them smaller, cut them into tiles, or allow more: --max-pixels, --data.max_pixels"),
    "unreadable-image": ("error", "copy or download the files again, or remove them with their masks"),
    "unreadable-mask": ("error", "export the masks again as index PNG, or remove them with their images"),
    "size-mismatch": ("error", "export each mask at its image's size; never resize one alone"),
    "rgb-mask": ("error", "set 'encoding: rgb' and each class's 'color' in classes.yaml, or export index masks"),
    "index-mask": ("error", "set 'encoding: index' in classes.yaml, or export colour masks"),
    "unknown-label": ("error", "name the values under 'classes' (id), 'remap' or 'ignore' in classes.yaml"),
    "off-by-one": ("error", "labels seem to count from 1: give the classes 'id: 1', 'id: 2', ... in classes.yaml"),
    "maybe-off-by-one": (
        "warning",
        "compare an overlay with the class list; if labels count from 1, give each class its id",
    ),
    "nothing-labelled": ("error", "check 'ignore' and 'remap' in classes.yaml: every pixel is ignored"),
    "all-ignored": ("warning", "label these images, or leave them out: nothing can be learned from them"),
    "mostly-ignored": ("warning", "check 'ignore' and 'remap' in classes.yaml, or label more"),
    "absent-class": ("warning", "label some, merge the class into another, or take it out of the list"),
    "absent-in-split": ("warning", "divide the splits anew, so that each class is in all of them"),
    "rare-class": ("warning", "weight the loss by class, label more, or merge the class into another"),
    "duplicate": ("warning", "keep one of each: copies count twice"),
    "leak": ("warning", "remove them from train: val would measure memory"),
    "near-leak": ("warning", "keep frames of one scene in one split"),
    "small-image": ("warning", "train with a smaller crop, or leave these images out: borders will be padded"),
    "mixed-sizes": ("info", "nothing to do: set 'size' if all should be resized to one"),
    "unlabelled": ("info", "nothing to do: they serve as unlabelled images"),
}
_ORDER: tuple[Severity, ...] = ("error", "warning", "info")


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


def finding(code: str, message: str, files: Sequence[str]) -> Finding:
    """A finding of a known code."""
    severity, remedy = _KNOWN[code]
    return Finding(code, severity, message, tuple(files), len(files), remedy)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first, then as the table of codes has them."""
    codes = list(_KNOWN)
    return tuple(sorted(findings, key=lambda item: (_ORDER.index(item.severity), codes.index(item.code))))


def total(counts: Iterable[Mapping[_Key, int]]) -> dict[_Key, int]:
    """The sum of counts by key."""
    result: Counter[_Key] = Counter()
    for count in counts:
        result.update(count)
    return dict(result)


def histogram(exams: Iterable[Exam], classes: int) -> NDArray[np.int64]:
    """Pixels by class over all usable masks, int64 [classes]."""
    counts = [exam.histogram for exam in exams if exam.histogram is not None]
    return np.sum(counts, axis=0, dtype=np.int64) if counts else np.zeros(classes, np.int64)


def split_findings(present: Sequence[str], asked: Sequence[str] | None) -> Iterator[Finding]:
    """Splits that training needs and that are not there."""
    if asked is None and "train" not in present:
        yield finding("missing-split", "there is no split 'train'", ["train"])
    if asked is None and "val" not in present:
        yield finding("no-val", "there is no split 'val'", ["val"])


def file_findings(exams: Exams) -> Iterator[Finding]:
    """Troubles of single files, one finding a kind; and images without masks where these are allowed."""
    found = defaultdict(list)
    for exam in _all(exams):
        for trouble in exam.trouble:
            found[trouble.code].append(trouble)
    what = {
        "too-large": "files of too many pixels",
        "unreadable-image": "images that cannot be read",
        "unreadable-mask": "masks that cannot be read",
        "size-mismatch": "masks that are not as large as their images",
        "rgb-mask": "masks that hold colours where class indices are expected",
        "index-mask": "masks that hold indices where colours are expected",
        "unknown-label": "masks with values outside the class list",
    }
    for code, troubles in found.items():
        example = f": {troubles[0].detail}" if troubles[0].detail else ""
        yield finding(code, f"{what[code]}{example}", [trouble.file for trouble in troubles])
    unlabelled = [exam.file for exam in _all(exams) if exam.sample.mask is None and exam.sample.image is not None]
    if unlabelled:
        yield finding("unlabelled", "images without a mask", unlabelled)


def label_findings(exams: Exams, scheme: LabelScheme) -> Iterator[Finding]:
    """Labels that seem to count from 1 where the class list counts from 0."""
    classes = len(scheme.classes)
    own = [value for value, train_id in scheme.values if train_id != IGNORE_INDEX]
    if scheme.encoding != "index" or classes < 2 or own != list(range(classes)):
        return
    labelled = [exam for exam in _all(exams) if exam.values]
    values = total(exam.values for exam in labelled)
    if 0 in values or classes not in values or any(classes < value < IGNORE_INDEX for value in values):
        return
    held = [str(exam.sample.mask or exam.file) for exam in labelled if classes in exam.values]
    ignored = any(value == classes for value, _ in scheme.values)
    shown = f"masks hold 1 to {classes} and never 0, while the {classes} classes are 0 to {classes - 1}"
    yield finding(
        "maybe-off-by-one" if ignored else "off-by-one", shown + (f"; {classes} is ignored" if ignored else ""), held
    )


def ignore_findings(exams: Exams) -> Iterator[Finding]:
    """Images, and splits, of which too little is labelled."""
    for split, found in exams.items():
        usable = [exam for exam in found if exam.histogram is not None and len(exam.histogram)]
        labelled, ignored = sum(_pixels(exam) for exam in usable), sum(exam.ignored for exam in usable)
        if not ignored:
            continue
        if not labelled:
            yield finding("nothing-labelled", f"every pixel of '{split}' is ignored", [exam.file for exam in usable])
            continue
        share = ignored / (ignored + labelled)
        if share > _MOSTLY_IGNORED:
            yield finding("mostly-ignored", f"{share:.0%} of the pixels of '{split}' are ignored", [split])
        empty = [exam.file for exam in usable if exam.ignored and not _pixels(exam)]
        if empty:
            yield finding("all-ignored", f"images of '{split}' in which every pixel is ignored", empty)


def class_findings(exams: Exams, names: Sequence[str], *, limited: bool) -> Iterator[Finding]:
    """Classes that are absent or very rare; `limited` says that not all samples were looked at."""
    splits = {split: histogram(found, len(names)) for split, found in exams.items()}
    splits = {split: counts for split, counts in splits.items() if counts.sum()}
    if not splits:
        return
    note = " among the samples looked at" if limited else ""
    everywhere = np.sum(list(splits.values()), axis=0)
    absent = [names[k] for k in np.flatnonzero(everywhere == 0).tolist()]
    if absent:
        yield finding("absent-class", f"classes that no mask holds{note}: {', '.join(absent)}", absent)
    for split, counts in splits.items():
        missing = [names[k] for k in np.flatnonzero((counts == 0) & (everywhere > 0)).tolist()]
        if missing:
            yield finding("absent-in-split", f"classes that '{split}' lacks{note}: {', '.join(missing)}", missing)
    first = "train" if "train" in splits else next(iter(splits))
    share = splits[first] / splits[first].sum()
    rare = np.flatnonzero((share > 0) & (share < _RARE_SHARE)).tolist()
    if rare:
        shown = ", ".join(f"{names[k]} ({share[k]:.3%} of the pixels)" for k in rare)
        yield finding("rare-class", f"very rare in '{first}': {shown}", [names[k] for k in rare])


def size_findings(exams: Exams, crop: tuple[int, int] | None) -> Iterator[Finding]:
    """Images smaller than the crop; images of different sizes."""
    sizes = total({exam.size: 1} for exam in _all(exams) if exam.size is not None)
    if len(sizes) > 1:
        most = sorted(sizes.items(), key=lambda item: -item[1])[:_SHOWN]
        shown = ", ".join(f"{h}x{w} ({count})" for (h, w), count in most)
        yield finding("mixed-sizes", f"images of {len(sizes)} sizes (HxW): {shown}", [])
    if crop is not None:
        small = [e.file for e in _all(exams) if e.size is not None and (e.size[0] < crop[0] or e.size[1] < crop[1])]
        if small:
            yield finding("small-image", f"images smaller than the crop of {crop[0]}x{crop[1]}", small)


def likeness_findings(exams: Exams) -> Iterator[Finding]:
    """Copies within a split, and images of train that return, exactly or nearly, in another split."""
    for split, found in exams.items():
        groups = defaultdict(list)
        for exam in found:
            if exam.digest:
                groups[exam.digest].append(exam.file)
        copies = [file for group in groups.values() for file in group[1:]]
        if copies:
            yield finding("duplicate", f"images of '{split}' that are exact copies of others", copies)
    train = [exam for exam in exams.get("train", ()) if exam.bits is not None]
    for split in exams:
        if split != "train" and train:
            yield from _leaks(train, [exam for exam in exams[split] if exam.bits is not None], split)


def _leaks(train: Sequence[Exam], other: Sequence[Exam], split: str) -> Iterator[Finding]:
    held = {exam.digest: exam.file for exam in other}
    exact = [exam for exam in train if exam.digest in held]
    if exact:
        shown = f"{exact[0].file} = {held[exact[0].digest]}"
        message = f"images of 'train' that are in '{split}' too, e.g. {shown}"
        yield finding("leak", message, [exam.file for exam in exact])
    near = [(a.file, b.file) for a, b in _alike(train, other) if a.digest != b.digest]
    if near:
        message = f"images of 'train' that nearly equal one of '{split}', e.g. {near[0][0]} ~ {near[0][1]}"
        yield finding("near-leak", message, list(dict.fromkeys(file for file, _ in near)))


def _alike(left: Sequence[Exam], right: Sequence[Exam]) -> Iterator[tuple[Exam, Exam]]:
    """Pairs of near equal fingerprints and thumbnails."""
    if not left or not right:
        return
    signs = np.array([exam.bits for exam in right], dtype=np.float32) * 2 - 1
    for start in range(0, len(left), _CHUNK):
        chunk = left[start : start + _CHUNK]
        # The product of two vectors of signs counts equal bits minus different bits.
        differing = (64 - (np.array([exam.bits for exam in chunk], dtype=np.float32) * 2 - 1) @ signs.T) / 2
        for i, j in np.argwhere(differing <= _ALIKE_BITS):
            a, b = chunk[i].thumb, right[j].thumb
            assert a is not None and b is not None
            if np.abs((a - a.mean()) - (b - b.mean())).mean() < _ALIKE_LEVELS and abs(a.mean() - b.mean()) < 40:
                yield chunk[i], right[j]


def _all(exams: Exams) -> Iterator[Exam]:
    return (exam for found in exams.values() for exam in found)


def _pixels(exam: Exam) -> int:
    return 0 if exam.histogram is None else int(exam.histogram.sum())
