"""Cityscapes: 2048x1024 street scenes of 50 cities, 2975 train and 500 val frames with fine labels, 19 classes.

Expects the two archives as they unpack: `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and
`gtFine/<split>/<city>/*_gtFine_labelIds.png`. The 34 ids of the files are mapped to the 19 that are scored, all
others are ignored. It cannot be downloaded here: register at https://www.cityscapes-dataset.com.

Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016; the ids: its
cityscapesScripts.

Usage:
    >>> source = Cityscapes("data/cityscapes")
    >>> source.samples("val")[0].id
    'frankfurt/frankfurt_000000_000294'
"""

from __future__ import annotations

from pathlib import Path

from litheseg.data.source import FileSource, Pairing, existing_folder, find_images, pair_up
from litheseg.errors import DataError, did_you_mean
from litheseg.masks.classes import Classes, LabelScheme

__all__ = ["CITYSCAPES_CLASSES", "Cityscapes"]

# Name, colour, id in *_labelIds.png; in the order of the train ids.
_LABELS = (
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
CITYSCAPES_CLASSES = Classes(tuple(label[0] for label in _LABELS), tuple(label[1] for label in _LABELS))
_IDS = [label[2] for label in _LABELS]
_SPLITS = ("train", "val", "test", "train_extra")


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
        ignore = [value for value in range(34) if value not in _IDS] if raw else []
        scheme = LabelScheme.build(CITYSCAPES_CLASSES, ids=_IDS if raw else None, ignore=ignore)
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
        return any((root / "leftImg8bit" / split).is_dir() for split in _SPLITS)

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(split for split in _SPLITS if (self.root / "leftImg8bit" / split).is_dir())

    def _pair(self, split: str) -> Pairing:
        images = find_images(self.root / "leftImg8bit" / split, recursive=True, suffix="_leftImg8bit")
        labels = find_images(self.root / self._annotation / split, recursive=True, suffix=self._suffix)
        return pair_up(images, labels, split, allow_unlabelled=self.allow_unlabelled)
