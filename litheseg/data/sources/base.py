"""What every data set can do: name its splits, list the samples of a split, and read an image or a mask.

A `Source` does not resize, cache, batch or augment (see `datamodule`). `FileSource` is the base of those that lie on
disk: it reads through a `LabelScheme`, and a subclass only says which files belong to a split (a `Pairing`).

Usage:
    >>> source = open_source("camvid", "data/camvid")
    >>> sample = source.samples("train")[0]
    >>> image, mask = source.read_image(sample), source.read_mask(sample)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from litheseg.data.sources.hold_out import Holding
from litheseg.errors import DataError, did_you_mean, listed
from litheseg.masks import reading
from litheseg.masks.classes import Classes, LabelScheme
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.opening import MAX_PIXELS

__all__ = [
    "IMAGE_FOLDERS",
    "IMAGE_SUFFIXES",
    "MASK_FOLDERS",
    "DuplicateStemsError",
    "FileSource",
    "Pairing",
    "Sample",
    "Source",
    "existing_folder",
    "find_images",
    "is_image",
    "join",
    "pair_up",
    "spread",
]

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
"""Usual names of folders of images, in lower case."""
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "gt")
"""Usual names of folders of masks, in lower case."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".npy")
"""Endings of image files, in lower case."""


class DuplicateStemsError(DataError):
    """Files in one folder that differ in their endings only, so that their stem is ambiguous.

    Attributes:
        pairs: (file, the one before it of the same stem), all of them.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        self.pairs = tuple(pairs)
        shown = listed([f"{path} and {first.name}" for path, first in self.pairs])
        times = f" {len(self.pairs)} times" if len(self.pairs) > 1 else ""
        super().__init__(f"files have the same stem{times}: {shown}; keep one of each")


@dataclass(frozen=True)
class Sample:
    """One image and its mask.

    Attributes:
        id: unique in its split; does not depend on where the data lies.
        image: the image file; None where the source makes images itself.
        mask: the mask file; None where there is none (unlabelled) or the source makes masks itself.
        split: "train", "val", ...
    """

    id: str
    image: Path | None
    mask: Path | None
    split: str

    @property
    def labelled(self) -> bool:
        """Whether it has a mask; a sample whose source makes images itself does."""
        return self.mask is not None or self.image is None


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most so many samples, evenly spread from the first to the last."""
    positions = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[position] for position in positions]


@dataclass(frozen=True)
class Pairing:
    """Which files of a split belong together, and which have no partner.

    Attributes:
        found: images with or without a mask.
        masks: masks without an image.
        missing: list entries whose files do not exist, with their lines where that helps.
        refusal: why the split cannot be used as it is; "" where it can.
    """

    found: tuple[Sample, ...]
    masks: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def pairs(self) -> tuple[Sample, ...]:
        """Images with masks."""
        return tuple(sample for sample in self.found if sample.mask is not None)

    @property
    def images(self) -> tuple[Sample, ...]:
        """Images without a mask."""
        return tuple(sample for sample in self.found if sample.mask is None)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All images, sorted by id."""
        return tuple(sorted(self.found, key=lambda sample: sample.id))


class Source(ABC):
    """A data set.

    Attributes:
        name: as in `litheseg.data.SOURCES`, or as its own class file says.
        classes: the classes that its masks hold.
        licence: the terms of use, in one line.
        citation: the publication to name, in one line.
    """

    name: str
    classes: Classes
    licence: str
    citation: str

    @property
    def images(self) -> ImageFormat:
        """What the images are: channels and type, with the usual mean and standard deviation."""
        return ImageFormat()

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that are present, e.g. ("train", "val")."""

    @abstractmethod
    def samples(self, split: str) -> tuple[Sample, ...]:
        """The samples of a split, sorted by id.

        Raises:
            DataError: no such split, an empty one, or an image or mask without its partner.
        """

    @abstractmethod
    def read_image(self, sample: Sample) -> np.ndarray:
        """Decode an image: H W C as `images` says, EXIF orientation applied.

        Raises:
            DataError: the file is missing, truncated, no image, or of another format than the first.
        """

    @abstractmethod
    def read_mask(self, sample: Sample) -> np.ndarray:
        """Decode a mask: uint8 H W, train ids, 255 where ignored (a mask may be all ignored).

        Raises:
            DataError: an unlabelled sample, an unreadable file, a size that is not the image's, unknown labels.
        """

    @abstractmethod
    def raw_mask(self, sample: Sample) -> np.ndarray:
        """Decode a mask as it lies in the file: integers H W, or uint8 H W 3 where the file holds colours.

        Raises:
            DataError: an unlabelled sample or an unreadable file.
        """


