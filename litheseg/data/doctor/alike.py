"""Findings on images that are alike: copies, images of one split that return in another, sequences in both.

Usage:
    >>> portraits = {"train": [Portrait.of(image, "a.png", "a")], "val": [Portrait.of(image, "b.png", "b")]}
    >>> [item.code for item in likeness_findings(portraits)]
    ['leak']
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from litheseg.data.doctor.findings import Finding, make_finding
from litheseg.data.sources.portraits import Portrait, frames_by_sequence, is_clip, near_duplicates, near_pairs
from litheseg.errors import listed

__all__ = ["likeness_findings"]

_Portraits = Mapping[str, Sequence[Portrait]]


def likeness_findings(portraits: _Portraits) -> Iterator[Finding]:
    """Copies within a split; images of a split that return, exactly or nearly, in another; sequences in two splits."""
    for split, found in portraits.items():
        first = {image.digest: image for image in reversed(found)}
        copies = [image.file for image in found if first[image.digest] is not image]
        if copies:
            yield make_finding("duplicate", f"images of '{split}' that are exact copies of others", copies)
        if groups := near_duplicates(list(first.values())):
            shown = " ~ ".join(image.file for image in groups[0][:2])
            message = f"images of '{split}' that nearly equal another one, in {len(groups)} groups, e.g. {shown}"
            yield make_finding("near-duplicate", message, [image.file for group in groups for image in group])
    for one, other in itertools.combinations(sorted(portraits, key=_rank), 2):
        yield from _leaks(one, portraits[one], other, portraits[other])
    for split in portraits:
        if split != "train" and portraits.get("train"):
            yield from _shared_sequences(portraits["train"], split, portraits[split])


def _rank(split: str) -> tuple[int, str]:
    order = ("train", "val", "test")
    return order.index(split) if split in order else len(order), split


def _leaks(one: str, left: Sequence[Portrait], other: str, right: Sequence[Portrait]) -> Iterator[Finding]:
    """Images of a split that are in another one, too."""
    held = {image.digest: image.file for image in right}
    exact = [image for image in left if image.digest in held]
    if exact:
        shown = f"{exact[0].file} = {held[exact[0].digest]}"
        yield make_finding(
            "leak", f"images of '{one}' that are in '{other}' too, e.g. {shown}", [image.file for image in exact]
        )
    near = [(a.file, b.file) for a, b in near_pairs(left, right) if a.digest != b.digest]
    if near:
        message = f"images of '{one}' that nearly equal one of '{other}', e.g. {near[0][0]} ~ {near[0][1]}"
        yield make_finding("near-leak", message, list(dict.fromkeys(file for file, _ in near)))


def _shared_sequences(train: Sequence[Portrait], split: str, other: Sequence[Portrait]) -> Iterator[Finding]:
    """Sequences of which a split has frames, while `train` has others of them."""
    ours, theirs = frames_by_sequence(train), frames_by_sequence(other)
    shared = [name for name in theirs if name in ours and is_clip([*ours[name], *theirs[name]])]
    if not shared:
        return
    count = sum(len(theirs[name]) for name in shared)
    shown = listed([f"'{name}': {len(theirs[name])} here, {len(ours[name])} in 'train'" for name in shared], 3)
    message = f"{count} of {len(other)} images of '{split}' are frames of sequences that 'train' has, too ({shown})"
    if len(theirs) == 1:
        numbers = [number for number, _ in theirs[shared[0]]]
        message += f", all of one sequence, frames {min(numbers)} to {max(numbers)}"
    finding = make_finding("shared-sequence", f"{message}; scores on them are too high", shared)
    if split == "val" and len(ours) > 1:
        best = max(shared, key=lambda name: len(ours[name]))
        sizes = listed([f"{name} ({len(ours[name])})" for name in sorted(ours)], 6)
        remedy = f"validate on a sequence that is not trained on: --data.leave_out {best}, then each of {sizes} in turn"
        finding = replace(finding, remedy=remedy)
    yield finding
