"""What a data set is like, as far as a plan depends on it: how many images, how large, what is in them and how small.

Masks are measured at their own size. The thickness of a class is twice its area over the length of its outline: of a
strip, how wide it is; thin parts decide how far images may be shrunk. nnU-Net's fingerprint (Isensee et al., Nature
Methods 2021) is the idea; what it holds is ours.

Usage:
    >>> fingerprint = take_fingerprint(open_source("auto", "data/mine"))
    >>> fingerprint.size, fingerprint.rarest.name
    ((360, 480), 'pedestrian')
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from litheseg.data.sources.base import FileSource, Sample, Source
from litheseg.data.sources.likeness import Likeness, likeness_of
from litheseg.data.sources.splits import sequence_sizes
from litheseg.errors import DataError
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.masks.pictures import rgb_view
from litheseg.progress import track

__all__ = ["ClassFacts", "Fingerprint", "take_fingerprint"]

_MOST_MEASURED = 200  # images; of more, that many are measured, evenly spread
_FEWEST_ALIKE = 5  # images, from which it can be seen whether they have an up
_ALIKE_GREY, _ALIKE_CLASS = 0.25, 0.5  # largest difference of the halves: in standard deviations; of half a class


@dataclass(frozen=True)
class ClassFacts:
    """One class in the labelled training images.

    Attributes:
        name: of the class.
        share: of the labelled pixels, in [0, 1].
        images: that show it, of those measured.
        thickness: in pixels; 0 where there is none.
    """

    name: str
    share: float
    images: int
    thickness: float


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers.

    Attributes:
        train, val, unlabelled: images of each kind; `unlabelled` are those without a mask, and others that are given.
        measured: images whose masks were measured.
        size: the median height and width of the training images.
        sizes: how many different sizes there are.
        classes: by id.
        brightness: standard deviation of the images' mean grey value, over its mean; 0 of images that are
            not RGB of 8 bits.
        upright: whether images have an up, as photographs of streets have: False where the upper and the lower halves
            are alike in brightness and in every class, as of microscopes and of drones that look down.
        sequences: labelled images by sequence, as names suggest it.
        holds_out: whether val is a part of the training images.
        clips: the sequences whose neighbours are alike, as videos and stacks are; looked for where val is held out.
        groups: the ids of each group of near duplicates; likewise.
        shown: the ids of the classes that each image shows, by the image's id, where val is held out and every
            image is labelled and was measured.
        channels, dtype: of the images.
    """

    train: int
    val: int
    unlabelled: int
    measured: int
    size: tuple[int, int]
    sizes: int
    classes: tuple[ClassFacts, ...]
    brightness: float
    sequences: dict[str, int]
    holds_out: bool
    clips: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    shown: dict[str, tuple[int, ...]] = field(default_factory=dict)
    upright: bool = True
    channels: int = 3
    dtype: str = "uint8"

    @property
    def labelled(self) -> int:
        """Images that may be trained on or held out."""
        return self.train + self.val * self.holds_out

    @property
    def rarest(self) -> ClassFacts:
        """The class with the fewest pixels, of those that occur."""
        return min((c for c in self.classes if c.images), key=lambda c: c.share)

    @property
    def thinnest(self) -> ClassFacts:
        """The class with the thinnest parts, of those that occur."""
        return min((c for c in self.classes if c.images), key=lambda c: c.thickness)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fingerprint:
        """What `to_dict` gave."""
        classes = tuple(ClassFacts(**entry) for entry in values["classes"])
        lists = {name: tuple(values.get(name, ())) for name in ("size", "clips")}
        groups = tuple(map(tuple, values.get("groups", ())))
        shown = {name: tuple(found) for name, found in values.get("shown", {}).items()}
        return cls(**{**values, **lists, "classes": classes, "groups": groups, "shown": shown})


