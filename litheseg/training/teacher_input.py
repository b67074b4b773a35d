"""What a finished teacher takes: the same classes and images as the run, in the normalisation and size of its own.

Usage:
    >>> require_classes("deep.safetensors", bundle.header.classes.names, data.classes.names)
    >>> sees = teacher_input("deep.safetensors", bundle.header, data)
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.data.loading.transforms import channel_constants
from litheseg.errors import RecipeError
from litheseg.masks.image_format import ImageFormat
from litheseg.models.bundle import BundleHeader

if TYPE_CHECKING:
    from litheseg.data.loading.datamodule import SegmentationData  # reading a recipe needs no Lightning

__all__ = ["TeacherInput", "require_classes", "require_images", "teacher_input"]

Channels = tuple[float, ...]


def require_classes(path: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    """Refuse a teacher, the file at `path`, whose classes are not those of the data, with the first that differs."""
    if theirs == ours:
        return
    differing = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
    what = f"'{differing[0]}' where the data has '{differing[1]}'" if differing else f"{len(theirs)} classes"
    raise RecipeError(
        f"teacher {path} knows {what} (the data has {len(ours)} classes); choose a teacher that was trained on the "
        "same classes in the same order"
    )


def require_images(path: str, theirs: ImageFormat, ours: ImageFormat) -> None:
    """Refuse a teacher, the file at `path`, that takes other images than those of the data."""
    if theirs.kind != ours.kind:
        raise RecipeError(
            f"teacher {path} takes images of {theirs}, and the data has {ours}; choose a teacher that was trained on "
            "such images"
        )


def teacher_input(path: str, header: BundleHeader, data: SegmentationData) -> TeacherInput:
    """Turns the data's views into the teacher's own; the change of scale is known only where both resize."""
    scale = (1.0, 1.0)
    if header.resizes and data.size:
        scale = (header.size[0] / data.size[0], header.size[1] / data.size[1])
    elif header.resizes or data.size:
        how = ["at their own size", "resized to {}x{}"]
        theirs, ours = how[header.resizes].format(*header.size), how[bool(data.size)].format(*data.size or ())
        warnings.warn(
            f"teacher {path} knows images {theirs}, and here they are {ours}: it may see everything at another scale; "
            "give --data.size as it was trained with"
        )
    return TeacherInput(data.images.mean, data.images.std, header.mean, header.std, scale)


class TeacherInput:
    """From the student's views to the teacher's.

    Padding outside the image, 0 in the student's views, is 0 in the teacher's too: the mean colour that either was
    trained with. A pixel counts as padding if it has the student's mean colour in all channels, exactly.

    Args:
        mean: per channel, of the student's images over their scale.
        std: likewise; > 0.
        own_mean: the teacher's.
        own_std: likewise; > 0.
        scale: height and width of the teacher's images over those of the student's.
    """

    def __init__(
        self, mean: Channels, std: Channels, own_mean: Channels, own_std: Channels, scale: tuple[float, float] = (1, 1)
    ) -> None:
        self._student, self._teacher, self._scale = (tuple(mean), tuple(std)), (tuple(own_mean), tuple(own_std)), scale

    def __call__(self, image: Tensor) -> Tensor:
        """Float NChw to NCHW; the very tensor where student and teacher agree."""
        with torch.autocast(image.device.type, enabled=False):
            return self._zoomed(self._normalised(image))

    def _normalised(self, image: Tensor) -> Tensor:
        if self._student == self._teacher:
            return image
        (centre, gain), (own_centre, own_gain) = (
            channel_constants(*values, image.device) for values in (self._student, self._teacher)
        )
        inside = (image != 0).any(1, keepdim=True)
        return (image.float() / gain + centre).sub_(own_centre).mul_(own_gain).mul_(inside).to(image.dtype)

    def _zoomed(self, image: Tensor) -> Tensor:
        if self._scale == (1, 1):
            return image
        size = tuple(max(1, round(pixels * scale)) for pixels, scale in zip(image.shape[-2:], self._scale, strict=True))
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