class FileSource(Source):
    """A data set of files; a subclass finds them.

    Attributes:
        layout: where the files of a split are, with "{split}" for its name; for messages.
        max_pixels: of an image or a mask, width times height by its header; a larger one is an error.

    Args:
        root: an existing folder.
        scheme: what the values in the mask files mean.
        allow_unlabelled: let images without a mask be samples with `mask=None`; otherwise they are errors.

    Raises:
        DataError: `root` is no folder.
    """

    layout = ""
    max_pixels = MAX_PIXELS

    def __init__(self, root: str | Path, scheme: LabelScheme, allow_unlabelled: bool = False) -> None:
        self.root = existing_folder(root)
        self.scheme = scheme
        self.classes = scheme.classes
        self.allow_unlabelled = allow_unlabelled
        self._samples: dict[str, tuple[Sample, ...]] = {}

    @property
    def images(self) -> ImageFormat:
        """See `Source.images`: what the first image is that can be read."""
        return self._like[0]

    @cached_property
    def _like(self) -> tuple[ImageFormat, Path | None]:
        """The format of the images, and the file that it is taken from."""
        for split in self.splits():
            with suppress(DataError):  # which says so itself when it is used
                for sample in self._pair(split).found:
                    with suppress(DataError):
                        return ImageFormat.of(self._decoded(sample)), sample.image
        return ImageFormat(), None

    @property
    def holds_out(self) -> bool:
        """Whether the val split is a part of the training images."""
        return False

    def folds(self, ids: Sequence[str], count: int) -> list[set[str]]:
        """Training images in folds of about equal size; sequences, as names suggest them, stay together if they can.

        Raises:
            DataError: fewer images than folds, or fewer than two folds.
        """
        return Holding("sequences").folds(ids, count)

    @abstractmethod
    def _pair(self, split: str) -> Pairing:
        """The files of a split that is present, as they are now; see `pairing`."""

    def pairing(self, split: str) -> Pairing:
        """All files of a split, also of one that `samples` refuses; the folders are read anew.

        Raises:
            DataError: no such split, two files of one id, or a list that cannot be read.
        """
        if split not in self.splits():
            hint = did_you_mean(split, self.splits())
            if self.layout and "Did you mean" not in hint:
                hint += f" Its files would be in {self.layout.format(split=split)}."
            raise DataError(f"{self.root} has no split '{split}'.{hint}")
        return self._pair(split)

    def samples(self, split: str) -> tuple[Sample, ...]:
        """See `Source.samples`; the folders are read once."""
        if split not in self._samples:
            pairing = self.pairing(split)
            if pairing.refusal:
                raise DataError(pairing.refusal)
            if not pairing.found:
                raise DataError(f"split '{split}' of {self.root} is empty; add images or leave the split out")
            self._samples[split] = pairing.samples
        return self._samples[split]

    def read_image(self, sample: Sample) -> np.ndarray:
        """See `Source.read_image`."""
        return self.images.check(self._decoded(sample), sample.image, self._like[1])

    def _decoded(self, sample: Sample) -> np.ndarray:
        """An image of any format."""
        if sample.image is None:
            raise DataError(f"sample '{sample.id}' has no image file; take samples from this source's samples()")
        return reading.read_image(sample.image, max_pixels=self.max_pixels)

    def read_mask(self, sample: Sample) -> np.ndarray:
        """See `Source.read_mask`."""
        return reading.read_mask(_mask_path(sample), self.scheme, sample.image, max_pixels=self.max_pixels)

    def raw_mask(self, sample: Sample) -> np.ndarray:
        """See `Source.raw_mask`."""
        return reading.read_raw_mask(_mask_path(sample), max_pixels=self.max_pixels)


