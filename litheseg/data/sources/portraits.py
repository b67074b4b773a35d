"""Images that are alike: copies that were changed a little, and frames of one video or stack.

Copies that were changed a little are found by the difference hash: an image is shrunk to 9 x 8 grey pixels and each of
64 bits says whether a pixel is brighter than its right neighbour (Krawetz, "Kind of Like That", hackerfactor.com,
2013). They are verified on 32 x 32 thumbnails: consecutive video frames a second apart are not alike, but re-encoded,
brightened or resized copies are.

Sequences are seen in names (all before the number at the end) and in the images: those next to each other by their
numbers must be more alike than others of the sequence, which is so for the frames of a video and not for photographs
that a camera numbered. Compared are correlations of thumbnails, by the Mann-Whitney test.

Usage:
    >>> portraits = [Portrait.of(image, f"{name}.png", name) for name in ("a", "b")]
    >>> [[found.id for found in group] for group in near_duplicates(portraits)]
    [['a', 'b']]
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from litheseg.data.sources.splits import frame_of
from litheseg.masks.pictures import rgb_view

__all__ = ["Portrait", "clips", "frames_by_sequence", "is_clip", "near_duplicates", "near_pairs"]

_THUMB = 32  # edge in pixels of the thumbnail that verifies a match
_ALIKE_BITS = 8  # of 64; re-encoded copies differ in 0 to 3, CamVid frames a second apart mostly in more than 8
_ALIKE_LEVELS = 6.0  # mean grey levels between thumbnails of equal mean; CamVid's train and val differ in 27 and more
_ALIKE_BRIGHTNESS = 40  # grey levels between the means
_CHUNK = 2048  # images that are compared with all others at once
_FRAMES = 10  # images of a sequence that are enough to judge it
_MOST_FRAMES = 1000  # that are looked at
_ORDERED, _SIGMAS = 0.65, 3.0  # how often neighbours are more alike than others, and how far from chance that must be


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


def near_pairs(left: Sequence[Portrait], right: Sequence[Portrait]) -> Iterator[tuple[Portrait, Portrait]]:
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
    return [name for name, frames in frames_by_sequence(images).items() if is_clip(frames)]


def frames_by_sequence(images: Sequence[Portrait]) -> dict[str, list[tuple[int, Portrait]]]:
    """Images with their numbers, by sequence; those without a number are of none."""
    found = defaultdict[str, list[tuple[int, Portrait]]](list)
    for image in images:
        sequence, number = frame_of(image.id)
        if number is not None:
            found[sequence].append((number, image))
    return dict(found)


def is_clip(frames: Sequence[tuple[int, Portrait]]) -> bool:
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
