"""Labels that lie in mask files: read by a scheme, which is drafted from their values where nobody wrote one.

Usage:
    >>> labels = labelled_by(scheme, Path("masks/a.png"), max_pixels=10**8)
    >>> labels((480, 640)).dtype
    dtype('uint8')
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from litheseg.data.formats.drafting import MaskTally, count_values
from litheseg.masks.classes import LabelScheme
from litheseg.masks.reading import encode, read_image, read_raw_mask
from litheseg.progress import track

__all__ = ["draft_note", "drafted_scheme", "labelled_by", "read_labels"]


def labelled_by(scheme: LabelScheme, mask: Path, max_pixels: int) -> partial[np.ndarray]:
    """Reads the labels of a mask file, for `Annotated`."""
    return partial(_labels, scheme, mask, max_pixels)


def read_labels(scheme: LabelScheme, mask: Path | IO[bytes], max_pixels: int) -> np.ndarray:
    """The labels of a mask, uint8 H W: by its colours where the scheme is of colours, also those of a palette.

    Raises:
        DataError: a mask that cannot be read, or values that the scheme does not know.
    """
    values = read_raw_mask(mask, max_pixels=max_pixels)
    if scheme.encoding == "rgb" and values.ndim == 2:
        values = read_image(mask, max_pixels=max_pixels)
    return encode(values, scheme, str(mask))


def drafted_scheme(masks: Sequence[Path], max_pixels: int) -> tuple[LabelScheme, str]:
    """A class for each value in mask files, and what to say of that.

    Raises:
        DataError: as `count_values`.
    """
    drafted = count_values(track(masks, "reading masks"), max_pixels=max_pixels)
    return drafted.scheme(), draft_note(drafted)


def draft_note(drafted: MaskTally) -> str:
    """What to say of classes that are called by their values."""
    shown = "; ".join(f"{drafted.name(value)}: {drafted.about(value)}" for value in drafted.values)
    ignored = "".join(f"; {value} is ignored: {drafted.about(value)}" for value in drafted.ignored)
    return f"no list names the classes: rename them in classes.yaml ({shown}{ignored})"


def _labels(scheme: LabelScheme, mask: Path, max_pixels: int, _size: tuple[int, int]) -> np.ndarray:
    return read_labels(scheme, mask, max_pixels)