def existing_folder(root: str | Path, remedy: str = "") -> Path:
    """`root` with `~` expanded.

    Args:
        root: the folder.
        remedy: what helps besides another folder, for the message.

    Raises:
        DataError: it is no folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise DataError(f"data folder {path} {state}; give the folder that holds the data set{remedy}")
    return path


def find_images(
    folder: Path, *, recursive: bool = False, suffix: str = "", again: list[tuple[Path, Path]] | None = None
) -> dict[str, Path]:
    """The image files in a folder by id: the path below `folder` without its ending, "/" between folders.

    Hidden files (and what macOS leaves as `._a.png`) and files of other types are passed over.

    Args:
        folder: the folder; a missing one holds nothing.
        recursive: look into its folders too.
        suffix: what stems must end with, and ids do not, e.g. "_mask".
        again: receives each duplicate file with the earlier file of its id; None to raise.

    Raises:
        DuplicateStemsError: several files of one id, such as a.png and a.jpg.
    """
    found: dict[str, Path] = {}
    twice: list[tuple[Path, Path]] = []
    for path in sorted(folder.rglob("*") if recursive else folder.glob("*")):
        parts = path.relative_to(folder).parts
        if not is_image(path) or any(part.startswith(".") for part in parts):
            continue
        if path.stem.endswith(suffix):
            key = "/".join([*parts[:-1], path.stem.removesuffix(suffix)])
            if found.setdefault(key, path) is not path:
                twice.append((path, found[key]))
    if twice and again is None:
        raise DuplicateStemsError(twice)
    if again is not None:
        again += twice
    return found


def is_image(path: Path) -> bool:
    """Whether it is a file whose ending is an image's, and no hidden one."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def pair_up(
    images: Mapping[str, Path], masks: Mapping[str, Path], split: str, *, allow_unlabelled: bool = False
) -> Pairing:
    """Join images and masks of equal id; masks without an image are refused and, unless allowed, the reverse."""
    orphans, lone, refusal = sorted(masks.keys() - images.keys()), sorted(images.keys() - masks.keys()), ""
    if orphans:
        more = f" (nor have {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        refusal = f"{masks[orphans[0]]} has no image of the same stem{more}; add the image or remove the mask"
    elif lone and not allow_unlabelled:
        more = f" (nor have {len(lone) - 1} more)" if len(lone) > 1 else ""
        refusal = (
            f"{images[lone[0]]} has no mask of the same stem{more}; add the mask, remove the image, or pass "
            "allow_unlabelled=True to use such images without labels"
        )
    return join(images.keys() | masks.keys(), images, masks, split, refusal)


def join(
    ids: Iterable[str], images: Mapping[str, Path], masks: Mapping[str, Path], split: str, refusal: str = ""
) -> Pairing:
    """The files of the given ids, sorted; other files in the folders are ignored."""
    ids = sorted(ids)
    return Pairing(
        tuple(Sample(key, images[key], masks.get(key), split) for key in ids if key in images),
        tuple(masks[key] for key in ids if key in masks and key not in images),
        tuple(key for key in ids if key not in masks and key not in images),
        refusal,
    )


def _mask_path(sample: Sample) -> Path:
    if sample.mask is None:
        raise DataError(f"sample '{sample.id}' ({sample.image}) has no mask; use it as an unlabelled image only")
    return sample.mask
