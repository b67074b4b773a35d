"""How alike the images of a data set are: groups of near duplicates, and sequences that are videos or stacks.

Every image is read once, in parallel threads; the answer is kept in the cache, and holds while the files stay as they
are. What counts as alike is said in `litheseg.data.sources.portraits`.

Usage:
    >>> alike = likeness_of(source.samples("train"), source.read_image)
    >>> alike.groups, alike.clips
    ((('burst_1', 'burst_2'),), ('drive',))
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np

from litheseg.data.sources.base import Sample
from litheseg.data.sources.portraits import Portrait, clips, near_duplicates
from litheseg.errors import DataError, LithesegError
from litheseg.files import cache_folder, write_text
from litheseg.machine import cores
from litheseg.progress import track

__all__ = ["Likeness", "likeness_of"]

_RULE = 1  # of what is alike; another one makes answers in the cache void


@dataclass(frozen=True)
class Likeness:
    """What is alike, by ids.

    Attributes:
        groups: images that nearly equal each other, two or more in each group.
        clips: sequences, as names suggest them, whose neighbours are more alike than others.
    """

    groups: tuple[tuple[str, ...], ...]
    clips: tuple[str, ...]


def likeness_of(samples: Sequence[Sample], read: Callable[[Sample], np.ndarray]) -> Likeness:
    """Look at images, or remember what was seen; one that cannot be read is like no other.

    Args:
        samples: with image files.
        read: gives an image, uint8 H W 3.
    """
    file = cache_folder("alike") / f"{_state(samples)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(file.read_text(encoding="utf-8"))
        return Likeness(tuple(map(tuple, known["groups"])), tuple(known["clips"]))

    def portrait(sample: Sample) -> Portrait | None:
        with suppress(DataError):
            return Portrait.of(read(sample), str(sample.image), sample.id)
        return None

    with ThreadPoolExecutor(cores()) as pool:
        seen = track(pool.map(portrait, samples), "looking for images that are alike", len(samples))
        portraits = [image for image in seen if image is not None]
    groups = tuple(tuple(sorted(image.id for image in group)) for group in near_duplicates(portraits))
    found = Likeness(groups, tuple(clips(portraits)))
    with suppress(LithesegError):  # without a cache it is looked at again
        write_text(file, json.dumps(asdict(found)) + "\n")
    return found


def _state(samples: Sequence[Sample]) -> str:
    """Of the files, as a name."""
    facts: list[str | int] = [_RULE]
    for sample in samples:
        assert sample.image is not None, "images of files"
        try:
            state = os.stat(sample.image)
            facts += [sample.id, os.path.abspath(sample.image), state.st_size, state.st_mtime_ns]
        except OSError:
            facts += [sample.id, "absent"]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
