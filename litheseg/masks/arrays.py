"""Images that are no photographs -> arrays: .npy files, and TIFFs of many channels, of 16 bits or of floats.

A TIFF may have its channels as samples of each pixel, as planes, or as pages of one size. It is read by the package
`tifffile` (the extra `tiff`).

Usage:
    >>> found = array_file("field.tif")  # None for a photograph
    >>> found.read().shape
    (360, 480, 5)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from litheseg.errors import DataError, MissingExtraError
from litheseg.masks.image_format import MAX_CHANNELS
from litheseg.masks.tiff import is_multichannel

__all__ = ["ArrayFile", "array_file"]

_TYPES = {"u1": "uint8", "u2": "uint16", "f2": "float32", "f4": "float32", "f8": "float32"}


@dataclass(frozen=True)
class ArrayFile:
    """A file whose header has been read.

    Attributes:
        path: the file.
        shape: H, W and channels.
        dtype: as stored.
        decode: gives the values, H x W x C.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    decode: Callable[[], np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.shape[0], self.shape[1]

    def read(self) -> np.ndarray:
        """uint8, uint16 or float32 H x W x C.

        Raises:
            DataError: values of another type, or ones that are not finite; a damaged file.
        """
        kind = _TYPES.get(self.dtype.str[1:])
        if kind is None:
            raise DataError(
                f"{self.path} holds {self.dtype} numbers; save images as uint8, uint16 or float32, all in the same way"
            )
        values = np.ascontiguousarray(self.values(), kind)
        if kind == "float32" and not np.isfinite(values).all():
            missing = int(values.size - np.isfinite(values).sum())
            raise DataError(
                f"{self.path} holds {missing} values that are not finite (NaN or infinite); fill them, for instance "
                "with 0, the same in training and wherever the network runs"
            )
        return values

    def values(self) -> np.ndarray:
        """What is stored, H x W x C, whatever its type.

        Raises:
            DataError: a damaged file.
        """
        try:
            return self.decode()
        except Exception as error:  # each compression fails in its own way
            codec = "imagecodecs" in str(error)
            remedy = "pip install 'litheseg[tiff]', which brings imagecodecs" if codec else "replace or remove it"
            raise DataError(f"{self.path} cannot be decoded ({error}); {remedy}") from error


def array_file(path: str | Path | IO[bytes]) -> ArrayFile | None:
    """A .npy file or a TIFF of many channels, of which the header has been read; None for another file.

    Args:
        path: the file; an open one is never of this kind.

    Raises:
        DataError: a damaged file, or one of other axes.
        MissingExtraError: a TIFF for which `tifffile` is not installed.
    """
    if not isinstance(path, (str, Path)):
        return None
    path = Path(path)
    if path.suffix.lower() == ".npy":
        found = _npy(path)
    elif path.suffix.lower() in (".tif", ".tiff") and is_multichannel(path):
        found = _tiff(path)
    else:
        return None
    height, width, channels = found.shape
    if channels > MAX_CHANNELS:
        raise DataError(
            f"{path} has the shape {found.shape}, which is {channels} channels; save it as height x width x channels "
            f"(np.moveaxis(array, 0, -1)), with at most {MAX_CHANNELS} channels"
        )
    if not height * width * channels:
        raise DataError(f"{path} has the shape {found.shape}, which is no pixel; replace or remove it")
    return found


def _npy(path: Path) -> ArrayFile:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; restore it or remove its partner") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or truncated, or holds objects ({error}); replace or remove it") from error
    if stored.ndim not in (2, 3):
        raise DataError(f"{path} has the shape {stored.shape}; save it as height x width, or height x width x channels")
    shaped = stored if stored.ndim == 3 else stored[..., None]
    return ArrayFile(path, (shaped.shape[0], shaped.shape[1], shaped.shape[2]), shaped.dtype, lambda: np.array(shaped))


def _tiff(path: Path) -> ArrayFile:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError(
            "tifffile", "tiff", f"reading {path}, a TIFF of many channels or of 16 bits,"
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, shape, dtype = series.axes, series.shape, np.dtype(series.dtype)
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        raise DataError(f"{path} is damaged or truncated ({error}); replace or remove it") from error
    others = [axis for axis, length in enumerate(shape) if axes[axis] not in "YX" and length > 1]
    if "Y" not in axes or "X" not in axes or len(others) > 1:
        raise DataError(
            f"{path} has the axes {axes} of {shape}; save it with one axis of channels beside height, width"
        )
    order = [axes.index("Y"), axes.index("X"), *others]
    rest = [axis for axis in range(len(shape)) if axis not in order]

    def decode() -> np.ndarray:
        values = tifffile.imread(path, series=0).reshape(shape).transpose([*order, *rest])
        return np.asarray(values.reshape(*(shape[axis] for axis in order[:2]), -1))

    return ArrayFile(path, (shape[order[0]], shape[order[1]], shape[others[0]] if others else 1), dtype, decode)
