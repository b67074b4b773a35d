"""Judging on a sequence that was not trained on: one video is left out of the training images, and is the val split.

Neighbouring frames of a video are nearly the same image. A network that is scored on frames whose neighbours it was
trained on looks better than it is, and so does whatever was chosen by such scores. It lists only; files are read by
the data set itself.

Usage:
    >>> source = LeaveOut(open_source("camvid", "data/camvid"), "0016E5")
    >>> len(source.samples("train")), len(source.samples("val"))
    (163, 204)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from litheseg.data.source import FileSource, Pairing, Sample, Source
from litheseg.errors import DataError

__all__ = ["LeaveOut", "belongs", "sequence_sizes"]

_FRAME = re.compile(r"[^0-9A-Za-z]*[0-9]+$")  # the number at the end of a frame's name
_MOST_NAMES = 6  # sequences that a message names


class LeaveOut(FileSource):
    """A data set whose val split is one sequence of its training images; other splits are as they were.

    The data set's own val split is not in it. Where that is a part of the training images drawn by chance, those images
    count as training images again.

    Args:
        source: the whole data set, of files.
        sequence: what the ids of the images to leave out begin with, up to a character that is no letter or digit.

    Raises:
        DataError: a data set that makes its images itself, no such sequence, or nothing beside it.
    """

    def __init__(self, source: Source, sequence: str) -> None:
        if not isinstance(source, FileSource):
            raise DataError(f"data set '{source.name}' has no sequences; leave data.leave_out away")
        super().__init__(source.root, source.scheme, source.allow_unlabelled)
        self.name, self.licence, self.citation = source.name, source.licence, source.citation
        self.layout, self.source, self.sequence = source.layout, source, sequence
        ids = [sample.id for sample in self._whole().samples]
        inside = sum(belongs(name, sequence) for name in ids)
        if not inside:
            raise DataError(f"no training image of {self.root} is of sequence '{sequence}'; there is {_listed(ids)}")
        if inside == len(ids):
            raise DataError(f"all {inside} training images of {self.root} are of sequence '{sequence}'; name one part")

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return ("train", "val", *(split for split in self.source.splits() if split not in ("train", "val")))

    def read_image(self, sample: Sample) -> np.ndarray:
        """See `Source.read_image`."""
        return self.source.read_image(sample)

    def read_mask(self, sample: Sample) -> np.ndarray:
        """See `Source.read_mask`."""
        return self.source.read_mask(sample)

    def raw_mask(self, sample: Sample) -> np.ndarray:
        """See `Source.raw_mask`."""
        return self.source.raw_mask(sample)

    def _pair(self, split: str) -> Pairing:
        if split not in ("train", "val"):
            return self.source.pairing(split)
        whole, wanted = self._whole(), split == "val"
        chosen = (sample for sample in whole.samples if belongs(sample.id, self.sequence) == wanted)
        parts = Pairing.of(replace(sample, split=split) for sample in chosen)
        return replace(parts, refusal=whole.refusal)

    def _whole(self) -> Pairing:
        """All images that could be trained on."""
        train = self.source.pairing("train")
        if not self.source.holds_out:
            return train
        return Pairing.of((*train.samples, *self.source.pairing("val").samples), refusal=train.refusal)


def belongs(name: str, sequence: str) -> bool:
    """Whether an id is of a sequence: "seq1_0007" and "seq1/0007" are of "seq1", "seq10_0007" is not."""
    return name.startswith(sequence) and not name[len(sequence) : len(sequence) + 1].isalnum()


def sequence_sizes(ids: Iterable[str]) -> dict[str, int]:
    """Images by sequence, as names suggest it: an id without the number at its end; sorted by name."""
    return dict(sorted(Counter(_FRAME.sub("", name) for name in ids).items()))


def _listed(ids: Iterable[str]) -> str:
    sizes = sequence_sizes(ids)
    named = ", ".join(f"{name or 'one without a name'} ({count})" for name, count in list(sizes.items())[:_MOST_NAMES])
    return named + (f" and {len(sizes) - _MOST_NAMES} more" if len(sizes) > _MOST_NAMES else "")
