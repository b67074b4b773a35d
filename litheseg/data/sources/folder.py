"""Any folder of images and masks, with a `classes.yaml` (see `masks.classes`) that says what the masks mean.

The layouts that are found by themselves, images and masks pairing by stem:

* `images/ masks/`, with or without `train.txt`, `val.txt`, `test.txt` beside them (one stem a line);
* `images/train/ masks/train/ images/val/ ...`, and reversed, `train/images/ train/masks/ ...`;
* `train/ trainannot/ val/ valannot/`;
* list files alone, one `image mask` pair a line, relative to the folder.

Other usual names serve too (`imgs`, `labels`, `annotations`, `valid`, ...). Where there is no `val`, a part of `train`
is held out: always the same one for a random seed. Classes are not guessed from masks: `litheseg doctor` shows what
masks hold. `write_folder` writes such a folder from any source.

Usage:
    >>> source = FolderSource("data/leaves", classes=["background", "leaf"], val_fraction=0.1)
    >>> source.splits()
    ('train', 'val')
    >>> write_folder(source, "data/copy")
    PosixPath('data/copy')
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from litheseg.data.sources.base import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    FileSource,
    Pairing,
    Sample,
    Source,
    existing_folder,
    find_images,
    is_image,
    pair_up,
)
from litheseg.data.sources.hold_out import HOLD_OUT, Holding
from litheseg.data.sources.likeness import likeness_of
from litheseg.data.sources.splits import read_list
from litheseg.errors import DataError, did_you_mean
from litheseg.files import atomic_folder
from litheseg.masks.classes import CLASS_FILES, Classes, ClassFile, LabelScheme, class_file_text, read_class_file
from litheseg.masks.pictures import encode_mask, encode_png
from litheseg.progress import track

__all__ = ["FolderSource", "write_folder"]

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_Folders = tuple[Path, Path | None]  # of images, and of masks where there is one


class FolderSource(FileSource):
    """Images and masks of your own.

    Args:
        root: the folder.
        classes: a class file, or the class names; default: the `classes.yaml` or `dataset.yaml` in `root`.
        val_fraction: the share of `train` held out as `val` where there is no `val`, in [0, 1); 0 for none.
        seed: chooses the images held out.
        hold_out: what is held out: "random" images; "sequences", whole ones, by the names (see `splits.frame_of`);
            "groups", whole ones, of images that nearly equal each other; or the "last" images of each sequence.
        lists: the folder of `train.txt`, `val.txt`, `test.txt`; default: `root`, its `splits/` or `lists/`.
        mask_suffix: what mask stems have after the image stem, e.g. "_mask".
        masks: the name of the folder of masks, where several are there.
        allow_unlabelled: let images without a mask be samples with `mask=None`; without any class file there are then
            no classes.

    Raises:
        DataError: no such folder, no known layout, or no usable class list.
    """

    name = "folder"
    licence = ""
    citation = ""
    layout = "images/{split}/ and masks/{split}/, or a list {split}.txt"

    def __init__(
        self,
        root: str | Path,
        *,
        classes: str | Path | Sequence[str] | Classes | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        hold_out: str = "random",
        lists: str | Path | None = None,
        mask_suffix: str = "",
        masks: str = "",
        allow_unlabelled: bool = False,
    ) -> None:
        root = existing_folder(root)
        if not 0 <= val_fraction < 1:
            raise DataError(f"val_fraction {val_fraction} is outside [0, 1); give the share to hold out, e.g. 0.2")
        if hold_out not in HOLD_OUT:
            raise DataError(f"hold_out '{hold_out}' is not known.{did_you_mean(hold_out, HOLD_OUT)}")
        described = _class_file(root, classes, allow_unlabelled)
        super().__init__(root, described.scheme, allow_unlabelled)
        self.name = described.name or self.name
        self.licence, self.citation = described.licence, described.citation
        self.val_fraction, self.mask_suffix = val_fraction, mask_suffix
        self.holding = Holding(hold_out, seed, self._groups)
        names = (masks,) if masks else MASK_FOLDERS
        self._folders = {} if lists else _split_folders(root, names)
        self._lists = {} if self._folders else _list_files(root, lists)
        self._flat = _flat_folders(root, names)
        if not self._folders and not self._lists:
            if not self._flat:
                raise DataError(
                    f"{root} has no layout that is known: expected images/ and masks/, or train.txt; see {__name__}"
                )
            self._folders = {"train": self._flat}

    @staticmethod
    def detects(root: Path) -> bool:
        """Whether `root` looks like this source."""
        try:
            known = _split_folders(root) or _list_files(root, None) or _flat_folders(root)
        except DataError:  # two folders of masks: opening it says so
            return True
        return bool(known) or any((root / name).is_file() for name in CLASS_FILES)

    @staticmethod
    def holds_pairs(root: Path) -> bool:
        """Whether there are lists, or images and masks of equal stems."""
        try:
            folders = [*_split_folders(root).values(), *filter(None, [_flat_folders(root)])]
        except DataError:
            return True
        return bool(_list_files(root, None)) or any(masks and _any_pair(images, masks) for images, masks in folders)

    def splits(self) -> tuple[str, ...]:
        """See `Source.splits`; with `val` where it is held out."""
        present = {*self._folders, *self._lists, *(["val"] if self.holds_out else [])}
        return tuple(split for split in _SPLITS if split in present)

    @property
    def holds_out(self) -> bool:
        """See `FileSource`."""
        present = {*self._folders, *self._lists}
        return "train" in present and "val" not in present and self.val_fraction > 0

    def folds(self, ids: Sequence[str], count: int) -> list[set[str]]:
        """See `FileSource`; what `hold_out` keeps together stays together."""
        return self.holding.folds(ids, count)

    def _pair(self, split: str) -> Pairing:
        if split not in ("train", "val") or not self.holds_out:
            return self._present(split)
        whole = self._present("train")
        ids = [sample.id for sample in whole.samples]
        if len(ids) < 2 and not whole.refusal:
            refusal = f"{self.root} has {len(ids)} images: none can be held out; add images or pass val_fraction=0"
            whole = replace(whole, refusal=refusal)
        if whole.refusal:
            if split == "val":
                raise DataError(whole.refusal)
            return whole
        held = self.holding.part(ids, self.val_fraction)
        chosen = (sample for sample in whole.samples if (sample.id in held) == (split == "val"))
        return Pairing(tuple(replace(sample, split=split) for sample in chosen))

    def _groups(self) -> tuple[tuple[str, ...], ...]:
        """The ids of near duplicates."""
        return likeness_of(self._present("train").samples, self._decoded).groups

    def _present(self, split: str) -> Pairing:
        """The files of a split that the folder itself has."""
        if split in self._lists:
            return self._listed(split, self._lists[split])
        images, masks = self._files(self._folders[split])
        pairing = pair_up(images, masks, split, allow_unlabelled=self.allow_unlabelled)
        if images:
            return pairing
        folder = self._folders[split][0]
        refusal = f"{folder} holds no images; add some (.png, .jpg, .tif, ...) or remove the folder"
        return replace(pairing, refusal=refusal)

    def _files(self, folders: _Folders) -> tuple[dict[str, Path], dict[str, Path]]:
        """Images and masks by id."""
        images, masks = folders
        found = find_images(masks, recursive=True, suffix=self.mask_suffix) if masks else {}
        return find_images(images, recursive=True), found

    def _listed(self, split: str, path: Path) -> Pairing:
        """The lines of a list; the refusal names the first bad one."""
        images, masks = self._files(self._flat) if self._flat else ({}, {})
        samples: dict[str, Sample] = {}
        missing, refusals = [], []
        for number, line in read_list(path):
            where = f"{path}, line {number}"
            key = line if line in images else line.rpartition(".")[0]
            try:
                sample = (
                    Sample(key, images[key], masks.get(key), split) if key in images else self._by_paths(line, split)
                )
            except DataError as error:
                missing.append(f"{where}: {line}")
                refusals.append(f"{where}: {error}")
                continue
            if not sample.labelled and not self.allow_unlabelled:
                refusals.append(f"{where}: {sample.image} has no mask; add it, or pass allow_unlabelled=True")
            if sample.id in samples:
                refusals.append(f"{where}: '{sample.id}' is listed twice; remove one")
            samples.setdefault(sample.id, sample)
        return Pairing(tuple(samples.values()), missing=tuple(missing), refusal=next(iter(refusals), ""))

    def _by_paths(self, line: str, split: str) -> Sample:
        """The sample of a line that names an image file and perhaps a mask file."""
        fields = line.split("\t") if "\t" in line else line.split()
        # Some lists write "/images/a.png" and still mean the data folder.
        files = [self.root / field.strip().lstrip("/") for field in fields]
        if len(files) > 2:
            raise DataError(f"{len(files)} fields; write a stem or 'image mask' (a tab between paths with spaces)")
        for file in files:
            if not file.is_file():
                raise DataError(f"{file} does not exist; add the file or remove the line")
        base = self._flat[0] if self._flat and files[0].is_relative_to(self._flat[0]) else self.root
        key = files[0].relative_to(base).with_suffix("").as_posix()
        return Sample(key, files[0], files[1] if len(files) > 1 else None, split)


def write_folder(source: Source, folder: str | Path) -> Path:
    """Write all splits of a source as `images/SPLIT/*`, `masks/SPLIT/*.png` and `classes.yaml`.

    Image files are copied as they are. The folder appears whole or not at all; existing data is never replaced.

    Args:
        source: what to write; masks become palette PNGs of train ids, 255 where ignored.
        folder: the folder to make; it must not exist, or be empty.

    Returns:
        `folder`.

    Raises:
        DataError: the folder holds something already.
        LithesegError: it cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; choose a new folder, or remove it first")
    samples = [sample for split in source.splits() for sample in source.samples(split)]
    about = {"name": source.name, "licence": source.licence, "citation": source.citation}
    with atomic_folder(folder) as draft:
        (draft / "classes.yaml").write_text(class_file_text(source.classes, **about), encoding="utf-8")
        for sample in track(samples, "writing images"):
            ending = sample.image.suffix if sample.image else ".png"
            image = draft / "images" / sample.split / f"{sample.id}{ending}"
            mask = draft / "masks" / sample.split / f"{sample.id}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            mask.parent.mkdir(parents=True, exist_ok=True)
            if sample.image:
                shutil.copyfile(sample.image, image)
            else:
                image.write_bytes(encode_png(source.read_image(sample)))
            mask.write_bytes(encode_mask(source.read_mask(sample), source.classes))
    return folder


