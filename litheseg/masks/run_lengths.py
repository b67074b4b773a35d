"""Masks as run lengths: COCO's, column by column, and Label Studio's brush data, bit-packed RGBA pixels.

COCO's string form is written by pycocotools, which the extra `serve` brings, and read here: five bits of a number in
each character, the lowest first, a sixth that says whether more follow; from the fourth number on the difference to the
one before the last (pycocotools, `maskApi.c`). The brush format is that of the JavaScript
package @thi.ng/rle-pack (its README, "Encoding format"), most significant bit first: 32 bits number of words, 5 bits
word size less one, four times 4 bits run-length size less one; then, until all words are there, 1 bit "one value
repeated" or "values one by one", 2 bits which of the four sizes, that many bits of count less one, and the value or
values. A word is one of a pixel's red, green, blue and alpha; alpha says where the brush was.

Usage:
    >>> runs = class_runs(np.array([[0, 1], [1, 1]], np.uint8))
    >>> runs[1].tolist(), coco_string(runs[1], (2, 2))
    ([1, 3], '13')
    >>> numbers = encode_brush(mask)           # bool H x W -> numbers in 0..255, as they stand in the JSON
    >>> decode_brush(numbers, *mask.shape)     # and back
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from litheseg.errors import DataError, MissingExtraError

__all__ = ["class_runs", "coco_counts", "coco_string", "decode_brush", "encode_brush"]

_SIZES = (3, 4, 8, 16)  # bits of a count; rle-pack's own choice
_LONGEST = 1 << _SIZES[-1]
_WORD = 8  # bits
_CHANNELS = 4  # RGBA
_HALF = 128  # the alpha from which a pixel counts as painted: the rim of a brush stroke fades out
_DAMAGED = "damaged brush data"


def class_runs(mask: np.ndarray) -> dict[int, np.ndarray]:
    """COCO's run lengths of every class that a mask holds.

    Args:
        mask: uint8 H W, not empty.

    Returns:
        class -> int64 lengths of the runs of other pixels and of its own, in turn, column by column, beginning with the
        others (0 if there are none); they sum up to H * W.
    """
    flat = mask.ravel(order="F")
    return {int(k): _alternating(flat == k) for k in np.unique(flat)}


def coco_string(runs: np.ndarray, size: tuple[int, int]) -> str:
    """Run lengths of a mask of `size` (H, W) as COCO's compressed string.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise MissingExtraError("pycocotools", "serve", "COCO's compressed run lengths") from error
    packed = coco.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)
    return str(packed["counts"].decode("ascii"))


def coco_counts(counts: Any) -> np.ndarray:
    """int64 run lengths from COCO's list or string of them.

    Raises:
        DataError: neither, or a damaged string.
    """
    if isinstance(counts, list):
        try:
            return np.array(counts, np.int64).reshape(-1)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"run lengths that are no whole numbers ({error})") from error
    if not isinstance(counts, (str, bytes)) or not counts:
        raise DataError("run lengths that are neither a list nor COCO's string")
    units = np.frombuffer(counts if isinstance(counts, bytes) else counts.encode(), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(units < 32)  # of each number
    if units.min() < 0 or units.max() > 63 or not len(last) or last[-1] != len(units) - 1:
        raise DataError("a damaged string of run lengths")
    first = np.concatenate([[0], last[:-1] + 1])
    place = 5 * (np.arange(len(units)) - np.repeat(first, last - first + 1))
    if place.max() > 50:
        raise DataError("a damaged string of run lengths")
    values = np.add.reduceat((units & 31) << place, first)
    values -= np.where(units[last] & 16, np.int64(1) << (place[last] + 5), 0)  # bit 5 of the last is the sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def encode_brush(mask: np.ndarray) -> list[int]:
    """Pack a mask (bool H x W) into numbers in 0..255; painted pixels become white and opaque, others transparent."""
    flat = np.asarray(mask, bool).ravel()
    runs = _alternating(flat) * _CHANNELS
    header = f"{flat.size * _CHANNELS:032b}{_WORD - 1:05b}" + "".join(f"{size - 1:04b}" for size in _SIZES)
    body = [_brush_run(length, place % 2 == 1) for place, length in enumerate(runs.tolist()) if length]
    bits = np.frombuffer("".join([header, *body]).encode(), np.uint8) - ord("0")
    return np.packbits(bits).tolist()


def decode_brush(numbers: Sequence[int], height: int, width: int) -> np.ndarray:
    """Unpack a mask.

    Args:
        numbers: what stands under "rle".
        height: of the image, in pixels.
        width: likewise.

    Returns:
        bool H x W: True where alpha is at least 128 of 255.

    Raises:
        DataError: no list of bytes, or data of another size, cut short or damaged.
    """
    bits = _Bits(numbers)
    count = bits.take(32)
    if count != height * width * _CHANNELS:
        raise DataError(f"brush data of {count / _CHANNELS:g} pixels for an image of {height}x{width} (HxW)")
    word = bits.take(5) + 1
    sizes = [bits.take(4) + 1 for _ in range(4)]
    if word != _WORD:
        raise DataError(f"{_DAMAGED}: words of {word} bits instead of {_WORD}")
    values = np.empty(count, np.uint8)
    done = 0
    while done < count:
        repeated = bits.take(1)
        end = done + 1 + bits.take(sizes[bits.take(2)])
        if end > count:
            raise DataError(f"{_DAMAGED}: more pixels than the image has")
        values[done:end] = bits.take(_WORD) if repeated else bits.take_bytes(end - done)
        done = end
    return values.reshape(height, width, _CHANNELS)[:, :, 3] >= _HALF


def _alternating(flat: np.ndarray) -> np.ndarray:
    """int64 lengths of the runs of False and True, in turn, beginning with False (0 if there are none in front)."""
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(edges, prepend=0, append=flat.size)


def _brush_run(length: int, painted: bool) -> str:
    """The bits of `length` (at least 4) equal words."""
    value = "1" * _WORD if painted else "0" * _WORD
    parts = [f"111{_LONGEST - 1:0{_SIZES[-1]}b}{value}"] * ((length - 1) // _LONGEST)
    length = (length - 1) % _LONGEST + 1
    kind = next(index for index, size in enumerate(_SIZES) if length <= 1 << size)
    return "".join([*parts, f"1{kind:02b}{length - 1:0{_SIZES[kind]}b}{value}"])


class _Bits:
    """Reads bits from the front."""

    def __init__(self, numbers: Sequence[int]) -> None:
        if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number <= 255 for number in numbers):
            raise DataError(f"{_DAMAGED}: no list of numbers in 0..255")
        self._bits = np.unpackbits(np.array(numbers, np.uint8))
        self._text = (self._bits + ord("0")).tobytes().decode("ascii")
        self._at = 0

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        start = self._advance(count)
        return int(self._text[start : self._at], 2)

    def take_bytes(self, count: int) -> np.ndarray:
        """The next `count` words of 8 bits."""
        start = self._advance(8 * count)
        return np.packbits(self._bits[start : self._at])

    def _advance(self, count: int) -> int:
        start, self._at = self._at, self._at + count
        if self._at > len(self._text):
            raise DataError(f"{_DAMAGED}: cut short")
        return start