def take_fingerprint(source: Source, *, unlabelled: int = 0) -> Fingerprint:
    """Measure a data set.

    Args:
        source: with a train split; val may be missing.
        unlabelled: further images without labels.

    Raises:
        DataError: no labelled training image, or one that cannot be read.
    """
    samples = source.samples("train")
    labelled = [sample for sample in samples if sample.labelled]
    if not labelled:
        raise DataError(f"{source.name} has no labelled training images; label some, or import their masks")
    held = isinstance(source, FileSource) and source.holds_out
    every = [*labelled, *(sample for sample in source.samples("val") if sample.labelled)] if held else labelled
    step = max(1, -(-len(every) // _MOST_MEASURED))
    chosen = every[::step]
    measured = [_measure(source, sample, len(source.classes)) for sample in track(chosen, "measuring images")]
    greys = [(one.grey[0] + one.grey[1]) / 2 for one in measured]
    shapes = [one.shape for one in measured]
    alike = likeness_of(every, source.read_image) if held else Likeness((), ())
    known = zip(chosen, measured, strict=True) if held and step == 1 and len(labelled) == len(samples) else ()
    spread = statistics.pstdev(greys) / max(statistics.fmean(greys), 1e-6)
    return Fingerprint(
        train=len(labelled),
        val=len(source.samples("val")) if "val" in source.splits() else 0,
        unlabelled=len(samples) - len(labelled) + unlabelled,
        measured=len(measured),
        size=(int(statistics.median(h for h, _ in shapes)), int(statistics.median(w for _, w in shapes))),
        sizes=len(set(shapes)),
        classes=_classes(source.classes.names, [one.classes for one in measured]),
        brightness=spread if source.images.is_rgb8 else 0.0,
        sequences=sequence_sizes(sample.id for sample in every),
        holds_out=held,
        clips=alike.clips,
        groups=alike.groups,
        shown={sample.id: tuple(one.classes) for sample, one in known},
        upright=_upright(measured),
        channels=source.images.channels,
        dtype=source.images.dtype,
    )


@dataclass(frozen=True)
class _Parts:
    """One class in one mask, in pixels; `upper` are those of the upper half."""

    pixels: int
    upper: int
    outline: int


@dataclass(frozen=True)
class _Measured:
    """One image: height and width, the classes that occur, the mean of its upper and lower half, and the spread."""

    shape: tuple[int, int]
    classes: dict[int, _Parts]
    grey: tuple[float, float]
    spread: float


def _measure(source: Source, sample: Sample, classes: int) -> _Measured:
    image, mask = source.read_image(sample), source.read_mask(sample)
    found = (int(index) for index in np.unique(mask) if index != IGNORE_INDEX and index < classes)
    height, width = mask.shape
    seen = rgb_view(image)[::4, ::4]
    upper, lower = np.array_split(seen, 2)
    grey = (float(upper.mean()), float((lower if lower.size else upper).mean()))
    parts = {index: _parts(mask == index) for index in found}
    return _Measured((height, width), parts, grey, float(seen.std()))


def _upright(images: Sequence[_Measured]) -> bool:
    """Whether the halves of the images differ, or may differ: within two standard errors of what was measured."""
    if len(images) < _FEWEST_ALIKE:
        return True
    usual = max(statistics.fmean(image.spread for image in images), 1e-6)
    if _at_most([(image.grey[0] - image.grey[1]) / usual for image in images]) > _ALIKE_GREY:
        return True
    for index in {index for image in images for index in image.classes}:
        parts = [image.classes.get(index, _Parts(0, 0, 0)) for image in images]
        half = statistics.fmean(part.pixels for part in parts) / 2
        if _at_most([(2 * part.upper - part.pixels) / half for part in parts]) > _ALIKE_CLASS:
            return True
    return False


def _at_most(differences: Sequence[float]) -> float:
    """How far from 0 their mean may be."""
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return abs(statistics.fmean(differences)) + 2 * error


def _parts(inside: np.ndarray) -> _Parts:
    framed = np.pad(inside, 1)
    outline = int((framed[1:] != framed[:-1]).sum() + (framed[:, 1:] != framed[:, :-1]).sum())
    return _Parts(int(inside.sum()), int(inside[: len(inside) // 2].sum()), outline)


def _classes(names: Sequence[str], images: Sequence[dict[int, _Parts]]) -> tuple[ClassFacts, ...]:
    total = sum(parts.pixels for image in images for parts in image.values())
    result = []
    for index, name in enumerate(names):
        found = [image[index] for image in images if index in image]
        pixels, outline = sum(p.pixels for p in found), sum(p.outline for p in found)
        thickness = 2 * pixels / outline if outline else 0.0
        share = pixels / total if total else 0.0
        result.append(ClassFacts(name, share, len(found), thickness))
    return tuple(result)
