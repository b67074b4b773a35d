"""What a TIFF holds, by its headers: to tell photographs, which Pillow reads, from images of many channels.

Tags as in Adobe's "TIFF Revision 6.0": 254 kind of page, 256 width, 257 height, 258 bits per sample, 262 photometric
interpretation, 277 samples per pixel, 338 extra samples, 339 sample format. BigTIFF as in its design by Aware Systems.

Usage:
    >>> is_multichannel("field.tif")
    True
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_multichannel"]

_KIND, _WIDTH, _HEIGHT, _BITS, _COLOURS, _CHANNELS, _EXTRA, _FORMAT = 254, 256, 257, 258, 262, 277, 338, 339
_READ = (_KIND, _WIDTH, _HEIGHT, _BITS, _COLOURS, _CHANNELS, _EXTRA, _FORMAT)
_NUMBERS = {3: "H", 4: "I", 16: "Q"}  # types of fields: how a number is stored
_RGB, _CMYK, _YCBCR, _LAB = 2, 5, 6, 8
_ALPHA = (1, 2)
_MOST_PAGES = 2  # that are looked at


def is_multichannel(path: str | Path) -> bool:
    """Whether a file is a TIFF whose channels are not those of a photograph: more, of more bits, or a page for each.

    A fourth channel that says that it is alpha is one of a photograph.
    """
    try:
        with open(path, "rb") as file:
            pages = list(_pages(file))
    except (OSError, struct.error):
        return False
    if not pages:
        return False
    page = pages[0]
    colours, channels, eight = page.get(_COLOURS), page.get(_CHANNELS, 1), page.get(_BITS, 1) <= 8
    if channels == 1:
        alike = len(pages) > 1 and all(pages[1].get(tag) == page.get(tag) for tag in _READ if tag != _KIND)
        return alike and not pages[1].get(_KIND, 0) & 1  # a reduced copy
    if colours == _CMYK:
        return False
    if channels == 3:
        return not (eight and colours in (_RGB, _YCBCR, _LAB))
    return not (eight and channels in (2, 4) and page.get(_EXTRA) in _ALPHA)


def _pages(file: BinaryIO) -> Iterator[dict[int, int]]:
    """The first number of each tag that matters, page by page."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return
    version = struct.unpack(f"{order}H", head[2:4])[0]
    if version not in (42, 43):
        return
    big = version == 43
    place = f"{order}Q" if big else f"{order}I"
    (offset,) = struct.unpack(place, head[8:16] if big else head[4:8])
    for _ in range(_MOST_PAGES):
        if not offset:
            return
        file.seek(offset)
        found, count = {}, struct.unpack(f"{order}Q" if big else f"{order}H", file.read(8 if big else 2))[0]
        entries = file.read(min(count, 1 << 12) * (20 if big else 12))
        offset = struct.unpack(place, file.read(8 if big else 4))[0]
        for tag, kind, number, value in struct.iter_unpack(f"{order}HHQ8s" if big else f"{order}HHI4s", entries):
            if tag in _READ and kind in _NUMBERS:
                form = f"{order}{_NUMBERS[kind]}"
                if number * struct.calcsize(form) > len(value):  # too many to stand in the entry itself
                    file.seek(struct.unpack(place, value)[0])
                    value = file.read(8)
                (found[tag],) = struct.unpack(form, value[: struct.calcsize(form)])
        yield found
