"""Choose the labelled images (a partition of ids), and tell by their names which images are of one video.

A partition ranks ids by the SHA-256 of the random seed and the id, and takes the first ones. So it does not depend on
the order of the ids, the platform or Python's hash seed, and for one seed the 1/16 set lies inside the 1/8 set. Small
sets may miss a rare class; use a list file to choose by hand. The ratios 1/16, 1/8, 1/4 and 1/2 are those of Qin et
al., "Multi-granularity distillation scheme towards lightweight semi-supervised semantic segmentation", 2022; halves
round up, so that CamVid's 367 give 23, 46, 92 and 184.

Usage:
    >>> few = partition([sample.id for sample in source.samples("train")], ratio="1/16", seed=0)
    >>> len(few.labelled), len(few.unlabelled)
    (23, 344)
    >>> frame_of("0016E5_07959")
    ('0016E5', 7959)
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

from litheseg.errors import DataError, did_you_mean
from litheseg.files import atomic_path

__all__ = [
    "Partition",
    "belongs",
    "by_sequence",
    "frame_of",
    "partition",
    "ranked",
    "read_list",
    "sequence_sizes",
    "write_list",
]

_FRAME = re.compile(r"[^0-9A-Za-z]*[0-9]+$")  # the number at the end of a frame's name


@dataclass(frozen=True)
class Partition:
    """Two disjoint sets of ids, each sorted, that together are all of them."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]


def partition(
    ids: Iterable[str],
    *,
    ratio: str | float | None = None,
    count: int | None = None,
    list_file: str | Path | None = None,
    seed: int = 0,
) -> Partition:
    """Split ids by exactly one of a ratio, a count and a list file.

    Args:
        ids: all ids, in any order, without repetition.
        ratio: the labelled share in (0, 1], such as "1/16" or 0.125; the count is rounded, halves up.
        count: the number of labelled ids, from 1 to all.
        list_file: the labelled ids, one a line (see `read_list`).
        seed: chooses the ranks; has no effect on a list.

    Raises:
        DataError: repeated ids, not exactly one of the three, a count of none or of more than there are, unknown ids.
    """
    every = sorted(ids)
    for first, second in itertools.pairwise(every):
        if first == second:
            raise DataError(f"id '{first}' occurs twice; ids must differ to be split")
    if sum(option is not None for option in (ratio, count, list_file)) != 1:
        raise DataError("a split of labels needs exactly one of ratio, count and list_file")
    if list_file is not None:
        chosen = set(_listed_ids(Path(list_file), every))
    else:
        wanted = _count(ratio, len(every)) if ratio is not None else count
        chosen = _first_ranks(every, wanted, seed, "count" if ratio is None else f"ratio {ratio}")
    return Partition(tuple(key for key in every if key in chosen), tuple(key for key in every if key not in chosen))


def read_list(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a list file with their numbers (from 1); blank lines and those that start with "#" are left out.

    Raises:
        DataError: the file cannot be read, or lists nothing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"cannot read the list {path}: {error}; give a text file with one id a line") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not kept:
        raise DataError(f"the list {path} is empty; write one id a line")
    return kept


def write_list(path: str | Path, ids: Iterable[str]) -> None:
    """Write ids one a line, so that a partition can be kept and read again as a list file."""
    with atomic_path(path) as temporary:
        text = "".join(f"{key}\n" for key in ids)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def _count(ratio: str | float, total: int) -> int:
    try:
        # By its text: 0.1 means one tenth, not the nearest binary fraction.
        share = Fraction(str(ratio).replace(" ", ""))
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"ratio {ratio!r} is no number; write e.g. 1/16 or 0.125") from error
    if not 0 < share <= 1:
        raise DataError(f"ratio {ratio} is outside (0, 1]; write e.g. 1/16 or 0.125")
    return math.floor(share * total + Fraction(1, 2))


def _first_ranks(ids: Sequence[str], count: int | None, seed: int, origin: str) -> set[str]:
    if not isinstance(count, int) or isinstance(count, bool):
        raise DataError(f"count {count!r} is not a whole number")
    if not 1 <= count <= len(ids):
        raise DataError(f"{origin} asks for {count} labelled of {len(ids)} images; choose from 1 to {len(ids)}")
    return set(ranked(ids, seed)[:count])


def ranked(ids: Iterable[str], seed: int) -> list[str]:
    """Ids in an order that depends on nothing but themselves and the random seed."""
    return sorted(ids, key=lambda key: (hashlib.sha256(os.fsencode(f"{seed}:{key}")).digest(), key))


def _listed_ids(path: Path, ids: Sequence[str]) -> list[str]:
    known, chosen = set(ids), list[str]()
    for number, line in read_list(path):
        # Lists of other projects name files ("train/a.png trainannot/a.png") instead of stems.
        image = PurePosixPath(line.split()[0])
        key = next((key for key in (line, str(image), str(image.with_suffix("")), image.stem) if key in known), None)
        if key is None:
            hint = did_you_mean(line, ids) if len(ids) < 10_000 else ""
            hint = hint if "mean" in hint else ""
            raise DataError(f"{path}, line {number}: '{line}' is none of the {len(ids)} ids.{hint}")
        if key in chosen:
            raise DataError(f"{path}, line {number}: '{line}' is listed twice; remove one")
        chosen.append(key)
    return chosen


def belongs(name: str, sequence: str) -> bool:
    """Whether an id is of a sequence: "seq1_0007" and "seq1/0007" are of "seq1", "f007" of "f"; "seq10_0007" is not."""
    rest = name[len(sequence) :]
    return name.startswith(sequence) and (not rest[:1].isalnum() or (rest.isdigit() and not sequence[-1:].isdigit()))


def frame_of(name: str) -> tuple[str, int | None]:
    """The sequence that an id is of, and its number there; None for an id without a number at its end."""
    found = _FRAME.search(name)
    if found is None:
        return name, None
    return name[: found.start()], int(found[0].lstrip("".join(set(found[0]) - set("0123456789"))))


def by_sequence(ids: Iterable[str]) -> dict[str, list[str]]:
    """Ids by sequence, as names suggest it (see `frame_of`), sorted by name, and in each by number."""
    found = defaultdict[str, list[tuple[int, str]]](list)
    for name in ids:
        sequence, number = frame_of(name)
        found[sequence].append((-1 if number is None else number, name))
    return {sequence: [name for _, name in sorted(found[sequence])] for sequence in sorted(found)}


def sequence_sizes(ids: Iterable[str]) -> dict[str, int]:
    """Images by sequence, sorted by name."""
    return {sequence: len(names) for sequence, names in by_sequence(ids).items()}
