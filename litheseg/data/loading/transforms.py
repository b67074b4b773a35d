"""Training views of a batch, made on the device that holds it: scale, crop, flip and colour in one pass.

All random numbers are drawn on the CPU beforehand (`Augment.parameters`), sixteen per image, so that a step never waits
for the device, and so that the same generator gives the same view on any device and in any process. `apply_views` is
then a pure function of batch and parameters: one `grid_sample` for the images (bilinear), one on the same grid for the
masks (nearest), and one 3x3 colour matrix per image. Scales below about 0.5 skip source pixels, as every bilinear
`grid_sample` does.

The colour steps (brightness, contrast, saturation, hue, in this order) have torchvision's meaning, with two differences
that let them be one matrix: values are clipped once at the end, and hue turns the chroma plane of YIQ instead of HSV.
Images of whole numbers that are not three channels get brightness and contrast, one factor for all channels, contrast
around the mean of each; images of floats, which are measurements (depth, temperature, reflectance), keep their values.

Usage:
    >>> augment = Augment(scale=(0.5, 2.0))
    >>> parameters = augment.parameters(8, torch.Generator().manual_seed(0), source=(360, 480), crop=(360, 480))
    >>> view, labels = apply_views(image, mask, parameters, crop=(360, 480))  # uint8 in, float32 and int64 out
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.errors import DataError
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.masks.image_format import ImageFormat

__all__ = [
    "Augment",
    "apply_views",
    "channel_constants",
    "colour_matrix",
    "image_views",
    "mix_colours",
    "normalise",
]

_LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)  # ITU-R BT.601
_RGB_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], dtype=torch.float64
)
_DRAWS = 8  # scale, row, column, flip, brightness, contrast, saturation, hue


@dataclass(frozen=True)
class Augment:
    """How training views may differ from their image.

    Attributes:
        scale: the range of zoom factors, drawn log-uniformly so that halving is as likely as doubling; both > 0.
        flip: the probability of a horizontal flip, in [0, 1].
        flip_vertical: likewise of a vertical one: for images without an up, such as those of microscopes and drones.
        brightness: factors are drawn from [1 - brightness, 1 + brightness]; in [0, 1].
        contrast: likewise, around the view's mean grey.
        saturation: likewise, around each pixel's grey.
        hue: the hue turns by up to this fraction of a full turn in either direction; in [0, 0.5].

    Raises:
        DataError: a value outside its range.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    flip_vertical: float = 0.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.03

    def __post_init__(self) -> None:
        """Refuse ranges that cannot be drawn from."""
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise DataError(f"augment.scale is {self.scale}; give (low, high) with 0 < low <= high, such as (0.5, 2.0)")
        limits = {"flip": 1.0, "flip_vertical": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise DataError(f"augment.{name} is {getattr(self, name)}; give a number in [0, {limit:g}]")

    @classmethod
    def none(cls) -> Augment:
        """No change at all: views are the images, cropped or padded to the crop."""
        return cls(scale=(1.0, 1.0), flip=0.0, flip_vertical=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)

    def geometry_only(self) -> Augment:
        """The same, but colours stay as they are."""
        return replace(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)

    def for_images(self, images: ImageFormat) -> Augment:
        """The same, without what makes no sense for the images: colours of other than three channels, or of floats."""
        if images.dtype == "float32":
            return self.geometry_only()
        return self if images.channels == 3 else replace(self, saturation=0.0, hue=0.0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float64 `count` x 8 random numbers in [0, 1), on the CPU; they depend on the generator only."""
        return torch.rand(count, _DRAWS, generator=generator, dtype=torch.float64)

    def resolve(self, draws: Tensor, *, source: tuple[int, int], crop: tuple[int, int]) -> Tensor:
        """Turn drawn numbers into what `apply_views` needs.

        Args:
            draws: N x 8 as `draw` gives them.
            source: (H, W) of the images before the view, in pixels.
            crop: (H, W) of the view, in pixels.

        Returns:
            float32 N x 16 on the CPU: 4 numbers of geometry, a 3x3 colour matrix, 3 contrast weights per image.
        """
        geometry = self._geometry(draws, source, crop)
        strength = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue], dtype=torch.float64)
        matrix, weights = colour_matrix((2 * draws[:, 4:8] - 1) * strength)
        return torch.cat([geometry, matrix.flatten(1), weights], 1).float()

    def parameters(
        self, count: int, generator: torch.Generator, *, source: tuple[int, int], crop: tuple[int, int]
    ) -> Tensor:
        """`draw` and `resolve` in one call."""
        return self.resolve(self.draw(count, generator), source=source, crop=crop)

    def _geometry(self, draws: Tensor, source: tuple[int, int], crop: tuple[int, int]) -> Tensor:
        """N x 4: gain and offset along x, then along y, from the view's [-1, 1] to the source's [-1, 1]."""
        low, high = self.scale
        # Never below one pixel, else a view of a tiny image could fall between the pixels and hold no label at all.
        scale = (low * (high / low) ** draws[:, 0]).clamp(min=1 / min(source))
        columns = []
        for axis, sign in zip((1, 0), self._mirrors(draws[:, 3]), strict=True):
            scaled = scale * source[axis]
            # Whole pixels: at scale 1 the view then copies pixels instead of blending neighbours. A scaled image
            # smaller than the crop makes the span negative: it lands anywhere inside the padding.
            shift = torch.round(draws[:, 2 - axis] * (scaled - crop[axis]))
            columns += [sign * crop[axis] / scaled, sign * ((2 * shift + crop[axis]) / scaled - 1)]
        return torch.stack(columns, 1)

    def _mirrors(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """-1 where x, and where y, is mirrored: two independent choices from one uniform number each."""
        flipped = draws < self.flip
        rest = torch.where(flipped, draws / max(self.flip, 1e-9), (draws - self.flip) / max(1 - self.flip, 1e-9))
        return torch.where(flipped, -1.0, 1.0).double(), torch.where(rest < self.flip_vertical, -1.0, 1.0).double()


def apply_views(
    image: Tensor,
    mask: Tensor,
    parameters: Tensor,
    *,
    crop: tuple[int, int],
    normalisation: ImageFormat = ImageFormat(),  # noqa: B008 - frozen
) -> tuple[Tensor, Tensor]:
    """The views of a batch; on CUDA nothing in it waits for the device.

    Args:
        image: NCHW of the format's type.
        mask: uint8 NHW, train ids, 255 = ignore.
        parameters: float32 N x 16 from `Augment.resolve` for this H x W and this crop, on the images' device.
        crop: (H, W) of the views, in pixels.
        normalisation: the format of the images.

    Returns:
        float32 NChw normalised, and int64 Nhw; what lies outside the image is 0 (the mean colour) and 255.
    """
    # Under autocast the colour matrix would be applied in 8 bits of mantissa.
    with torch.autocast(image.device.type, enabled=False):
        grid, inside = _grid(parameters, crop)
        labels = F.grid_sample(mask[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
        labels = torch.where(inside, labels, float(IGNORE_INDEX)).squeeze(1).long()
        return _view(image, grid, inside, parameters, normalisation), labels


def image_views(
    image: Tensor,
    parameters: Tensor,
    *,
    crop: tuple[int, int],
    normalisation: ImageFormat = ImageFormat(),  # noqa: B008 - frozen
) -> tuple[Tensor, Tensor]:
    """The views of images without masks; see `apply_views`.

    Returns:
        float32 NChw normalised, 0 outside the image; and bool Nhw, True inside the image.
    """
    with torch.autocast(image.device.type, enabled=False):
        grid, inside = _grid(parameters, crop)
        return _view(image, grid, inside, parameters, normalisation), inside[:, 0]


def colour_matrix(jitter: Tensor) -> tuple[Tensor, Tensor]:
    """What `mix_colours` needs for a change of colours.

    Args:
        jitter: float64 N x 4: brightness, contrast, saturation as offsets from factor 1; hue as a fraction of a turn.

    Returns:
        Matrices N33, and weights N3 whose product with the mean colour is the shift that contrast adds; both float64.
    """
    brightness, contrast, saturation = (1 + jitter[:, :3]).unbind(1)
    grey = _LUMA.expand(3, 3)
    blend = saturation[:, None, None] * torch.eye(3).double() + (1 - saturation)[:, None, None] * grey
    matrix = (brightness * contrast)[:, None, None] * (_hue_matrix(jitter[:, 3]) @ blend)
    # Saturation and hue leave greys alone, hence the shift towards the mean grey passes through them unchanged.
    return matrix, ((1 - contrast) * brightness)[:, None] * _LUMA


def mix_colours(view: Tensor, inside: Tensor, matrix: Tensor, weights: Tensor) -> Tensor:
    """Change the colours of a batch, without waiting for the device.

    Args:
        view: float NChw in [0, 1]; values outside the image are ignored.
        inside: bool N1hw, True inside the image.
        matrix: N33, and
        weights: N3 from `colour_matrix`, in the views' type and on their device; of other than three channels, for
            brightness and contrast alone.

    Returns:
        A new NChw, clipped to [0, 1].
    """
    # The padding repeats border colours: it must not count in the mean grey.
    count = inside.sum((2, 3)).clamp(min=1)
    average = (view * inside).sum((2, 3)) / count
    if view.shape[1] != 3:  # the matrix is a factor
        shift = weights.sum(1, keepdim=True) * average
        return (view * matrix[:, :1, :1, None]).add_(shift[:, :, None, None]).clamp_(0, 1)
    shift = (weights * average).sum(1)[:, None, None].expand(-1, 3, 1)
    return torch.baddbmm(shift, matrix, view.flatten(2)).view_as(view).clamp_(0, 1)


@lru_cache(maxsize=32)
def channel_constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and 1/std as Cx1x1 on the device; kept, because making a tensor from Python numbers there is a sync."""
    centre = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
    return centre, 1 / torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)


def normalise(image: Tensor, images: ImageFormat = ImageFormat()) -> Tensor:  # noqa: B008 - frozen
    """...CHW of the format's type to float32: over its scale, minus its mean, over its standard deviation."""
    centre, gain = channel_constants(images.mean, images.std, image.device)
    return (image.float() / images.scale).sub_(centre).mul_(gain)


def _grid(parameters: Tensor, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where each view pixel is sampled: NHW2 in [-1, 1]; and bool N1HW, true inside the image."""
    gain_x, offset_x, gain_y, offset_y = parameters[:, :4].unbind(1)
    x = gain_x[:, None] * _centres(crop[1], parameters) + offset_x[:, None]
    y = gain_y[:, None] * _centres(crop[0], parameters) + offset_y[:, None]
    inside = (y.abs() <= 1)[:, None, :, None] & (x.abs() <= 1)[:, None, None, :]
    shape = (len(parameters), *crop)
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1), inside


def _centres(length: int, like: Tensor) -> Tensor:
    """The pixel centres of an axis in [-1, 1] (align_corners=False)."""
    return (2 * torch.arange(length, device=like.device, dtype=like.dtype) + 1) / length - 1


def _view(image: Tensor, grid: Tensor, inside: Tensor, parameters: Tensor, images: ImageFormat) -> Tensor:
    """Geometry and colour of NCHW, normalised; 0 outside the image."""
    view = F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    centre, gain = channel_constants(images.mean, images.std, view.device)
    view.div_(images.scale)
    if images.dtype != "float32":
        view = mix_colours(view, inside, parameters[:, 4:13].view(-1, 3, 3), parameters[:, 13:16])
    return view.sub_(centre).mul_(gain).mul_(inside)


def _hue_matrix(turns: Tensor) -> Tensor:
    """N33 matrices that turn the chroma of RGB colours by `turns` (N, fractions of a full turn); greys stay."""
    angle = 2 * math.pi * turns
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    return torch.linalg.inv(_RGB_TO_YIQ) @ turn @ _RGB_TO_YIQ
