"""The header of a model file: everything that is not a weight, as JSON.

Values are converted to JSON's types when a header is made (tuples to lists, NumPy scalars to numbers, NaN to null), so
that a header equals what is read back from the file.

Usage:
    >>> header = BundleHeader(architecture={"name": "ddrnet", "args": {}}, classes=classes, widths=(1.0, 0.5))
    >>> BundleHeader.from_json(header.to_json()) == header
    True
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any

import numpy as np

from litheseg.errors import BundleError, DataError
from litheseg.masks.classes import Classes
from litheseg.masks.image_format import IMAGENET_MEAN, IMAGENET_STD, ImageFormat

__all__ = ["FORMAT_VERSION", "BundleHeader", "checked_size"]

FORMAT_VERSION = 2
"""What this version of litheseg writes; it reads this and all earlier ones. Version 1 had no `dtype`: it was uint8."""

_REMEDY = "the file was damaged or edited by hand: copy or download it again, or export the model anew"
_MAX_SIDE, _MAX_PIXELS = 1 << 16, 1 << 26  # of images for a network; a larger size is a damaged number


@dataclass(frozen=True)
class BundleHeader:
    """What a model file says about its model.

    Attributes:
        architecture: ``{"name": ..., "args": {...}}``, as `litheseg.models.build_model` takes them, and, where cheaper
            convolutions are laid over it, ``"efficient"`` with the fields of `litheseg.nn.efficient.Efficient`.
        classes: names and colours; their number is the number of classes.
        widths: with batch-norm statistics and affine parameters of their own, widest first.
        calibrated_widths: further ones, from `litheseg.nn.recalibrate`.
        divisor: what elastic channels are multiples of.
        size: height and width of the training views, in pixels; costs refer to it.
        resizes: whether images are resized to `size` for the network, as opposed to taken at their own size.
        mean: per channel of the images, of values over `ImageFormat.scale`: RGB scaled to [0, 1].
        std: likewise; > 0.
        dtype: of the images: "uint8", "uint16" or "float32".
        metrics: width as text -> name -> value, e.g. ``{"0.5": {"miou": 0.71}}``.
        recipe: the resolved recipe it was trained with.
        provenance: versions, seed, data and its licence, whatever explains the weights.
        format_version: of the file.

    Raises:
        BundleError: a value of the wrong type or out of range.
    """

    architecture: Mapping[str, Any]
    classes: Classes
    widths: tuple[float, ...] = (1.0,)
    calibrated_widths: tuple[float, ...] = ()
    divisor: int = 8
    size: tuple[int, int] = (512, 1024)
    resizes: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    dtype: str = "uint8"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("architecture", "metrics", "recipe", "provenance"):
            object.__setattr__(self, name, _mapping(getattr(self, name), name))
        for name in ("widths", "calibrated_widths"):
            object.__setattr__(self, name, _widths(getattr(self, name), name))
        object.__setattr__(self, "size", checked_size(self.size))
        if not isinstance(self.resizes, bool):
            raise BundleError(f"header field 'resizes' must be true or false, not {self.resizes!r}")
        object.__setattr__(self, "divisor", _whole(self.divisor, "divisor", 1 << 12))
        _check_architecture(self.architecture)
        channels = self.architecture["args"].get("in_channels", 3)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(_number(v, name) for v in _list(getattr(self, name), name, channels)))
        if not self.widths:
            raise BundleError("header field 'widths' is empty; (1.0,) is a model of one width")
        if set(self.widths) & set(self.calibrated_widths):
            raise BundleError("header fields 'widths' and 'calibrated_widths' share a width; keep it in 'widths' only")
        try:
            _ = self.images
        except DataError as error:
            raise BundleError(f"header fields 'dtype', 'mean' and 'std': {error}") from error
        if not len(self.classes):
            raise BundleError("header field 'classes' is empty; a model needs at least one class")

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def images(self) -> ImageFormat:
        """What the network takes."""
        return ImageFormat(len(self.mean), self.dtype, self.mean, self.std)

    @property
    def available_widths(self) -> tuple[float, ...]:
        """All widths that the model can run at, widest first."""
        return tuple(sorted(self.widths + self.calibrated_widths, reverse=True))

    def to_json(self) -> str:
        """The header as JSON text, fields sorted."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        content["classes"] = {"names": self.classes.names, "colors": self.classes.colors}
        return json.dumps(content, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> BundleHeader:
        """Read a header; unlike the constructor, it wants every field that there was in its version.

        Raises:
            BundleError: no JSON object, a newer format, fields that are missing or unknown, or a wrong value.
        """
        content = _parse(text)
        # First of all: a newer format may well have other fields.
        _check_version(content.get("format_version"))
        if content["format_version"] == 1:
            content.setdefault("dtype", "uint8")
        try:
            known = {entry.name for entry in fields(cls)}
            for problem, names in (("lacks", known - content.keys()), ("has unknown", content.keys() - known)):
                if names:
                    raise BundleError(f"its header {problem} fields: {', '.join(sorted(names))}")
            content["classes"] = _classes(content["classes"])
            return cls(**content)
        except BundleError as error:
            raise BundleError(f"{error}; {_REMEDY}") from error


def checked_size(value: Any) -> tuple[int, int]:
    """Height and width of images for a network, in pixels.

    Raises:
        BundleError: anything else, or sizes that would only fill the memory.
    """
    height, width = (_whole(side, "size", _MAX_SIDE) for side in _list(value, "size", 2))
    if height * width > _MAX_PIXELS:
        raise BundleError(f"header field 'size' is {value!r}; a network takes at most {_MAX_PIXELS:,} pixels")
    return height, width


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"its header is no JSON ({error}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise BundleError(f"its header is no JSON object; {_REMEDY}")
    return content


def _check_version(version: Any) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BundleError(f"its header has format_version {version!r}, which is no version; {_REMEDY}")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"it was written by a newer litheseg (format {version}; this one reads up to {FORMAT_VERSION}); "
            "pip install --upgrade litheseg"
        )


