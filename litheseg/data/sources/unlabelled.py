"""Find the unlabelled images of a run: the rest of a data set, or any folder of images.

No mask is read. Images that are also labelled, or in the validation or test split, are refused: training on them
would inflate the scores.

Usage:
    >>> few = partition([sample.id for sample in source.samples("train")], ratio="1/8")
    >>> unlabelled = find_unlabelled("rest", source, few.labelled)
    >>> unlabelled = find_unlabelled("data/dashcam", source)  # beside all labels
    >>> unlabelled = find_unlabelled("drive.mp4:10", source)  # every tenth frame of a video
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litheseg.data.sources.base import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    FileSource,
    Sample,
    Source,
    existing_folder,
    find_images,
)
from litheseg.data.sources.clips import parse_clip, write_frames
from litheseg.errors import DataError
from litheseg.masks import reading
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.opening import MAX_PIXELS

__all__ = ["Unlabelled", "find_unlabelled"]

_IMAGE_FOLDERS = {*IMAGE_FOLDERS, "jpegimages", "leftimg8bit"}
_MASK_FOLDERS = {
    *MASK_FOLDERS,
    *("gtfine", "gtcoarse", "segmentationclass", "segmentationclassaug", "segmentationobject"),
}


@dataclass(frozen=True)
class Unlabelled:
    """Images to learn from without their labels.

    Attributes:
        samples: the images; their masks are ignored.
        source: decodes them; None where they are files of no data set.
        images: the format of such files.
        max_pixels: of such a file, width times height.
    """

    samples: tuple[Sample, ...]
    source: Source | None = None
    images: ImageFormat = ImageFormat()  # noqa: RUF009 - frozen
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    def read_image(self, sample: Sample) -> np.ndarray:
        """Decode an image: H W C, upright.

        Raises:
            DataError: the file is missing, truncated, no image, or of another format.
        """
        if self.source is not None:
            return self.source.read_image(sample)
        assert sample.image is not None
        return reading.read_image(sample.image, self.images, max_pixels=self.max_pixels)


def find_unlabelled(
    where: str | Path,
    source: Source,
    labelled_ids: Collection[str] | None = None,
) -> Unlabelled:
    """Find the unlabelled images of a run.

    Args:
        where: "rest" for the training images of `source` that are not labelled; or a folder: all images in it and
            below, those of images/ alone where masks/ lies beside it, folders of masks being passed over; or a video:
            one frame a second, or every tenth of "drive.mp4:10".
        source: the labelled data set.
        labelled_ids: of the labelled training images; None for all that have a mask.

    Raises:
        DataError: no images, or some that are labelled too or lie in the validation or test split: the same files, or
            files of the same content.
    """
    training = source.samples("train")
    labelled = [s for s in training if s.labelled and (labelled_ids is None or s.id in labelled_ids)]
    if str(where) == "rest":
        chosen = {sample.id for sample in labelled}
        found = Unlabelled(tuple(sample for sample in training if sample.id not in chosen), source)
        if not found.samples:
            raise DataError(
                f"all {len(training)} training images are labelled, which leaves none unlabelled; label fewer of them "
                "(such as 1/8), or name a folder of other images"
            )
    else:
        clip = parse_clip(where)
        found = Unlabelled(
            _images_in(write_frames(clip) if clip else where),
            images=source.images,
            max_pixels=getattr(source, "max_pixels", MAX_PIXELS),
        )
    _refuse_shared(found.samples, labelled, "a labelled training image")
    for split in sorted({"val", "test"} & set(source.splits())):
        # Also of a split that has no masks.
        others = source.pairing(split).samples if isinstance(source, FileSource) else source.samples(split)
        _refuse_shared(found.samples, others, f"an image of split '{split}', which measures the result")
    return found


def _images_in(where: str | Path) -> tuple[Sample, ...]:
    folder = existing_folder(where, ", or 'rest' for the training images without labels")
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    images = [path for path in inside if path.name.lower() in _IMAGE_FOLDERS]
    layout = images and any(path.name.lower() in _MASK_FOLDERS for path in inside)
    holds_masks = functools.cache(_holds_masks)
    samples = [
        Sample(path.relative_to(folder).with_suffix("").as_posix(), path, None, "unlabelled")
        for base in (images if layout else [folder])
        for path in find_images(base, recursive=True).values()
        if not any(holds_masks(parent) for parent in path.parents if parent != base and parent.is_relative_to(base))
    ]
    if not samples:
        raise DataError(f"{folder} holds no images (.png, .jpg, .tif, ...); add some, or name another folder")
    return tuple(samples)


def _holds_masks(folder: Path) -> bool:
    """Whether a folder is one of masks: by its name, if images lie beside it."""
    name, beside = folder.name.lower(), {path.name.lower() for path in folder.parent.iterdir() if path.is_dir()}
    if name.endswith("annot") and name.removesuffix("annot") in beside:
        return True
    return name in _MASK_FOLDERS and bool(beside & _IMAGE_FOLDERS or find_images(folder.parent))


def _refuse_shared(ours: Sequence[Sample], others: Sequence[Sample], role: str) -> None:
    """Refuse unlabelled images that are also in `others`."""
    pairs = _equal_files(*([s.image for s in samples if s.image is not None] for samples in (ours, others)))
    if not pairs:
        return
    one, other = pairs[0]
    same = "is" if one.resolve() == other.resolve() else f"has the same content as {other}:"
    more = f" ({len(pairs) - 1} more are shared)" if len(pairs) > 1 else ""
    raise DataError(f"unlabelled image {one} {same} {role}{more}; take it out of the unlabelled images")


def _equal_files(ours: Iterable[Path], others: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of one file, or of files of the same content; only files of equal size are read."""
    by_place, by_size = dict[Path, Path](), defaultdict[int, list[Path]](list)
    for path in others:
        by_place[path.resolve()] = path
        by_size[_bytes(path)].append(path)
    digest = functools.cache(_digest)
    pairs = []
    for path in ours:
        same = by_place.get(path.resolve())
        if same is None:
            same = next((other for other in by_size[_bytes(path)] if digest(other) == digest(path)), None)
        if same is not None:
            pairs.append((path, same))
    return pairs


def _bytes(path: Path) -> int:
    """The size of a file; 0 for one that cannot be read, which decoding reports."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _digest(path: Path) -> str:
    """What identifies a file's content; an empty or unreadable file is like no other."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if _bytes(path) else str(path)
    except OSError:
        return str(path)
