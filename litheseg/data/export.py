"""Any source as plain files: `images/SPLIT/*.png`, `masks/SPLIT/*.png` and the `classes.yaml` that explains them.

What it writes, `litheseg.data.folder` reads. The folder appears whole or not at all. Existing data is never replaced.

Usage:
    >>> write_folder(Streets(train=300, val=60), "data/streets")
    PosixPath('data/streets')
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import yaml
from PIL import Image
from rich.console import Console
from rich.progress import track

from litheseg.data.source import Source
from litheseg.errors import DataError

__all__ = ["write_folder"]


def write_folder(source: Source, folder: str | Path, *, progress: bool = False) -> Path:
    """Write all splits of a source as a folder data set.

    Args:
        source: what to write; masks become palette PNGs of train ids, 255 where ignored.
        folder: the folder to make; it must not exist, or be empty.
        progress: show a progress bar.

    Returns:
        `folder`.

    Raises:
        DataError: the folder holds something already, or cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; choose a new folder, or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(source, draft, progress)
            draft.chmod(0o755)  # mkdtemp makes folders private
            if folder.exists():
                folder.rmdir()
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    return folder


def _write(source: Source, root: Path, progress: bool) -> None:
    samples = [sample for split in source.splits() for sample in source.samples(split)]
    steps = track(
        samples,
        f"Writing {len(samples)} images",
        transient=True,
        console=Console(stderr=True),
        disable=not progress,
    )
    palette = source.classes.palette().ravel().tolist()
    for sample in steps:
        image, mask = (root / kind / sample.split / f"{sample.id}.png" for kind in ("images", "masks"))
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read_image(sample)).save(image)
        labels = Image.fromarray(source.read_mask(sample)).convert("P")
        labels.putpalette(palette)
        labels.save(mask)
    (root / "classes.yaml").write_text(_class_file(source), encoding="utf-8")


def _class_file(source: Source) -> str:
    pairs = zip(source.classes.names, source.classes.colors, strict=True)
    content = {
        "name": source.name,
        "licence": source.licence,
        "citation": source.citation,
        "classes": [{"name": name, "color": list(color)} for name, color in pairs],
        "ignore": [255],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
