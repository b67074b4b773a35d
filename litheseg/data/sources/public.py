"""Well-known data sets as they unpack: CamVid, Cityscapes and PASCAL VOC 2012.

CamVid: 701 street frames of Cambridge in SegNet's usual 11-class, 360x480 layout: `train/
trainannot/ val/ valannot/` and, where present, `test/ testannot/` (367, 101 and 233 frames); label 11 is void. The
original 960x720 colour-coded labels of 32 classes want a `classes.yaml` and `folder`. Brostow, Fauqueur and Cipolla,
"Semantic object classes in video", Pattern Recognition Letters 2009; split and classes: Badrinarayanan, Kendall and
Cipolla, "SegNet", PAMI 2017.

Cityscapes: 2048x1024 street scenes of 50 cities, 2975 train and 500 val frames with fine labels:
`leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*_gtFine_labelIds.png`. The 34 ids of the
files are mapped to the 19 that are scored, all others are ignored. Register at https://www.cityscapes-dataset.com.
Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016; ids: cityscapesScripts.

PASCAL VOC 2012: 1464 train and 1449 val images, 20 objects and background, object borders ignored (255): the devkit's
`JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/*.txt`, from
http://host.robots.ox.ac.uk/pascal/VOC/voc2012. Everingham et al., "The PASCAL visual object classes challenge: a
retrospective", IJCV 2015; the augmented labels: Hariharan et al., "Semantic contours from inverse detectors", ICCV
2011.

Usage:
    >>> len(CamVid("data/camvid").samples("train"))
    367
    >>> Cityscapes("data/cityscapes").samples("val")[0].id
    'frankfurt/frankfurt_000000_000294'
    >>> len(Voc("data/VOCdevkit", augmented=True).samples("train"))
    10582
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from litheseg.data.sources.base import FileSource, Pairing, existing_folder, find_images, join, pair_up
from litheseg.data.sources.splits import read_list
from litheseg.errors import DataError, did_you_mean
from litheseg.masks.classes import CAMVID_CLASSES, Classes, LabelScheme, voc_color

__all__ = ["CITYSCAPES_CLASSES", "VOC_CLASSES", "CamVid", "Cityscapes", "Voc"]

_CAMVID_SPLITS = ("train", "val", "test")
_CAMVID_VOID = 11
_CAMVID_REMEDY = ", or download the set with litheseg.data.fetch('camvid', folder)"

# Name, colour, id in *_labelIds.png; in the order of the train ids.
_CITYSCAPES = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
CITYSCAPES_CLASSES = Classes(tuple(row[0] for row in _CITYSCAPES), tuple(row[1] for row in _CITYSCAPES))
_CITYSCAPES_IDS = [row[2] for row in _CITYSCAPES]
_CITYSCAPES_SPLITS = ("train", "val", "test", "train_extra")

_VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
VOC_CLASSES = Classes(_VOC_NAMES, tuple(voc_color(index) for index in range(len(_VOC_NAMES))))
_VOC_SPLITS = ("train", "val", "trainval", "test")
_VOC_LISTS = "ImageSets/Segmentation"
_AUGMENTED = "SegmentationClassAug"
_AUGMENTED_LISTS = tuple(
    f"{folder}{name}.txt"
    for folder in (f"{_VOC_LISTS}/", "ImageSets/SegmentationAug/", "")
    for name in ("train_aug", "trainaug")
)


class CamVid(FileSource):
    """CamVid in SegNet's layout.

    Args:
        root: the folder of `train/` and `trainannot/`, or the one above, where they lie in `CamVid/`.
        allow_unlabelled: let images without a mask be samples with `mask=None`.

    Raises:
        DataError: no such folder, or no split in it.
    """

    name = "camvid"
    licence = "free for research use; see the CamVid page of the University of Cambridge"
    layout = "{split}/ and {split}annot/"
    citation = "Brostow, Fauqueur, Cipolla: Semantic object classes in video. Pattern Recognition Letters, 2009"

    def __init__(self, root: str | Path, *, allow_unlabelled: bool = False) -> None:
        root = existing_folder(root, _CAMVID_REMEDY)
        if not self.detects(root) and self.detects(root / "CamVid"):
            root = root / "CamVid"
        super().__init__(root, LabelScheme.build(CAMVID_CLASSES, ignore=[_CAMVID_VOID]), allow_unlabelled)
        if not self.splits():
            raise DataError(
                f"{root} holds no CamVid: expected train/, trainannot/, val/, valannot/; give that "
                f"folder{_CAMVID_REMEDY}"
            )

    @staticmethod
    def detects(root: Path) -> bool:
        """Whether `root` looks like this source."""
        return any((root / split).is_dir() and (root / f"{split}annot").is_dir() for split in _CAMVID_SPLITS)

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(split for split in _CAMVID_SPLITS if (self.root / split).is_dir())

    def _pair(self, split: str) -> Pairing:
        images, masks = find_images(self.root / split), find_images(self.root / f"{split}annot")
        return pair_up(images, masks, split, allow_unlabelled=self.allow_unlabelled)


class Cityscapes(FileSource):
    """Cityscapes with fine or coarse labels.

    Args:
        root: the folder of `leftImg8bit/`.
        annotation: "gtFine" or "gtCoarse"; the split `train_extra` has coarse labels only.
        labels: "labelIds", as they are distributed, or "labelTrainIds", as cityscapesScripts convert them.
        allow_unlabelled: let images without a mask be samples with `mask=None`.

    Raises:
        DataError: no such folder, no split in it, or an unknown option value.
    """

    name = "cityscapes"
    licence = "non-commercial use after registration; see https://www.cityscapes-dataset.com/license"
    layout = "leftImg8bit/{split}/ and gtFine/{split}/"
    citation = "Cordts et al.: The Cityscapes dataset for semantic urban scene understanding. CVPR 2016"

    def __init__(
        self,
        root: str | Path,
        *,
        annotation: str = "gtFine",
        labels: str = "labelIds",
        allow_unlabelled: bool = False,
    ) -> None:
        for option, known in ((annotation, ("gtFine", "gtCoarse")), (labels, ("labelIds", "labelTrainIds"))):
            if option not in known:
                raise DataError(f"Cityscapes has no '{option}'.{did_you_mean(option, known)}")
        raw = labels == "labelIds"
        ignore = [value for value in range(34) if value not in _CITYSCAPES_IDS] if raw else []
        scheme = LabelScheme.build(CITYSCAPES_CLASSES, ids=_CITYSCAPES_IDS if raw else None, ignore=ignore)
        super().__init__(existing_folder(root), scheme, allow_unlabelled)
        self._annotation, self._suffix = annotation, f"_{annotation}_{labels}"
        if not self.splits():
            raise DataError(
                f"{root} holds no Cityscapes: expected leftImg8bit/ and {annotation}/; unpack the archives of "
                "https://www.cityscapes-dataset.com there"
            )

    @staticmethod
    def detects(root: Path) -> bool:
        """Whether `root` looks like this source."""
        return any((root / "leftImg8bit" / split).is_dir() for split in _CITYSCAPES_SPLITS)

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(split for split in _CITYSCAPES_SPLITS if (self.root / "leftImg8bit" / split).is_dir())

    def _pair(self, split: str) -> Pairing:
        images = find_images(self.root / "leftImg8bit" / split, recursive=True, suffix="_leftImg8bit")
        masks = find_images(self.root / self._annotation / split, recursive=True, suffix=self._suffix)
        return pair_up(images, masks, split, allow_unlabelled=self.allow_unlabelled)


class Voc(FileSource):
    """PASCAL VOC 2012.

    Args:
        root: the folder of `JPEGImages/`, or one above it (`VOC2012/` or `VOCdevkit/`).
        augmented: train on the masks of `SegmentationClassAug/` (10582 images): True finds the list (`train_aug.txt`)
            or, without one, takes all of them but those of val; a path names the list, of stems or of `image mask`
            pairs.
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
                f"{root} holds no PASCAL VOC: expected JPEGImages/, SegmentationClass/ and {_VOC_LISTS}/train.txt; "
                "unpack VOCtrainval_11-May-2012.tar there"
            )
        if augmented and not (self.root / _AUGMENTED).is_dir():
            raise DataError(
                f"{self.root} has no {_AUGMENTED}/; unpack the augmented masks there, or pass augmented=False"
            )

    @staticmethod
    def detects(root: Path) -> bool:
        """Whether `root` looks like this source; a tree with a label map of its own does not."""
        return (folder := _devkit(root)) is not None and not (folder / "labelmap.txt").is_file()

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(split for split in _VOC_SPLITS if (self.root / _VOC_LISTS / f"{split}.txt").is_file())

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
        path = self.root / _VOC_LISTS / f"{split}.txt"
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
        if (folder / "JPEGImages").is_dir() and (folder / _VOC_LISTS).is_dir():
            return folder
    return None
