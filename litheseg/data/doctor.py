"""Find what is wrong with a data set, in which files, and the remedy.

Every sample is read once and measured (`_Exam`); the checks turn the measurements into findings: one for each kind of
trouble, with its files and the remedy. Errors stop training; warnings spoil its result (a class that never occurs,
training images that return in val); the rest is information. No file is changed. Badly drawn masks are not detected.

Images of train that return in val are found by the difference hash: an image is shrunk to 9 x 8 grey pixels and each of
64 bits says whether a pixel is brighter than its right neighbour (Krawetz, "Kind of Like That", hackerfactor.com,
2013). They are verified on 32 x 32 thumbnails: consecutive video frames a second apart are not alike, but re-encoded,
brightened or resized copies are.

Usage:
    >>> report = diagnose_path("data/camvid")
    >>> rich.print(report.render())
    >>> report.ok
    True
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.progress import track
from rich.table import Table
from rich.text import Text

from litheseg.data import OtherFormatError, open_source
from litheseg.data.source import DuplicateStemsError, FileSource, Sample, Source
from litheseg.errors import DataError, printable
from litheseg.masks.classes import IGNORE_INDEX, UNKNOWN_INDEX, LabelScheme
from litheseg.masks.reading import MAX_PIXELS, TooManyPixelsError, mask_numbers
from litheseg.values import Quantity, Size

__all__ = ["Diagnosis", "Finding", "SplitSummary", "diagnose", "diagnose_path"]

Severity = Literal["error", "warning", "info"]

# Severity and remedy by code; findings are listed in this order.
_KNOWN: dict[str, tuple[Severity, str]] = {
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
    "duplicate": ("warning", "keep one of each: copies count twice"),
    "leak": ("warning", "remove them from train: val would measure memory"),
    "near-leak": ("warning", "keep frames of one scene in one split"),
    "small-image": ("warning", "train with a smaller crop, or leave these images out: borders will be padded"),
    "mixed-sizes": ("info", "nothing to do: set 'size' if all should be resized to one"),
    "unlabelled": ("info", "nothing to do: they serve as unlabelled images"),
}
# What is wrong with single files, in the plural.
_FILE_TROUBLES = {
    "too-large": "files of too many pixels",
    "unreadable-image": "images that cannot be read",
    "unreadable-mask": "masks that cannot be read",
    "size-mismatch": "masks that are not as large as their images",
    "rgb-mask": "masks that hold colours where class indices are expected",
    "index-mask": "masks that hold indices where colours are expected",
    "unknown-label": "masks with values outside the class list",
}
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}

_THUMB = 32  # edge in pixels of the thumbnail that verifies a match
_ALIKE_BITS = 8  # of 64; re-encoded copies differ in 0 to 3, CamVid frames a second apart mostly in more than 8
_ALIKE_LEVELS = 6.0  # mean grey levels between thumbnails of equal mean; CamVid's train and val differ in 27 and more
_ALIKE_BRIGHTNESS = 40  # grey levels between the means
_CHUNK = 2048  # images of train that are compared with all others at once
_RARE_SHARE = 0.001  # of the labelled pixels
_MOSTLY_IGNORED = 0.5
_UNKNOWN_SHOWN, _SIZES_SHOWN, _FILES_SHOWN, _VALUES_SHOWN, _VALUES_KEPT = 12, 6, 3, 16, 64


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


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds.

    Attributes:
        samples: images that have been examined.
        labelled: those with a usable mask.
        sizes: images by (H, W).
        histogram: pixels by class.
        ignored: ignored pixels.
        values: pixels by value in the mask files, as shown to users ("12", or "#rrggbb").
    """

    samples: int
    labelled: int
    sizes: dict[tuple[int, int], int]
    histogram: tuple[int, ...]
    ignored: int
    values: dict[str, int]


