"""A data set divided anew: one video of its training images is the val split, or one of k folds of them.

Neighbouring frames of a video are nearly the same image, and a network that is scored on frames whose neighbours it was
trained on looks better than it is: `LeaveOut` scores a video that was not trained on. Of few images a val split says
little: over k folds each image is scored once, by a network that was trained without it (`Fold`).

Usage:
    >>> source = open_source("camvid", "data/camvid")
    >>> len(LeaveOut(source, "0016E5").samples("val"))
    204
    >>> [len(Fold(source, f"{index}/3").samples("val")) for index in (1, 2, 3)]
    [204, 101, 62]
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from litheseg.data.sources.base import FileSource, Pairing, Source
from litheseg.data.sources.splits import belongs, sequence_sizes
from litheseg.errors import DataError, listed

__all__ = ["Fold", "LeaveOut", "Redivided", "redivided"]

_MOST_NAMES = 6  # sequences that a message names


class Redivided(FileSource):
    """A data set whose val split is chosen from its training images; other splits are as they were.

    The data set's own val split is not in it; a part of the training images that was held out is trained on again.

    Args:
        source: the whole data set.
        option: the recipe's field that asks for it, for the message.

    Raises:
        DataError: a data set that makes its images itself.
    """

    def __init__(self, source: Source, option: str) -> None:
        if not isinstance(source, FileSource):
            raise DataError(f"data set '{source.name}' has no files to divide anew; leave {option} away")
        super().__init__(source.root, source.scheme, source.allow_unlabelled)
        self.name, self.licence, self.citation = source.name, source.licence, source.citation
        self.layout, self.max_pixels = source.layout, source.max_pixels
        self.source = source

    @abstractmethod
    def _chosen(self, ids: Sequence[str]) -> set[str]:
        """Which of the images are val."""

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return ("train", "val", *(split for split in self.source.splits() if split not in ("train", "val")))

    def _pair(self, split: str) -> Pairing:
        if split not in ("train", "val"):
            return self.source.pairing(split)
        whole = self._whole()
        held, wanted = self._chosen([sample.id for sample in whole.samples]), split == "val"
        chosen = (sample for sample in whole.samples if (sample.id in held) == wanted)
        return Pairing(tuple(replace(sample, split=split) for sample in chosen), refusal=whole.refusal)

    def _whole(self) -> Pairing:
        """All images that could be trained on."""
        train = self.source.pairing("train")
        if not self.source.holds_out:
            return train
        return Pairing((*train.samples, *self.source.pairing("val").samples), refusal=train.refusal)


class LeaveOut(Redivided):
    """A data set whose val split is one sequence of its training images.

    Args:
        source: the whole data set, of files.
        sequence: what the ids of the images to leave out begin with, up to a character that is no letter or digit.

    Raises:
        DataError: a data set that makes its images itself, no such sequence, or nothing beside it.
    """

    def __init__(self, source: Source, sequence: str) -> None:
        super().__init__(source, "data.leave_out")
        self.sequence = sequence
        ids = [sample.id for sample in self._whole().samples]
        inside = len(self._chosen(ids))
        if not inside:
            sizes = [f"{name or 'one without a name'} ({count})" for name, count in sequence_sizes(ids).items()]
            known = listed(sizes, _MOST_NAMES)
            raise DataError(f"no training image of {self.root} is of sequence '{sequence}'; there is {known}")
        if inside == len(ids):
            raise DataError(f"all {inside} training images of {self.root} are of sequence '{sequence}'; name one part")

    def _chosen(self, ids: Sequence[str]) -> set[str]:
        return {name for name in ids if belongs(name, self.sequence)}


class Fold(Redivided):
    """A data set whose val split is one of k folds of its training images (see `FileSource.folds`).

    Args:
        source: the whole data set, of files.
        fold: "2/3" for the second of three.

    Raises:
        DataError: a data set that makes its images itself, no such fold, or more folds than images.
    """

    def __init__(self, source: Source, fold: str) -> None:
        super().__init__(source, "data.fold")
        found = re.fullmatch(r"(\d+)/(\d+)", fold)
        self.number, self.count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= self.number <= self.count:
            raise DataError(f"'{fold}' is no fold; write 1/3, 2/3 and 3/3 for the three of three")

    def _chosen(self, ids: Sequence[str]) -> set[str]:
        assert isinstance(self.source, FileSource)
        return self.source.folds(ids, self.count)[self.number - 1]


def redivided(source: Source, leave_out: str | None, fold: str | None) -> Source:
    """The source as these two fields of a recipe have it.

    Raises:
        DataError: both are given, or one that is not possible.
    """
    if leave_out is not None and fold is not None:
        raise DataError("data.leave_out and data.fold both choose what is val; leave one of them away")
    if leave_out is not None:
        return LeaveOut(source, leave_out)
    return source if fold is None else Fold(source, fold)
