"""Find what is wrong with a data set, in which files, and the remedy.

Every sample is read once and measured (`_Exam`); the checks turn the measurements into findings: one for each kind of
trouble, with its files and the remedy. Errors stop training; warnings spoil its result (a class that never occurs,
training images that return in val); the rest is information. No file is changed. Badly drawn masks are not detected.

Usage:
    >>> report = diagnose_path("data/camvid")
    >>> rich.print(report.render())
    >>> report.ok
    True
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from litheseg.data import OtherFormatError, open_source
from litheseg.data.findings import Finding, in_order, make_finding
from litheseg.data.learnable import class_findings, filled_cells
from litheseg.data.portraits import Portrait, likeness_findings
from litheseg.data.source import DuplicateStemsError, FileSource, Sample, Source
from litheseg.data.statistics import measured_format
from litheseg.errors import DataError, listed, printable
from litheseg.masks.classes import IGNORE_INDEX, UNKNOWN_INDEX, LabelScheme
from litheseg.masks.image_format import ImageFormatError
from litheseg.masks.reading import MAX_PIXELS, TooManyPixelsError, has_transparency, mask_numbers
from litheseg.progress import track
from litheseg.values import Quantity, Size

__all__ = ["Diagnosis", "Finding", "SplitSummary", "diagnose", "diagnose_path"]

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
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}

_RARE_SHARE = 0.001  # of the labelled pixels
_MOSTLY_IGNORED = 0.5
_DARK = 64  # grey levels
_CHANNELS_SHOWN = 13
_UNKNOWN_SHOWN, _SIZES_SHOWN, _FILES_SHOWN, _VALUES_SHOWN, _VALUES_KEPT = 12, 6, 3, 16, 64


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
        options: what the source's constructor takes.

    Raises:
        DataError: no folder where the source needs one.
    """

    def examined(**more: Any) -> Diagnosis:
        opened = open_source(source, data, max_pixels=max_pixels, **{**options, **more})
        return diagnose(opened, splits=splits, limit=limit, crop=crop)

    try:
        return examined()
    except OtherFormatError as error:
        return Diagnosis(
            source, (), (replace(make_finding("other-format", str(error), [str(data)]), remedy=error.command),)
        )
    except DataError as error:
        if data is None:
            raise
        refused = make_finding("cannot-open", str(error), [str(data)])
    try:
        # Without a class list, the values in the masks can still be listed.
        report = examined(allow_unlabelled=True)
    except DataError:
        return Diagnosis(source, (), (refused,))
    return Diagnosis(report.source, report.classes, in_order([refused, *report.findings]), report.splits)


def diagnose(
    source: Source,
    *,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    crop: tuple[int, int] | None = None,
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
            findings.append(make_finding("missing-split", f"split '{split}' is not there", [split]))
            continue
        samples = _usable_samples(source, split, findings, refusals)
        if limit is not None and limit < len(samples):
            samples = [samples[index * len(samples) // limit] for index in range(limit)]
        exams[split] = [_examine(source, sample) for sample in track(samples, f"examining {split}, images")]
    if splits is None and "train" not in present:
        findings.append(make_finding("missing-split", "there is no split 'train'", ["train"]))
    if splits is None and "val" not in present:
        findings.append(make_finding("no-val", "there is no split 'val'", ["val"]))
    findings += _file_findings(exams)
    findings += _ignore_findings(exams)
    findings += likeness_findings({k: [e.portrait for e in found if e.portrait] for k, found in exams.items()})
    findings += _off_by_one(exams, _scheme_of(source))
    findings += _one_class(exams, _scheme_of(source), limited=limit is not None)
    findings += _class_findings(exams, source.classes.names, limited=limit is not None)
    findings += _learnable(exams, source.classes.names)
    findings += _image_findings(exams, source)
    findings += _size_findings(exams, crop)
    summaries = {split: _summary(found, source) for split, found in exams.items()}
    return Diagnosis(source.name, source.classes.names, in_order(findings), summaries)


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
    unusable = make_finding("unusable-split", f"'{split}': {refusal}", [split])
    if doubles:
        unusable = make_finding("same-stem", f"files of '{split}' that differ in their endings only", doubles)
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
        found += [make_finding(code, what, files)] if files else []
    if not usable:
        found.append(make_finding("empty-split", f"'{split}': {refusal}", [split]))
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
        filled: of `filled_cells`, where there is a histogram and no value is unknown.
        values: pixels by file value, of every mask that can be read.
        portrait: what the image looks like; None where it cannot be read.
        span: its smallest and largest value; None likewise.
        transparent: whether it has a fourth channel that is not opaque.
    """

    sample: Sample
    troubles: list[tuple[str, str, str]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    histogram: np.ndarray | None = None
    ignored: int = 0
    filled: np.ndarray | None = None
    values: dict[int, int] = field(default_factory=dict)
    portrait: Portrait | None = None
    span: tuple[float, float] | None = None
    transparent: bool = False

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
        exam.portrait = Portrait.of(image, exam.file, sample.id)
        exam.span = float(image.min(initial=0)), float(image.max(initial=0))
        exam.transparent = isinstance(source, FileSource) and sample.image is not None and _transparent(sample.image)
    if sample.mask is not None or sample.image is None:
        _examine_mask(exam, source)
    return exam


def _transparent(image: Path) -> bool:
    try:
        return has_transparency(image)
    except DataError:  # of what was read before: too large for the limit here
        return False


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
    if not unknown and len(scheme.classes):
        exam.filled = filled_cells(table[numbers], len(scheme.classes))


def _read(exam: _Exam, read: Callable[[Sample], np.ndarray], kind: str, file: str) -> np.ndarray | None:
    try:
        return read(exam.sample)
    except DataError as error:
        code = f"unreadable-{kind}"
        for known, name in ((TooManyPixelsError, "too-large"), (ImageFormatError, "mixed-images")):
            code = name if isinstance(error, known) else code
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
    values = _values(_all(exams))
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
    values, known = _values(_all(exams)), dict(scheme.values)
    found = {known[value] for value in values if known.get(value, IGNORE_INDEX) != IGNORE_INDEX}
    if len(found) != 1 or len(scheme.classes) < 2:
        return
    name = scheme.classes.names[found.pop()]
    if set(values) == {0, 255} and scheme.encoding == "index":
        share = _share(values[255], values.total())
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
    splits = {split: _histogram(found, len(names)) for split, found in exams.items()}
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
