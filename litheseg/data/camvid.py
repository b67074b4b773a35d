"""CamVid: 701 street frames of Cambridge, in the 11-class, 360x480 layout that SegNet made the usual one.

Expects `train/ trainannot/ val/ valannot/` and, where present, `test/ testannot/` (367, 101 and 233 frames); images
and index PNGs pair by file stem, label 11 is void. It does not read the original 960x720 colour-coded labels of 32
classes: give those a `classes.yaml` and open them as a `folder`.

Brostow, Fauqueur and Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009; the split and
classes: Badrinarayanan, Kendall and Cipolla, "SegNet", PAMI 2017.

Usage:
    >>> len(CamVid("data/camvid").samples("train"))
    367
"""

from __future__ import annotations

from pathlib import Path

from litheseg.data.source import FileSource, Pairing, existing_folder, find_images, pair_up
from litheseg.errors import DataError
from litheseg.masks.classes import CAMVID_CLASSES, LabelScheme

__all__ = ["CAMVID_CLASSES", "CamVid"]

_SPLITS = ("train", "val", "test")
_VOID = 11
_REMEDY = ", or download the set with litheseg.data.fetch('camvid', folder)"


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
        root = existing_folder(root, _REMEDY)
        if not self.detects(root) and self.detects(root / "CamVid"):
            root = root / "CamVid"
        super().__init__(root, LabelScheme.build(CAMVID_CLASSES, ignore=[_VOID]), allow_unlabelled)
        if not self.splits():
            raise DataError(
                f"{root} holds no CamVid: expected train/, trainannot/, val/, valannot/; give that folder{_REMEDY}"
            )

    @staticmethod
    def detects(root: Path) -> bool:
        """Whether `root` looks like this source."""
        return any((root / split).is_dir() and (root / f"{split}annot").is_dir() for split in _SPLITS)

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`."""
        return tuple(split for split in _SPLITS if (self.root / split).is_dir())

    def _pair(self, split: str) -> Pairing:
        images, labels = find_images(self.root / split), find_images(self.root / f"{split}annot")
        return pair_up(images, labels, split, allow_unlabelled=self.allow_unlabelled)
