"""What is wrong with a data set, in which files, and how to mend it.

Every sample is read once; each kind of trouble becomes one `Finding` with the files, their number and the remedy.
Errors are what training cannot go on with; warnings are what spoils a result without stopping anything (a class that
never occurs, training images that return in val); the rest is for information. It changes no file. Labels that are
merely drawn badly are beyond it.

Likenesses between train and val are found by a 64-bit difference hash and verified on 32 x 32 thumbnails, so that
consecutive video frames a second apart are not yet alike but re-encoded, brightened or resized copies are.

Usage:
    >>> report = diagnose_path("data/camvid")
    >>> rich.print(report.render())
    >>> report.ok
    True
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import track

from litheseg.data import _doctor_checks as checks
from litheseg.data import open_source
from litheseg.data._doctor_checks import Finding, finding
from litheseg.data._doctor_exam import Exam, examine, scheme_of
from litheseg.data._doctor_render import render
from litheseg.data.source import DuplicateStemsError, FileSource, Pairing, Sample, Source
from litheseg.errors import DataError

__all__ = ["Finding", "Report", "SplitSummary", "diagnose", "diagnose_path"]


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
class Report:
    """The doctor's findings, the gravest first.

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
        """The report for the terminal: hand it to `rich.print`."""
        return render(self)


def diagnose(
    source: Source,
    *,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    crop: tuple[int, int] | None = None,
    verbose: bool = False,
) -> Report:
    """Examine a data set.

    Args:
        source: the data set.
        splits: those to look at; default: all that are present.
        limit: look at no more than this many samples of each split, spread evenly; default: all.
        crop: (H, W) that training will cut out; smaller images are reported.
        verbose: show a progress bar on the terminal.

    Returns:
        The report; troubles with the data are findings, never exceptions.
    """
    findings: list[Finding] = []
    refusals: set[str] = set()
    exams: dict[str, list[Exam]] = {}
    present = source.splits()
    for split in present if splits is None else splits:
        if split not in present:
            findings.append(finding("missing-split", f"split '{split}' is not there", [split]))
            continue
        samples = _spread(_samples(source, split, findings, refusals), limit)
        steps = (
            track(samples, f"{source.name} {split}", transient=True, console=Console(stderr=True))
            if verbose
            else samples
        )
        exams[split] = [examine(source, sample) for sample in steps]
    findings += checks.split_findings(present, splits)
    for check in (checks.file_findings, checks.ignore_findings, checks.likeness_findings):
        findings += check(exams)
    findings += checks.label_findings(exams, scheme_of(source))
    findings += checks.class_findings(exams, source.classes.names, limited=limit is not None)
    findings += checks.size_findings(exams, crop)
    summaries = {split: _summary(found, source) for split, found in exams.items()}
    return Report(source.name, source.classes.names, checks.in_order(findings), summaries)


def diagnose_path(root: str | Path, name: str = "auto", *, verbose: bool = False, **options: Any) -> Report:
    """Open a folder and examine it; a folder that cannot be opened gives a report that says so.

    Args:
        root: the folder of the data.
        name: a key of `litheseg.data.SOURCES`, or "auto" to detect the layout.
        verbose: show a progress bar on the terminal.
        options: `splits`, `limit` and `crop` go to `diagnose`, the others to the source.
    """
    ours = {key: options.pop(key) for key in ("splits", "limit", "crop") if key in options}
    try:
        return diagnose(open_source(name, root, **options), **ours, verbose=verbose)
    except DataError as error:
        refused = finding("cannot-open", str(error), [str(root)])
    try:
        # Without a class list one can at least say which values the masks hold.
        report = diagnose(open_source(name, root, **{**options, "allow_unlabelled": True}), **ours, verbose=verbose)
    except DataError:
        return Report(name, (), (refused,))
    return Report(report.source, report.classes, checks.in_order([refused, *report.findings]), report.splits)


def _samples(source: Source, split: str, findings: list[Finding], refusals: set[str]) -> Sequence[Sample]:
    """The samples of a split; where the source refuses them, those that can be read all the same."""
    doubles: list[str] = []
    try:
        return source.samples(split)
    except DuplicateStemsError as error:
        refusal, doubles = str(error), [str(path) for path, _ in error.pairs]
    except DataError as error:
        refusal = str(error)
    # A part held out of train is refused for the reason train was: once is enough.
    known = refusal in refusals
    refusals.add(refusal)
    try:
        pairing = source.pairing(split) if isinstance(source, FileSource) else None
    except DataError:
        pairing = None  # the source met the same error
    unusable = finding("unusable-split", f"'{split}': {refusal}", [split])
    if doubles:
        unusable = finding("same-stem", f"files of '{split}' that differ in their endings only", doubles)
    if pairing is None:
        if not known:
            findings.append(unusable)
        return ()
    if getattr(source, "allow_unlabelled", False):
        pairing = Pairing(pairing.samples, (), pairing.masks, pairing.missing)
    found = list(_unpaired(pairing, split))
    if not pairing.pairs:
        found.append(finding("empty-split", f"'{split}': {refusal}", [split]))
    findings += found or [unusable]
    return pairing.pairs


def _unpaired(pairing: Pairing, split: str) -> Iterator[Finding]:
    """Files without a partner, one finding a kind."""
    for code, what, files in (
        ("unpaired-image", "images of '{}' without a mask", [str(sample.image) for sample in pairing.images]),
        ("unpaired-mask", "masks of '{}' without an image", [str(path) for path in pairing.masks]),
        ("missing-file", "list entries of '{}' without a file", pairing.missing),
    ):
        if files:
            yield finding(code, what.format(split), files)


def _spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    if limit is None or limit >= len(samples):
        return list(samples)
    return [samples[index * len(samples) // limit] for index in range(limit)]


def _summary(exams: Sequence[Exam], source: Source) -> SplitSummary:
    scheme = scheme_of(source)
    values = checks.total(exam.values for exam in exams)
    return SplitSummary(
        samples=len(exams),
        labelled=sum(exam.histogram is not None for exam in exams),
        sizes=checks.total({exam.size: 1} for exam in exams if exam.size is not None),
        histogram=tuple(checks.histogram(exams, len(source.classes)).tolist()),
        ignored=sum(exam.ignored for exam in exams),
        values={scheme.show(value): count for value, count in sorted(values.items(), key=lambda item: -item[1])[:64]},
    )
