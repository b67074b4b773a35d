"""What a finished teacher sees: the student's views, normalised and scaled as the teacher knows images.

A teacher that came from elsewhere may expect another mean and standard deviation, or images resized to another size; of
the student's views it would make nonsense. It does not know networks.

Usage:
    >>> sees = TeacherInput(data.mean, data.std, header.mean, header.std, scale=(2.0, 2.0))
    >>> outputs = teacher.outputs(sees(image))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.data.transforms import channel_constants

__all__ = ["TeacherInput"]

Channels = tuple[float, float, float]


class TeacherInput:
    """From the student's views to the teacher's.

    Padding outside the image, 0 in the student's views, is 0 in the teacher's too: the mean colour that either was
    trained with. A pixel counts as padding if it has the student's mean colour in all three channels, exactly.

    Args:
        mean: per RGB channel, of the student's images scaled to [0, 1].
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
        """Float N3hw to N3HW; the very tensor where student and teacher agree."""
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
