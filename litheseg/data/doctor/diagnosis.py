"""Find what is wrong with a data set, in which files, and the remedy.

Every sample is read once and measured (`Exam`); the checks turn the measurements into findings: one for each kind of
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
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from litheseg.data import OtherFormatError, open_source
from litheseg.data.doctor import checks
from litheseg.data.doctor.exam import Exam, examine, pixels_by_class, pixels_by_value, scheme_of
from litheseg.data.doctor.findings import Finding, in_order, make_finding
from litheseg.data.sources.base import DuplicateStemsError, FileSource, Sample, Source
from litheseg.errors import DataError, printable
from litheseg.masks.opening import MAX_PIXELS
from litheseg.progress import track
from litheseg.values import Quantity, Size

__all__ = ["Diagnosis", "Finding", "SplitSummary", "diagnose", "diagnose_path"]

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}

_FILES_SHOWN, _VALUES_SHOWN, _VALUES_KEPT = 3, 16, 64


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
    exams: dict[str, list[Exam]] = {}
    present = source.splits()
    for split in present if splits is None else splits:
        if split not in present:
            findings.append(make_finding("missing-split", f"split '{split}' is not there", [split]))
            continue
        samples = _usable_samples(source, split, findings, refusals)
        if limit is not None and limit < len(samples):
            samples = [samples[index * len(samples) // limit] for index in range(limit)]
        exams[split] = [examine(source, sample) for sample in track(samples, f"examining {split}, images")]
    if splits is None and "train" not in present:
        findings.append(make_finding("missing-split", "there is no split 'train'", ["train"]))
    if splits is None and "val" not in present:
        findings.append(make_finding("no-val", "there is no split 'val'", ["val"]))
    findings += checks.findings(exams, source, crop=crop, limited=limit is not None)
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


def _summary(exams: Sequence[Exam], source: Source) -> SplitSummary:
    scheme, values = scheme_of(source), pixels_by_value(exams)
    return SplitSummary(
        samples=len(exams),
        labelled=sum(exam.histogram is not None for exam in exams),
        sizes=dict(Counter(exam.size for exam in exams if exam.size is not None)),
        histogram=tuple(pixels_by_class(exams, len(source.classes)).tolist()),
        ignored=sum(exam.ignored for exam in exams),
        values={scheme.show(value): count for value, count in values.most_common(_VALUES_KEPT)},
    )


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
        shares = [checks.shown_share(summary.histogram[index], sum(summary.histogram)) for summary in splits]
        table.add_row(Text(printable(label)), *shares)
    ignored = [checks.shown_share(summary.ignored, summary.ignored + sum(summary.histogram)) for summary in splits]
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
