"""From measurements of samples to findings: one for each kind of trouble, with its files.

Usage:
    >>> exams = {"train": [examine(source, sample) for sample in source.samples("train")]}
    >>> [finding.code for finding in findings(exams, source, crop=None, limited=False)]
    ['rare-class']
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np

from litheseg.data.doctor.alike import likeness_findings
from litheseg.data.doctor.exam import Exam, pixels_by_class, pixels_by_value, scheme_of
from litheseg.data.doctor.findings import Finding, make_finding
from litheseg.data.doctor.learnable import class_findings
from litheseg.data.sources.base import Source
from litheseg.data.sources.statistics import measured_format
from litheseg.errors import DataError, listed
from litheseg.masks.classes import IGNORE_INDEX, LabelScheme

__all__ = ["findings", "shown_share"]

# What is wrong with single files, in the plural.
_FILE_TROUBLES = {
    "too-large": "files of too many pixels",
    "unreadable-image": "images that cannot be read",
    "mixed-images": "images of another kind than the first",
    "unreadable-mask": "masks that cannot be read",
    "size-mismatch": "masks that are not as large as their images",
    "rgb-mask": "masks that hold colours where class indices are expected",
    "index-mask": "masks that hold indices where colours are expected",
    "unknown-label": "masks with values outside the class list",
}

_RARE_SHARE = 0.001  # of the labelled pixels
_MOSTLY_IGNORED = 0.5
_DARK = 64  # grey levels
_CHANNELS_SHOWN = 13
_SIZES_SHOWN = 6

_Exams = Mapping[str, Sequence[Exam]]


def findings(exams: _Exams, source: Source, *, crop: tuple[int, int] | None, limited: bool) -> Iterator[Finding]:
    """Everything that is wrong with the samples of a source.

    Args:
        exams: by split.
        source: theirs.
        crop: (H, W) that training will cut out; smaller images are reported.
        limited: whether further samples were not looked at.
    """
    names, scheme = source.classes.names, scheme_of(source)
    yield from _file_findings(exams)
    yield from _ignore_findings(exams)
    yield from likeness_findings({split: [e.portrait for e in found if e.portrait] for split, found in exams.items()})
    yield from _off_by_one(exams, scheme)
    yield from _one_class(exams, scheme, limited=limited)
    yield from _class_findings(exams, names, limited=limited)
    yield from _learnable(exams, names)
    yield from _image_findings(exams, source)
    yield from _size_findings(exams, crop)


def _all(exams: _Exams) -> Iterator[Exam]:
    return (exam for found in exams.values() for exam in found)


def _file_findings(exams: _Exams) -> Iterator[Finding]:
    """Troubles of single files, one finding a kind; and images without masks where these are allowed."""
    found = defaultdict(list)
    for exam in _all(exams):
        for code, file, detail in exam.troubles:
            found[code].append((file, detail))
    for code, troubles in found.items():
        example = f": {troubles[0][1]}" if troubles[0][1] else ""
        yield make_finding(code, f"{_FILE_TROUBLES[code]}{example}", [file for file, _ in troubles])
    unlabelled = [exam.file for exam in _all(exams) if exam.sample.mask is None and exam.sample.image is not None]
    if unlabelled:
        yield make_finding("unlabelled", "images without a mask", unlabelled)


def _off_by_one(exams: _Exams, scheme: LabelScheme) -> Iterator[Finding]:
    """Labels that seem to count from 1 where the class list counts from 0."""
    classes = len(scheme.classes)
    own = [value for value, train_id in scheme.values if train_id != IGNORE_INDEX]
    if scheme.encoding != "index" or classes < 2 or own != list(range(classes)):
        return
    values = pixels_by_value(_all(exams))
    if 0 in values or classes not in values or any(classes < value < IGNORE_INDEX for value in values):
        return
    files = [str(exam.sample.mask or exam.file) for exam in _all(exams) if classes in exam.values]
    ignored = any(value == classes for value, _ in scheme.values)
    shown = f"masks hold 1 to {classes} and never 0, while the {classes} classes are 0 to {classes - 1}"
    if ignored:
        yield make_finding("maybe-off-by-one", f"{shown}; {classes} is ignored", files)
    else:
        yield make_finding("off-by-one", shown, files)


def _one_class(exams: _Exams, scheme: LabelScheme, *, limited: bool) -> Iterator[Finding]:
    """A single class in all masks, so that there is nothing to tell apart; because 255 is ignored, or for good."""
    values, known = pixels_by_value(_all(exams)), dict(scheme.values)
    found = {known[value] for value in values if known.get(value, IGNORE_INDEX) != IGNORE_INDEX}
    if len(found) != 1 or len(scheme.classes) < 2:
        return
    name = scheme.classes.names[found.pop()]
    if set(values) == {0, 255} and scheme.encoding == "index":
        share = shown_share(values[255], values.total())
        yield make_finding("zero-255", f"masks hold 0 and 255 only; 255, {share} of the pixels, is ignored", [])
    elif not limited:
        yield make_finding("one-class", f"'{name}' is the only class that any mask holds", [])


def _ignore_findings(exams: _Exams) -> Iterator[Finding]:
    """Images, and splits, of which too little is labelled."""
    for split, found in exams.items():
        usable = [exam for exam in found if exam.histogram is not None and len(exam.histogram)]
        labelled, ignored = sum(exam.labelled_pixels for exam in usable), sum(exam.ignored for exam in usable)
        if not ignored:
            continue
        if not labelled:
            yield make_finding(
                "nothing-labelled", f"every pixel of '{split}' is ignored", [exam.file for exam in usable]
            )
            continue
        share = ignored / (ignored + labelled)
        if share > _MOSTLY_IGNORED:
            yield make_finding("mostly-ignored", f"{share:.0%} of the pixels of '{split}' are ignored", [split])
        empty = [exam.file for exam in usable if exam.ignored and not exam.labelled_pixels]
        if empty:
            yield make_finding("all-ignored", f"images of '{split}' in which every pixel is ignored", empty)


def _class_findings(exams: _Exams, names: Sequence[str], *, limited: bool) -> Iterator[Finding]:
    """Classes that are absent or very rare; `limited` says that not all samples were looked at."""
    splits = {split: pixels_by_class(found, len(names)) for split, found in exams.items()}
    splits = {split: counts for split, counts in splits.items() if counts.sum()}
    if not splits:
        return
    note = " among the samples looked at" if limited else ""
    everywhere = np.sum(list(splits.values()), axis=0)
    absent = [names[k] for k in np.flatnonzero(everywhere == 0).tolist()]
    if absent:
        yield make_finding("absent-class", f"classes that no mask holds{note}: {', '.join(absent)}", absent)
    for split, counts in splits.items():
        missing = [names[k] for k in np.flatnonzero((counts == 0) & (everywhere > 0)).tolist()]
        if missing:
            yield make_finding("absent-in-split", f"classes that '{split}' lacks{note}: {', '.join(missing)}", missing)
    first = "train" if "train" in splits else next(iter(splits))
    share = splits[first] / splits[first].sum()
    rare = np.flatnonzero((share > 0) & (share < _RARE_SHARE)).tolist()
    if rare:
        shown = ", ".join(f"{names[k]} ({share[k]:.3%} of the pixels)" for k in rare)
        yield make_finding("rare-class", f"very rare in '{first}': {shown}", [names[k] for k in rare])


def _learnable(exams: _Exams, names: Sequence[str]) -> Iterator[Finding]:
    """Classes of the training images, or else of the first split, that will hardly be learned."""
    split = "train" if "train" in exams else next(iter(exams), "")
    filled = [exam.filled for exam in exams.get(split, ()) if exam.filled is not None]
    if filled and names:
        pixels = np.array([exam.histogram for exam in exams[split] if exam.filled is not None])
        yield from class_findings(
            names, pixels.sum(0), (pixels > 0).sum(0), np.array(filled).sum(0), len(filled), split
        )


def _image_findings(exams: _Exams, source: Source) -> Iterator[Finding]:
    """Images that are no RGB, are nearly black, or have a fourth channel."""
    spans = [(exam.file, exam.span) for exam in _all(exams) if exam.span is not None]
    if spans and not source.images.is_rgb8:
        low, high = min(span[0] for _, span in spans), max(span[1] for _, span in spans)
        shown = f"images have {source.images}, values {low:g} to {high:g}"
        with suppress(DataError):  # of images that are findings by themselves
            found = measured_format(source)
            levels = [
                f"{mean * found.scale:.4g} ± {std * found.scale:.4g}"
                for mean, std in zip(found.mean, found.std, strict=True)
            ]
            shown += f", mean and standard deviation by channel {listed(levels, _CHANNELS_SHOWN)}"
        yield make_finding("not-rgb", shown, [])
        return
    dark = [file for file, span in spans if 0 < span[1] < _DARK]
    if dark:
        yield make_finding("dark-image", f"images whose brightest pixel is below {_DARK} of 255", dark)
    transparent = [exam.file for exam in _all(exams) if exam.transparent]
    if transparent:
        yield make_finding("transparent", "images with a fourth channel that is not opaque", transparent)


def _size_findings(exams: _Exams, crop: tuple[int, int] | None) -> Iterator[Finding]:
    """Images smaller than the crop; images of different sizes."""
    sized = [(exam.file, exam.size) for exam in _all(exams) if exam.size is not None]
    sizes = Counter(size for _, size in sized)
    if len(sizes) > 1:
        shown = ", ".join(f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(_SIZES_SHOWN))
        yield make_finding("mixed-sizes", f"images of {len(sizes)} sizes (HxW): {shown}", [])
    small = [file for file, size in sized if crop is not None and (size[0] < crop[0] or size[1] < crop[1])]
    if crop is not None and small:
        yield make_finding("small-image", f"images smaller than the crop of {crop[0]}x{crop[1]}", small)


def shown_share(part: int, whole: int) -> str:
    """A part of pixels, as a percentage."""
    return f"{part / whole:.2%}" if whole else "-"
