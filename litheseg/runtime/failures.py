r"""The images that could not be labelled: a line of JSON for each in ``failed.jsonl``, written as they fail.

The file holds whole lines even when a run is killed. The same call resumes the run: an image that fails again has one
line, and one that is labelled now has none once the run ends or is stopped. Objects in a store cannot be appended to;
there the file is rewritten every half minute and at the end.

A line is ``{"image": ..., "reason": ...}`` in UTF-8. File names that are no UTF-8 are as Python spells them: the byte
FF is the escape ``\udcff``, and ``os.fsencode`` of the decoded name gives the file's own bytes back.

Usage:
    >>> log = FailureLog(open_folder("labelled"))
    >>> log.failed([("photos/a.jpg", "photos/a.jpg is not an image that can be read; replace or remove it")])
    >>> log.close()
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

from litheseg.runtime.storage import OutputFolder

__all__ = ["REPORT", "FailureLog"]

REPORT = "failed.jsonl"
"""Where the images that could not be labelled are listed, with the reasons."""

_EVERY = 30.0  # seconds between two versions of an object

_Row = tuple[str, str]


class FailureLog:
    """The list in an output folder.

    Args:
        folder: the output folder; images listed by an earlier run stay listed until they are tried again.

    Raises (on use):
        LithesegError: the list cannot be read or written.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        found = folder.read(REPORT)
        self._earlier = dict(_rows(found))
        self._found: dict[str, str] = {}
        self._written = time.monotonic()
        if found and found != _lines(self._earlier.items()):  # cut off by a power cut, say
            self._write()

    def failed(self, rows: Iterable[_Row]) -> None:
        """Add (image, reason) of images that failed."""
        rows = list(rows)
        fresh = [row for row in rows if row[0] not in self._earlier]
        self._found.update(rows)
        for image, _ in rows:
            self._earlier.pop(image, None)
        if fresh and self._folder.appends:
            self._folder.append(REPORT, _lines(fresh))
        elif fresh and time.monotonic() - self._written > _EVERY:
            self._write()

    def labelled(self, image: str) -> None:
        """Record that an image, which may have failed in an earlier run, has its results."""
        self._earlier.pop(image, None)

    def close(self, rows: Iterable[_Row] | None = None) -> None:
        """Write the final list.

        Args:
            rows: all that failed, of a run that came to its end; without any the list goes. None for a run that was
                stopped: what failed so far, and what the earlier run listed and this one did not come to.
        """
        if rows is not None:
            self._earlier, self._found = {}, dict(rows)
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._found or self._earlier:
            self._folder.write(REPORT, _lines((self._found | self._earlier).items()))
        else:
            self._folder.remove(REPORT)


def _lines(rows: Iterable[_Row]) -> bytes:
    """A line for each row; characters that stand for bytes which are no UTF-8 become JSON's own escapes."""
    content = (json.dumps({"image": image, "reason": reason}, ensure_ascii=False) + "\n" for image, reason in rows)
    return "".join(content).encode("utf-8", "backslashreplace")


def _rows(data: bytes) -> Iterable[_Row]:
    """The whole lines of a list."""
    for line in data.splitlines():
        try:
            row = json.loads(line)
            yield str(row["image"]), str(row["reason"])
        except (ValueError, KeyError, TypeError):
            continue