def _check_architecture(architecture: Mapping[str, Any]) -> None:
    if set(architecture) not in ({"name", "args"}, {"name", "args", "efficient"}):
        raise BundleError("header field 'architecture' must hold 'name', 'args' and, at most, 'efficient'")
    if not isinstance(architecture["name"], str) or not isinstance(architecture["args"], dict):
        raise BundleError("header field 'architecture' must hold a text 'name' and a mapping 'args'")
    if not isinstance(architecture.get("efficient", {}), dict):
        raise BundleError("header field 'architecture' must hold a mapping 'efficient'")


def _classes(content: Any) -> Classes:
    if not isinstance(content, dict) or set(content) != {"names", "colors"}:
        raise BundleError("header field 'classes' must hold exactly 'names' and 'colors'")
    names = _list(content["names"], "classes.names")
    colors = [_list(color, "classes.colors", 3) for color in _list(content["colors"], "classes.colors")]
    if any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v <= 255 for color in colors for v in color):
        raise BundleError("header field 'classes.colors' must hold whole numbers from 0 to 255")
    try:
        return Classes(tuple(names), tuple((r, g, b) for r, g, b in colors))
    except DataError as error:
        raise BundleError(f"header field 'classes': {error}") from error


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise BundleError(f"header field '{name}' must be a mapping, not {type(value).__name__}")
    plain: dict[str, Any] = _plain(value, name)
    return plain


def _plain(value: Any, name: str) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, name) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, name) for entry in value]
    raise BundleError(
        f"header field '{name}' holds a {type(value).__name__}, which JSON cannot; give numbers, texts or lists"
    )


def _list(value: Any, name: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
        wanted = "a list" if length is None else f"{length} values"
        raise BundleError(f"header field '{name}' must be {wanted}, not {value!r}")
    return list(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return float(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise BundleError(f"header field '{name}' must hold finite numbers, not {value!r}")


def _whole(value: Any, name: str, limit: int) -> int:
    number = _number(value, name)
    if number != int(number) or not 1 <= number <= limit:
        raise BundleError(f"header field '{name}' must hold whole numbers from 1 to {limit}, not {value!r}")
    return int(number)


def _widths(value: Any, name: str) -> tuple[float, ...]:
    widths = [_number(width, name) for width in _list(value, name)]
    if len(set(widths)) != len(widths) or not all(0 < width <= 1 for width in widths):
        raise BundleError(f"header field '{name}' must hold different widths in (0, 1], not {widths}")
    return tuple(sorted(widths, reverse=True))
