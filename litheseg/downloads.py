"""Download files: resumed by HTTP range, checked by SHA-256, whole or not at all.

A download is written to `<target>.part` and renamed when it is complete and its checksum fits. Running it again resumes
it, if the server allows.

Ranges and conditional ranges: RFC 9110, sections 13.1.5 and 14.

Usage:
    >>> download("https://example.org/data.zip", "data/data.zip", sha256="9f86d081...")
    PosixPath('data/data.zip')
"""

from __future__ import annotations

import http.client
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litheseg.errors import DownloadError, printable
from litheseg.files import file_digest, make_folder
from litheseg.progress import work

__all__ = ["away", "download", "read_address"]

_BLOCK = 1 << 18
_CUT = (OSError, http.client.HTTPException)
_HEADERS = {"User-Agent": "litheseg", "Accept-Encoding": "identity"}
_Advance = Callable[[int, int | None], None]  # bytes so far, and of all where that is known


def download(
    url: str,
    target: str | Path,
    *,
    sha256: str | None = None,
    retries: int = 3,
    timeout: float = 30.0,
) -> Path:
    """Fetch one file; an earlier attempt's `<target>.part` is continued where the server allows.

    Args:
        url: an http, https or file address.
        target: the file to make; one that is there already is kept if its checksum fits.
        sha256: 64 hexadecimal digits; None prints the computed checksum instead of comparing it.
        retries: further attempts after a cut connection, in [0, ...).
        timeout: seconds without a byte after which a connection counts as cut.

    Returns:
        `target`.

    Raises:
        DownloadError: a bad address, a server that refuses, a connection cut too often, a wrong checksum, a full disk.
    """
    target = Path(target).expanduser()
    _check_scheme(url)
    if not target.exists():
        make_folder(target.parent)
        partial_file = _PartialFile(url, target)
        with work(f"fetching {target.name}, kB") as fetched:
            partial_file.fill(retries, timeout, lambda done, all: fetched.show(done // 1000, all and all // 1000))
        partial_file.finish(target, sha256)
    elif sha256 is not None and file_digest(target) != sha256.lower():
        raise DownloadError(f"{target} exists, but its SHA-256 is not {sha256}: look at it, or remove it")
    return target


def read_address(url: str, *, limit: int, timeout: float = 10.0) -> bytes:
    """The content of a small file.

    Args:
        url: an http, https or file address.
        limit: bytes that it may have.
        timeout: seconds without a byte after which the server counts as away.

    Raises:
        DownloadError: a bad address, a server that is away or refuses, a file that is larger or cut short.
    """
    _check_scheme(url)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=_HEADERS), timeout=timeout) as response:
            content: bytes = response.read(limit + 1)
            length = response.headers.get("Content-Length")
    except _CUT as error:
        raise DownloadError(f"{url}: {_reason(error)}; check the address and the connection") from error
    if len(content) > limit or (length is not None and int(length) != len(content)):
        problem = f"has more than {limit:,} bytes" if len(content) > limit else "was cut short"
        raise DownloadError(f"{url} {problem}; check the address, or try again")
    return content


def away(url: str, timeout: float = 10.0) -> OSError | None:
    """Why a server does not answer; None if it does, with whatever status.

    For clients that would try for a minute before they say so.

    Args:
        url: an http or https address.
        timeout: seconds to wait for the answer.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError as error:  # it answers
        error.close()
    except OSError as error:
        return error
    return None


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise DownloadError(f"cannot download {url}: give an http, https or file address")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


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
                reason = _reason(error)
                if error.code < 500 and error.code not in (408, 429):
                    raise DownloadError(f"{self.url}: {reason}; check the address") from error
            except _CUT as error:
                reason = _reason(error)
        raise DownloadError(
            f"{self.url}: {reason}, with {self._size()} bytes in {self.path}; run it again to go on from there"
        )

    def finish(self, target: Path, sha256: str | None) -> None:
        """Check the whole file, and give it its name."""
        computed = file_digest(self.path)
        if sha256 is None:
            print(f"{printable(self.url)}: not verified; SHA-256 {computed}", file=sys.stderr)
        elif computed != sha256.lower():
            # Otherwise it would be resumed for ever.
            self.path.unlink()
            self._validator.unlink(missing_ok=True)
            raise DownloadError(
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
        headers = dict(_HEADERS)
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
                    raise DownloadError(
                        f"cannot write {self.path}: {error.strerror}; free space and run it again"
                    ) from error
                have += len(block)
                advance(have, total)
        # A body that ends early is no error to http.client when it is read in blocks.
        return total is None or have == total
