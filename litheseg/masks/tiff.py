"""What a TIFF holds, by its header: to say why an image of many channels cannot be read, and what to do.

Tags as in Adobe's "TIFF Revision 6.0": 258 bits per sample, 277 samples per pixel, 339 sample format.

Usage:
    >>> channels_of("field.tif")
    '5 channels of 16 bits'
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["channels_of"]

_BITS, _CHANNELS, _FORMAT = 258, 277, 339
_KINDS = {2: "bits with a sign", 3: "bits in floating point"}
_SHORT = 3  # the type of all three


def channels_of(path: str | Path) -> str:
    """Number and kind of the channels of a TIFF; "" for another file, or one that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
            if order is None:
                return ""
            file.seek(struct.unpack(f"{order}I", head[4:])[0])
            (count,) = struct.unpack(f"{order}H", file.read(2))
            entries = [struct.unpack(f"{order}HHI4s", file.read(12)) for _ in range(count)]
            found = {}
            for tag, kind, number, value in entries:
                if tag in (_BITS, _CHANNELS, _FORMAT) and kind == _SHORT:
                    if number > 2:  # too many to stand in the entry itself
                        file.seek(struct.unpack(f"{order}I", value)[0])
                        value = file.read(2)
                    (found[tag],) = struct.unpack(f"{order}H", value[:2])
    except (OSError, struct.error):
        return ""
    channels = found.get(_CHANNELS, 1)
    return (
        f"{channels} channel{'s' * (channels > 1)} of {found.get(_BITS, 1)} {_KINDS.get(found.get(_FORMAT, 1), 'bits')}"
    )
