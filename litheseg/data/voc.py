"""PASCAL VOC 2012 segmentation: 1464 train and 1449 val images, 20 objects and background, object borders ignored
(255).

Expects the devkit as it unpacks: `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/*.txt`. With
`augmented=True` the training split is the larger one (10582 images) whose masks lie in `SegmentationClassAug/`. It
cannot be downloaded here: see http://host.robots.ox.ac.uk/pascal/VOC/voc2012.

Everingham et al., "The PASCAL visual object classes challenge: a retrospective", IJCV 2015; the augmented labels:
Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011.

Usage:
    >>> source = Voc("data/VOCdevkit", augmented=True)
    >>> len(source.samples("train"))
    10582
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from litheseg.data.source import FileSource, Pairing, existing_folder, find_images, join
from litheseg.data.splits import read_list
from litheseg.errors import DataError
from litheseg.masks.classes import Classes, LabelScheme, voc_color

__all__ = ["VOC_CLASSES", "Voc"]

_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
VOC_CLASSES = Classes(_NAMES, tuple(voc_color(index) for index in range(len(_NAMES))))
_SPLITS = ("train", "val", "trainval", "test")
_LISTS = "ImageSets/Segmentation"
_AUGMENTED = "SegmentationClassAug"
_AUGMENTED_LISTS = tuple(
    f"{folder}{name}.txt"
    for folder in (f"{_LISTS}/", "ImageSets/SegmentationAug/", "")
    for name in ("train_aug", "trainaug")
)


class Voc(FileSource):
    """PASCAL VOC 2012.

    Args:
        root: the folder of `JPEGImages/`, or one above it (`VOC2012/` or `VOCdevkit/`).
        augmented: train on the masks of `SegmentationClassAug/`: True finds the list (`train_aug.txt`) or, without one,
            takes all of them but those of val; a path names the list, of stems or of `image mask` pairs.
        allow_unlabelled: let images without a mask be samples with `mask=None`.

    Raises:
        DataError: no such folder, no split in it, or no augmented masks.
    """

    name = "voc"
    licence = "images from Flickr, under Flickr's terms; see http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
    layout = "the list ImageSets/Segmentation/{split}.txt"
    citation = "Everingham et al.: The PASCAL visual object classes challenge: a retrospective. IJCV 2015"

    def __init__(
        self, root: str | Path, *, augmented: bool | str | Path = False, allow_unlabelled: bool = False
    ) -> None:
        folder = existing_folder(root)
        super().__init__(_devkit(folder) or folder, LabelScheme.build(VOC_CLASSES), allow_unlabelled)
        self._augmented = augmented
        if not self.splits():
            raise DataError(
                f"{root} holds no PASCAL VOC: expected JPEGImages/, SegmentationClass/ and {_LISTS}/train.txt; unpack "
                "VOCtrainval_11-May-2012.tar there"
            )
        if augmented and not (self.root / _AUGMENTED).is_dir():
            raise DataError(
                f"{self.root} has no {_AUGMENTED}/; unpack the augmented masks there, or pass augmented=False"
            )

    @staticmethod
    def detects(root: Path) -> bool:
        """Whether `root` looks like this source."""
        return _devkit(root) is not None

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(split for split in _SPLITS if (self.root / _LISTS / f"{split}.txt").is_file())

    def _pair(self, split: str) -> Pairing:
        augmented = bool(self._augmented) and split == "train"
        folder = self.root / (_AUGMENTED if augmented else "SegmentationClass")
        images, masks = find_images(self.root / "JPEGImages"), find_images(folder)
        listing, stems = self._augmented_stems(masks) if augmented else self._stems(split)
        refusal = ""
        for stem in stems:
            if stem not in images:
                refusal = f"{self.root}/JPEGImages/{stem}.jpg does not exist, but {listing} lists it; restore it"
            elif stem not in masks and not self.allow_unlabelled:
                refusal = (
                    f"{folder}/{stem}.png does not exist, but {listing} lists it; add it, or pass allow_unlabelled=True"
                )
            if refusal:
                break
        return join(stems, images, masks, split, refusal)

    def _stems(self, split: str) -> tuple[Path, list[str]]:
        path = self.root / _LISTS / f"{split}.txt"
        return path, _stems_of(path)

    def _augmented_stems(self, masks: Iterable[str]) -> tuple[Path, list[str]]:
        if not isinstance(self._augmented, bool):
            path = Path(self._augmented).expanduser()
            return path, _stems_of(path)
        for name in _AUGMENTED_LISTS:
            if (self.root / name).is_file():
                return self.root / name, _stems_of(self.root / name)
        val = set(self._stems("val")[1])
        return self.root / _AUGMENTED, [stem for stem in masks if stem not in val]


def _stems_of(path: Path) -> list[str]:
    # The first field's stem serves both "2007_000032" and "/JPEGImages/2007_000032.jpg /SegmentationClassAug/...".
    # dict, not set: a stem listed twice counts once, and the order stays.
    return list(dict.fromkeys(PurePosixPath(line.split()[0]).stem for _, line in read_list(path)))


def _devkit(root: Path) -> Path | None:
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir() and (folder / _LISTS).is_dir():
            return folder
    return None