@dataclass(frozen=True)
class Diagnosis:
    """The findings on a data set, the gravest first.

    Attributes:
        source: name of the data set.
        classes: names of its classes.
        findings: what was found.
        splits: what was looked at.
    """

    source: str
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]
    splits: dict[str, SplitSummary] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether training can go on: no finding is an error."""
        return all(item.severity != "error" for item in self.findings)

    def to_json(self) -> str:
        """Everything, as JSON text; sizes are written "HxW"."""
        content: dict[str, Any] = {"ok": self.ok, **asdict(self)}
        for name, summary in self.splits.items():
            content["splits"][name]["sizes"] = {f"{h}x{w}": count for (h, w), count in summary.sizes.items()}
        return json.dumps(content, indent=2)

    def render(self) -> Group:
        """For `rich.print`: a summary line, the findings, and the classes by split."""
        looked = ", ".join(f"{name} {summary.samples}" for name, summary in self.splits.items())
        verdict = "ready for training"
        if not self.ok:
            count = sum(item.severity == "error" for item in self.findings)
            verdict = f"{count} kind{'s' if count > 1 else ''} of errors; training cannot go on"
        line = f"{printable(self.source)} ({looked or 'not opened'}): {verdict}"
        parts: list[RenderableType] = [Text(line, style="bold green" if self.ok else "bold red")]
        if self.findings:
            parts.append(_findings_table(self.findings))
        if self.splits:
            parts.append(_classes_table(self) if self.classes else _values_table(self))
        return Group(*parts)


def diagnose_path(
    data: str | Path | None = None,
    source: str = "auto",
    *,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    crop: Size | None = None,
    max_pixels: Quantity = MAX_PIXELS,
    progress: bool = False,
    **options: Any,
) -> Diagnosis:
    """Find what is wrong with a data set; a folder that cannot be opened gives a report that says so.

    Args:
        data: the folder of the data; None for a source that makes its own images.
        source: a key of `litheseg.data.SOURCES`, or "auto" to detect the layout.
        splits: those to look at; None for all that are present.
        limit: look at this many samples of each split only, spread evenly; None for all.
        crop: (H, W) that training will cut out; smaller images are reported.
        max_pixels: of an image, width times height by its header; a larger one is an error.
        progress: show a progress bar on standard error.
        options: what the source's constructor takes.

    Raises:
        DataError: no folder where the source needs one.
    """

    def examined(**more: Any) -> Diagnosis:
        opened = open_source(source, data, max_pixels=max_pixels, **{**options, **more})
        return diagnose(opened, splits=splits, limit=limit, crop=crop, progress=progress)

    try:
        return examined()
    except OtherFormatError as error:
        return Diagnosis(
            source, (), (replace(_finding("other-format", str(error), [str(data)]), remedy=error.command),)
        )
    except DataError as error:
        if data is None:
            raise
        refused = _finding("cannot-open", str(error), [str(data)])
    try:
        # Without a class list, the values in the masks can still be listed.
        report = examined(allow_unlabelled=True)
    except DataError:
        return Diagnosis(source, (), (refused,))
    return Diagnosis(report.source, report.classes, _in_order([refused, *report.findings]), report.splits)


def diagnose(
    source: Source,
    *,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    crop: tuple[int, int] | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Examine a data set that is open; arguments as of `diagnose_path`.

    Returns:
        The report; troubles with the data are findings, never exceptions.
    """
    findings: list[Finding] = []
    refusals: set[str] = set()
    exams: dict[str, list[_Exam]] = {}
    present = source.splits()
    for split in present if splits is None else splits:
        if split not in present:
            findings.append(_finding("missing-split", f"split '{split}' is not there", [split]))
            continue
        samples = _usable_samples(source, split, findings, refusals)
        if limit is not None and limit < len(samples):
            samples = [samples[index * len(samples) // limit] for index in range(limit)]
        title, console = f"{source.name} {split}", Console(stderr=True)
        steps = track(samples, title, transient=True, console=console, disable=not progress)
        exams[split] = [_examine(source, sample) for sample in steps]
    if splits is None and "train" not in present:
        findings.append(_finding("missing-split", "there is no split 'train'", ["train"]))
    if splits is None and "val" not in present:
        findings.append(_finding("no-val", "there is no split 'val'", ["val"]))
    findings += _file_findings(exams)
    findings += _ignore_findings(exams)
    findings += _likeness_findings(exams)
    findings += _off_by_one(exams, _scheme_of(source))
    findings += _one_class(exams, _scheme_of(source), limited=limit is not None)
    findings += _class_findings(exams, source.classes.names, limited=limit is not None)
    findings += _size_findings(exams, crop)
    summaries = {split: _summary(found, source) for split, found in exams.items()}
    return Diagnosis(source.name, source.classes.names, _in_order(findings), summaries)


def _finding(code: str, message: str, files: Sequence[str]) -> Finding:
    severity, remedy = _KNOWN[code]
    return Finding(code, severity, message, tuple(files), len(files), remedy)


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    codes = list(_KNOWN)
    return tuple(sorted(findings, key=lambda item: codes.index(item.code)))


def _usable_samples(source: Source, split: str, findings: list[Finding], refusals: set[str]) -> Sequence[Sample]:
    """The samples of a split; if the source refuses it, those that can still be read."""
    doubles: list[str] = []
    try:
        return source.samples(split)
    except DuplicateStemsError as error:
        refusal, doubles = str(error), [str(path) for path, _ in error.pairs]
    except DataError as error:
        refusal = str(error)
    # A part held out of train fails for the same reason as train: report it once.
    known = refusal in refusals
    refusals.add(refusal)
    try:
        pairing = source.pairing(split) if isinstance(source, FileSource) else None
    except DataError:
        pairing = None  # the source met the same error
    unusable = _finding("unusable-split", f"'{split}': {refusal}", [split])
    if doubles:
        unusable = _finding("same-stem", f"files of '{split}' that differ in their endings only", doubles)
    if pairing is None:
        findings += [] if known else [unusable]
        return ()
    usable, lone = pairing.pairs, [str(sample.image) for sample in pairing.images]
    if getattr(source, "allow_unlabelled", False):
        usable, lone = pairing.samples, []
    found = []
    for code, what, files in (
        ("unpaired-image", f"images of '{split}' without a mask", lone),
        ("unpaired-mask", f"masks of '{split}' without an image", [str(path) for path in pairing.masks]),
        ("missing-file", f"list entries of '{split}' without a file", pairing.missing),
    ):
        found += [_finding(code, what, files)] if files else []
    if not usable:
        found.append(_finding("empty-split", f"'{split}': {refusal}", [split]))
    findings += found or [unusable]
    return usable


# Reading one sample ---------------------------------------------------------------------------------------------------


@dataclass
class _Exam:
    """What one sample looks like.

    Attributes:
        sample: whose exam it is.
        troubles: (code, file, detail) of what is wrong with its files.
        size: (H, W) of the image; None where it cannot be read.
        histogram: int64 K, pixels of each class; None where the mask is missing or cannot be used.
        ignored: ignored pixels in the mask.
        values: pixels by file value, of every mask that can be read.
        digest: of the decoded pixels; "" where they cannot be read.
        bits: bool 64, the difference hash.
        thumb: float32 32 x 32, grey, 0..255.
    """

    sample: Sample
    troubles: list[tuple[str, str, str]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    histogram: np.ndarray | None = None
    ignored: int = 0
    values: dict[int, int] = field(default_factory=dict)
    digest: str = ""
    bits: np.ndarray | None = None
    thumb: np.ndarray | None = None

    @property
    def file(self) -> str:
        """The image's file, or the sample's name where there is no file."""
        return _name(self.sample, self.sample.image)

    @property
    def labelled_pixels(self) -> int:
        """Pixels that are not ignored."""
        return 0 if self.histogram is None else int(self.histogram.sum())


def _examine(source: Source, sample: Sample) -> _Exam:
    """Read an image and its mask, and note what is wrong with them; never raises `DataError`."""
    exam = _Exam(sample)
    image = _read(exam, source.read_image, "image", exam.file)
    if image is not None:
        exam.size = (image.shape[0], image.shape[1])
        exam.digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(exam.size).encode()).hexdigest()
        grey = Image.fromarray(image).convert("L")
        small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.float32)
        exam.bits = (small[:, :-1] > small[:, 1:]).ravel()
        exam.thumb = np.asarray(grey.resize((_THUMB, _THUMB), Image.Resampling.BOX), dtype=np.float32)
    if sample.mask is not None or sample.image is None:
        _examine_mask(exam, source)
    return exam


def _examine_mask(exam: _Exam, source: Source) -> None:
    file, scheme = _name(exam.sample, exam.sample.mask), _scheme_of(source)
    raw = _read(exam, source.raw_mask, "mask", file)
    if raw is None:
        return
    if exam.size is not None and raw.shape[:2] != exam.size and not _fits_when_turned(source, exam.sample):
        shown = f"mask {raw.shape[0]}x{raw.shape[1]}, image {exam.size[0]}x{exam.size[1]} (HxW)"
        exam.troubles.append(("size-mismatch", file, shown))
    numbers = mask_numbers(raw, scheme.encoding)
    if numbers is None:
        exam.troubles.append(("rgb-mask" if raw.ndim == 3 else "index-mask", file, ""))
        return
    values, counts = np.unique(numbers, return_counts=True)
    values, table = values.astype(np.int64), scheme.table()
    known = table[np.clip(values, 0, len(table) - 1)]
    known[(values < 0) | (values >= len(table))] = UNKNOWN_INDEX
    exam.values = dict(zip(values.tolist(), counts.tolist(), strict=True))
    unknown = values[known == UNKNOWN_INDEX][:_UNKNOWN_SHOWN].tolist()
    if unknown:
        shown = ", ".join(f"{scheme.show(value)} ({exam.values[value]} px)" for value in unknown)
        exam.troubles.append(("unknown-label", file, shown))
    histogram = np.bincount(known, weights=counts, minlength=256).astype(np.int64)
    exam.histogram, exam.ignored = histogram[: len(scheme.classes)], int(histogram[IGNORE_INDEX])


def _read(exam: _Exam, read: Callable[[Sample], np.ndarray], kind: str, file: str) -> np.ndarray | None:
    try:
        return read(exam.sample)
    except DataError as error:
        code = "too-large" if isinstance(error, TooManyPixelsError) else f"unreadable-{kind}"
        exam.troubles.append((code, file, str(error)))
        return None


def _fits_when_turned(source: Source, sample: Sample) -> bool:
    """Whether the two sizes agree once EXIF orientations are applied."""
    try:
        return source.read_mask(sample).shape == source.read_image(sample).shape[:2]
    except DataError:
        return False


def _name(sample: Sample, path: Path | None) -> str:
    return str(path) if path is not None else f"{sample.split}/{sample.id}"


def _scheme_of(source: Source) -> LabelScheme:
    """The source's scheme; train ids as they are for a source that has no files."""
    return source.scheme if isinstance(source, FileSource) else LabelScheme.build(source.classes)


def _summary(exams: Sequence[_Exam], source: Source) -> SplitSummary:
    scheme, values = _scheme_of(source), _values(exams)
    return SplitSummary(
        samples=len(exams),
        labelled=sum(exam.histogram is not None for exam in exams),
        sizes=dict(Counter(exam.size for exam in exams if exam.size is not None)),
        histogram=tuple(_histogram(exams, len(source.classes)).tolist()),
        ignored=sum(exam.ignored for exam in exams),
        values={scheme.show(value): count for value, count in values.most_common(_VALUES_KEPT)},
    )


def _histogram(exams: Iterable[_Exam], classes: int) -> np.ndarray:
    """int64 K: pixels by class over all usable masks."""
    return sum((exam.histogram for exam in exams if exam.histogram is not None), np.zeros(classes, np.int64))


def _values(exams: Iterable[_Exam]) -> Counter[int]:
    """Pixels by file value."""
    result: Counter[int] = Counter()
    for exam in exams:
        result.update(exam.values)
    return result


# From measurements to findings ----------------------------------------------------------------------------------------

_Exams = Mapping[str, Sequence[_Exam]]


def _all(exams: _Exams) -> Iterator[_Exam]:
    return (exam for found in exams.values() for exam in found)


def _file_findings(exams: _Exams) -> Iterator[Finding]:
    """Troubles of single files, one finding a kind; and images without masks where these are allowed."""
    found = defaultdict(list)
    for exam in _all(exams):
        for code, file, detail in exam.troubles:
            found[code].append((file, detail))
    for code, troubles in found.items():
        example = f": {troubles[0][1]}" if troubles[0][1] else ""
        yield _finding(code, f"{_FILE_TROUBLES[code]}{example}", [file for file, _ in troubles])
    unlabelled = [exam.file for exam in _all(exams) if exam.sample.mask is None and exam.sample.image is not None]
    if unlabelled:
        yield _finding("unlabelled", "images without a mask", unlabelled)


def _off_by_one(exams: _Exams, scheme: LabelScheme) -> Iterator[Finding]:
    """Labels that seem to count from 1 where the class list counts from 0."""
    classes = len(scheme.classes)
    own = [value for value, train_id in scheme.values if train_id != IGNORE_INDEX]
    if scheme.encoding != "index" or classes < 2 or own != list(range(classes)):
        return
    values = _values(_all(exams))
    if 0 in values or classes not in values or any(classes < value < IGNORE_INDEX for value in values):
        return
    files = [str(exam.sample.mask or exam.file) for exam in _all(exams) if classes in exam.values]
    ignored = any(value == classes for value, _ in scheme.values)
    shown = f"masks hold 1 to {classes} and never 0, while the {classes} classes are 0 to {classes - 1}"
    if ignored:
        yield _finding("maybe-off-by-one", f"{shown}; {classes} is ignored", files)
    else:
        yield _finding("off-by-one", shown, files)


def _one_class(exams: _Exams, scheme: LabelScheme, *, limited: bool) -> Iterator[Finding]:
    """A single class in all masks, so that there is nothing to tell apart; because 255 is ignored, or for good."""
    values, known = _values(_all(exams)), dict(scheme.values)
    found = {known[value] for value in values if known.get(value, IGNORE_INDEX) != IGNORE_INDEX}
    if len(found) != 1 or len(scheme.classes) < 2:
        return
    name = scheme.classes.names[found.pop()]
    if set(values) == {0, 255} and scheme.encoding == "index":
        share = _share(values[255], values.total())
        yield _finding("zero-255", f"masks hold 0 and 255 only; 255, {share} of the pixels, is ignored", [])
    elif not limited:
        yield _finding("one-class", f"'{name}' is the only class that any mask holds", [])


def _ignore_findings(exams: _Exams) -> Iterator[Finding]:
    """Images, and splits, of which too little is labelled."""
    for split, found in exams.items():
        usable = [exam for exam in found if exam.histogram is not None and len(exam.histogram)]
        labelled, ignored = sum(exam.labelled_pixels for exam in usable), sum(exam.ignored for exam in usable)
        if not ignored:
            continue
        if not labelled:
            yield _finding("nothing-labelled", f"every pixel of '{split}' is ignored", [exam.file for exam in usable])
            continue
        share = ignored / (ignored + labelled)
        if share > _MOSTLY_IGNORED:
            yield _finding("mostly-ignored", f"{share:.0%} of the pixels of '{split}' are ignored", [split])
        empty = [exam.file for exam in usable if exam.ignored and not exam.labelled_pixels]
        if empty:
            yield _finding("all-ignored", f"images of '{split}' in which every pixel is ignored", empty)


def _class_findings(exams: _Exams, names: Sequence[str], *, limited: bool) -> Iterator[Finding]:
    """Classes that are absent or very rare; `limited` says that not all samples were looked at."""
    splits = {split: _histogram(found, len(names)) for split, found in exams.items()}
    splits = {split: counts for split, counts in splits.items() if counts.sum()}
    if not splits:
        return
    note = " among the samples looked at" if limited else ""
    everywhere = np.sum(list(splits.values()), axis=0)
    absent = [names[k] for k in np.flatnonzero(everywhere == 0).tolist()]
    if absent:
        yield _finding("absent-class", f"classes that no mask holds{note}: {', '.join(absent)}", absent)
    for split, counts in splits.items():
        missing = [names[k] for k in np.flatnonzero((counts == 0) & (everywhere > 0)).tolist()]
        if missing:
            yield _finding("absent-in-split", f"classes that '{split}' lacks{note}: {', '.join(missing)}", missing)
    first = "train" if "train" in splits else next(iter(splits))
    share = splits[first] / splits[first].sum()
    rare = np.flatnonzero((share > 0) & (share < _RARE_SHARE)).tolist()
    if rare:
        shown = ", ".join(f"{names[k]} ({share[k]:.3%} of the pixels)" for k in rare)
        yield _finding("rare-class", f"very rare in '{first}': {shown}", [names[k] for k in rare])


def _size_findings(exams: _Exams, crop: tuple[int, int] | None) -> Iterator[Finding]:
    """Images smaller than the crop; images of different sizes."""
    sized = [(exam.file, exam.size) for exam in _all(exams) if exam.size is not None]
    sizes = Counter(size for _, size in sized)
    if len(sizes) > 1:
        shown = ", ".join(f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(_SIZES_SHOWN))
        yield _finding("mixed-sizes", f"images of {len(sizes)} sizes (HxW): {shown}", [])
    small = [file for file, size in sized if crop is not None and (size[0] < crop[0] or size[1] < crop[1])]
    if crop is not None and small:
        yield _finding("small-image", f"images smaller than the crop of {crop[0]}x{crop[1]}", small)


def _likeness_findings(exams: _Exams) -> Iterator[Finding]:
    """Copies within a split, and images of train that return, exactly or nearly, in another split."""
    for split, found in exams.items():
        first = {exam.digest: exam for exam in reversed(found)}
        copies = [exam.file for exam in found if exam.digest and first[exam.digest] is not exam]
        if copies:
            yield _finding("duplicate", f"images of '{split}' that are exact copies of others", copies)
    train = [exam for exam in exams.get("train", ()) if exam.bits is not None]
    for split in exams:
        other = [exam for exam in exams[split] if exam.bits is not None]
        if split == "train" or not train or not other:
            continue
        held = {exam.digest: exam.file for exam in other}
        exact = [exam for exam in train if exam.digest in held]
        if exact:
            shown = f"{exact[0].file} = {held[exact[0].digest]}"
            message = f"images of 'train' that are in '{split}' too, e.g. {shown}"
            yield _finding("leak", message, [exam.file for exam in exact])
        near = [(a.file, b.file) for a, b in _alike(train, other) if a.digest != b.digest]
        if near:
            message = f"images of 'train' that nearly equal one of '{split}', e.g. {near[0][0]} ~ {near[0][1]}"
            yield _finding("near-leak", message, list(dict.fromkeys(file for file, _ in near)))


def _alike(left: Sequence[_Exam], right: Sequence[_Exam]) -> Iterator[tuple[_Exam, _Exam]]:
    """Pairs of near equal difference hashes and thumbnails."""
    signs = np.array([exam.bits for exam in right], dtype=np.float32) * 2 - 1
    for start in range(0, len(left), _CHUNK):
        chunk = left[start : start + _CHUNK]
        # The product of two vectors of signs counts equal bits minus different bits.
        differing = (64 - (np.array([exam.bits for exam in chunk], dtype=np.float32) * 2 - 1) @ signs.T) / 2
        for i, j in np.argwhere(differing <= _ALIKE_BITS):
            a, b = chunk[i].thumb, right[j].thumb
            assert a is not None and b is not None
            offset = a.mean() - b.mean()
            if np.abs(a - b - offset).mean() < _ALIKE_LEVELS and abs(offset) < _ALIKE_BRIGHTNESS:
                yield chunk[i], right[j]


# Tables for the terminal ----------------------------------------------------------------------------------------------


def _findings_table(findings: Iterable[Finding]) -> Table:
    table = Table(title="findings", title_justify="left", show_lines=True)
    table.add_column("finding", overflow="fold")
    table.add_column("files", justify="right", overflow="fold")
    table.add_column("what and where", overflow="fold")
    table.add_column("remedy", overflow="fold")
    for item in findings:
        files = "\n".join(map(printable, item.files[:_FILES_SHOWN]))
        more = f"\nand {item.count - _FILES_SHOWN} more" if item.count > _FILES_SHOWN else ""
        # Text, not str: brackets in file names are no markup.
        table.add_row(
            Text(f"{item.severity}\n{item.code}", style=_STYLES[item.severity]),
            str(item.count) if item.count else "",
            Text(printable(item.message)).append(f"\n{files}{more}" if files else "", style="dim"),
            Text(item.remedy),
        )
    return table


def _classes_table(report: Diagnosis) -> Table:
    table = Table("class", title="share of the labelled pixels", title_justify="left")
    for name in report.splits:
        table.add_column(name, justify="right")
    splits = report.splits.values()
    for index, label in enumerate(report.classes):
        shares = [_share(summary.histogram[index], sum(summary.histogram)) for summary in splits]
        table.add_row(Text(printable(label)), *shares)
    ignored = [_share(summary.ignored, summary.ignored + sum(summary.histogram)) for summary in splits]
    table.add_row(Text("(ignored, of all)", style="dim"), *ignored)
    return table


def _values_table(report: Diagnosis) -> Table:
    """Without a class list: what the masks hold."""
    table = Table(title="values in the masks", title_justify="left")
    for name in ("split", "value", "pixels"):
        table.add_column(name, justify="right")
    for split, summary in report.splits.items():
        for value, count in list(summary.values.items())[:_VALUES_SHOWN]:
            table.add_row(split, value, str(count))
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
