"""Images that are alike: copies, images of one split that return in another, and frames of one sequence in both.

Copies that were changed a little are found by the difference hash: an image is shrunk to 9 x 8 grey pixels and each of
64 bits says whether a pixel is brighter than its right neighbour (Krawetz, "Kind of Like That", hackerfactor.com,
2013). They are verified on 32 x 32 thumbnails: consecutive video frames a second apart are not alike, but re-encoded,
brightened or resized copies are.

Sequences are seen in names (all before the number at the end) and in the images: those next to each other by their
numbers must be more alike than others of the sequence, which is so for the frames of a video and not for photographs
that a camera numbered. Compared are correlations of thumbnails, by the Mann-Whitney test.

Usage:
    >>> portraits = {"train": [Portrait.of(image, "a.png", "a")], "val": [Portrait.of(image, "b.png", "b")]}
    >>> [item.code for item in likeness_findings(portraits)]
    ['leak']
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from litheseg.data.findings import Finding, make_finding
from litheseg.data.splits import frame_of
from litheseg.errors import listed
from litheseg.masks.pictures import rgb_view

__all__ = ["Portrait", "clips", "likeness_findings", "near_duplicates"]

_THUMB = 32  # edge in pixels of the thumbnail that verifies a match
_ALIKE_BITS = 8  # of 64; re-encoded copies differ in 0 to 3, CamVid frames a second apart mostly in more than 8
_ALIKE_LEVELS = 6.0  # mean grey levels between thumbnails of equal mean; CamVid's train and val differ in 27 and more
_ALIKE_BRIGHTNESS = 40  # grey levels between the means
_CHUNK = 2048  # images that are compared with all others at once
_FRAMES = 10  # images of a sequence that are enough to judge it
_MOST_FRAMES = 1000  # that are looked at
_ORDERED, _SIGMAS = 0.65, 3.0  # how often neighbours are more alike than others, and how far from chance that must be

_Portraits = Mapping[str, Sequence["Portrait"]]


@dataclass(frozen=True)
class Portrait:
    """What an image looks like, small enough to be kept for all of a data set.

    Attributes:
        file: its path, or another name for messages.
        id: of the sample.
        digest: of its pixels.
        bits: bool 64, the difference hash.
        thumb: float32 32 x 32, grey, 0..255.
    """

    file: str
    id: str
    digest: str
    bits: np.ndarray
    thumb: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, file: str, name: str) -> Portrait:
        """Of an image, H W C."""
        size = (image.shape[0], image.shape[1])
        digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(size).encode()).hexdigest()
        grey = Image.fromarray(rgb_view(image)).convert("L")
        small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.float32)
        thumb = np.asarray(grey.resize((_THUMB, _THUMB), Image.Resampling.BOX), dtype=np.float32)
        return cls(file, name, digest, (small[:, :-1] > small[:, 1:]).ravel(), thumb)


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
    near = [(a.file, b.file) for a, b in _alike(left, right) if a.digest != b.digest]
    if near:
        message = f"images of '{one}' that nearly equal one of '{other}', e.g. {near[0][0]} ~ {near[0][1]}"
        yield make_finding("near-leak", message, list(dict.fromkeys(file for file, _ in near)))


def _alike(left: Sequence[Portrait], right: Sequence[Portrait]) -> Iterator[tuple[Portrait, Portrait]]:
    """Pairs of near equal difference hashes and thumbnails."""
    thumbs = np.array([image.thumb for image in right])
    for start, differing in _differing_bits(left, right):
        for i, row in enumerate(differing, start):
            for j in _verified(left[i].thumb, thumbs, np.flatnonzero(row <= _ALIKE_BITS)):
                yield left[i], right[j]


def near_duplicates(images: Sequence[Portrait]) -> list[list[Portrait]]:
    """Groups of two or more that nearly equal each other, over others of the group if need be."""
    thumbs, group = np.array([image.thumb for image in images]), np.arange(len(images))
    for start, differing in _differing_bits(images, images):
        for i, row in enumerate(differing, start):
            # Those that are known to be of the group are not looked at again, so that many copies cost no more.
            near = np.flatnonzero((row <= _ALIKE_BITS) & (group != group[i]))
            joined = group[_verified(images[i].thumb, thumbs, near)]
            if joined.size:
                group[np.isin(group, joined)] = group[i]
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted(([images[i] for i in part] for part in parts if len(part) > 1), key=lambda found: found[0].id)


def _differing_bits(left: Sequence[Portrait], right: Sequence[Portrait]) -> Iterator[tuple[int, np.ndarray]]:
    """How many bits differ, float32 rows x all of `right`, some rows of `left` at once; with the first row's index."""
    if not left or not right:
        return
    signs = np.array([image.bits for image in right], dtype=np.float32) * 2 - 1
    for start in range(0, len(left), _CHUNK):
        chunk = np.array([image.bits for image in left[start : start + _CHUNK]], dtype=np.float32) * 2 - 1
        # The product of two vectors of signs counts equal bits minus different bits.
        yield start, (64 - chunk @ signs.T) / 2


def _verified(thumb: np.ndarray, thumbs: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Those of the indices `near` whose thumbnails nearly equal this one."""
    if not near.size:
        return near
    differences = thumb - thumbs[near]
    offsets = differences.mean((1, 2), keepdims=True)
    alike = np.abs(differences - offsets).mean((1, 2)) < _ALIKE_LEVELS
    return near[alike & (np.abs(offsets.ravel()) < _ALIKE_BRIGHTNESS)]


def clips(images: Sequence[Portrait]) -> list[str]:
    """Sequences, by names, whose neighbours by number are more alike than others: frames of a video, slices."""
    return [name for name, frames in _by_sequence(images).items() if _is_sequence(frames)]


def _shared_sequences(train: Sequence[Portrait], split: str, other: Sequence[Portrait]) -> Iterator[Finding]:
    """Sequences of which a split has frames, while `train` has others of them."""
    ours, theirs = _by_sequence(train), _by_sequence(other)
    shared = [name for name in theirs if name in ours and _is_sequence([*ours[name], *theirs[name]])]
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


def _by_sequence(images: Sequence[Portrait]) -> dict[str, list[tuple[int, Portrait]]]:
    """Images with their numbers, by sequence; those without a number are of none."""
    found = defaultdict[str, list[tuple[int, Portrait]]](list)
    for image in images:
        sequence, number = frame_of(image.id)
        if number is not None:
            found[sequence].append((number, image))
    return dict(found)


def _is_sequence(frames: Sequence[tuple[int, Portrait]]) -> bool:
    """Whether neighbours by number are more alike than others."""
    if len(frames) < _FRAMES:
        return False
    ordered = [image for _, image in sorted(frames, key=lambda frame: frame[0])][:_MOST_FRAMES]
    thumbs = np.array([image.thumb.ravel() - image.thumb.mean() for image in ordered])
    thumbs /= np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-6)
    alike = thumbs @ thumbs.T
    near = np.sort(np.diag(alike, 1))
    far = np.sort(alike[np.triu_indices(len(ordered), 2)])
    below = (np.searchsorted(far, near, side="left") + np.searchsorted(far, near, side="right")).mean() / 2
    share = below / len(far)
    # The far pairs share their images, so that only these are counted as independent.
    spread = math.sqrt((2 * len(near) + 1) / (12 * len(near) ** 2))
    return bool(share > _ORDERED and share - 0.5 > _SIGMAS * spread)