def _class_file(root: Path, given: str | Path | Sequence[str] | Classes | None, allow_none: bool) -> ClassFile:
    if isinstance(given, Classes):
        return ClassFile(LabelScheme.build(given))
    if isinstance(given, (str, Path)):
        path = Path(given).expanduser()
        return read_class_file(path if path.is_absolute() or path.exists() else root / path)
    if given is not None:
        return ClassFile(LabelScheme.build(Classes.from_names(given)))
    found = [root / name for name in CLASS_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{root} holds both {found[0].name} and {found[1].name}; keep one")
    if not found and not allow_none:
        raise DataError(
            f"{root} has no classes.yaml; write one there, e.g. 'classes: [road, car]', have one drafted from the "
            f"masks (`litheseg doctor {root} --write-classes`), or pass the class names"
        )
    return read_class_file(found[0]) if found else ClassFile(LabelScheme.build(Classes((), ())))


def _first_folder(base: Path, names: Iterable[str]) -> Path | None:
    spellings = (spelling for name in names for spelling in (name, name.capitalize()))
    return next((base / name for name in spellings if (base / name).is_dir()), None)


def _any_pair(images: Path, masks: Path) -> bool:
    both = (find_images(folder, recursive=True, again=[]).keys() for folder in (images, masks))
    return not frozenset.isdisjoint(*map(frozenset, both))


def _mask_folder(base: Path, names: Sequence[str]) -> Path | None:
    """The folder of masks; of several the one with image files in it.

    Raises:
        DataError: two that hold image files.
    """
    found = [folder for name in names if (folder := _first_folder(base, [name])) is not None]
    filled = [folder for folder in found if len(found) > 1 and any(map(is_image, folder.rglob("*")))]
    if len(filled) > 1:
        one, other = (folder.name for folder in filled[:2])
        raise DataError(
            f"{base} holds masks in {one}/ and in {other}/; say which are meant, e.g. --data.options "
            f'"{{masks: {one}}}", or remove or rename the other folder'
        )
    return next(iter([*filled, *found]), None)


def _split_folders(root: Path, mask_names: Sequence[str] = MASK_FOLDERS) -> dict[str, _Folders]:
    """Image and mask folder by split, for the layouts where each split has folders of its own."""
    images, masks = _first_folder(root, IMAGE_FOLDERS), _mask_folder(root, mask_names)
    found: dict[str, _Folders] = {}
    for split, names in _SPLITS.items():
        inner = _first_folder(images, names) if images else None
        outer = _first_folder(root, names)
        outer_images = _first_folder(outer, IMAGE_FOLDERS) if outer else None
        if inner:
            found[split] = inner, _first_folder(masks, names) if masks else None
        elif outer and outer_images:
            found[split] = outer_images, _mask_folder(outer, mask_names)
        elif outer and (annotations := outer.with_name(f"{outer.name}annot")).is_dir():
            found[split] = outer, annotations
    return found


def _flat_folders(root: Path, mask_names: Sequence[str] = MASK_FOLDERS) -> _Folders | None:
    images = _first_folder(root, IMAGE_FOLDERS)
    return (images, _mask_folder(root, mask_names)) if images else None


def _list_files(root: Path, lists: str | Path | None) -> dict[str, Path]:
    for base in [Path(lists).expanduser()] if lists else [root, root / "splits", root / "lists"]:
        paths = [(split, base / f"{name}.txt") for split, names in _SPLITS.items() for name in names]
        # Of two names of a split the last one counts.
        if files := {split: path for split, path in paths if path.is_file()}:
            return files
    if lists:
        raise DataError(f"{lists} holds no train.txt, val.txt or test.txt; give the folder of the list files")
    return {}
