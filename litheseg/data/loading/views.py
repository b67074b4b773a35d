"""Strong views of unlabelled images: colour jitter, grey, blur, and CutMix with a partner image.

All random numbers are drawn on the CPU beforehand: thirteen per image for its colours and blur, and the boxes of its
mix, so that a step never waits for the device. A strong view keeps the geometry of its weak view pixel by pixel, and
one mask mixes images and predictions alike (`cut_mix`): the teacher predicts weak views, and its outputs are mixed
like the strong views.

CutMix with boxes: French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations", 2020,
Sec. 3.3; three boxes on 25 to 50 % of the area: Qin et al., "Multi-granularity distillation scheme towards lightweight
semi-supervised semantic segmentation", 2022. Jitter .8, grey .2 and blur .5: Yang et al., "Revisiting weak-to-strong
consistency in semi-supervised semantic segmentation" (UniMatch), 2023.

Usage:
    >>> views = UnlabelledViews(jitter=0.8, grey=0.2, blur=0.5)
    >>> parameters = views.resolve(views.draw(8, generator))
    >>> strong = strong_view(weak, parameters, inside, reach=views.reach)  # float32 NChw, as `weak`
    >>> cut = box_mask(draw_boxes(8, generator, size=(360, 480), boxes=3, area=(0.25, 0.5)), (360, 480))
    >>> mixed = cut_mix(strong, cut, partner)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.data.loading.transforms import channel_constants, colour_matrix, mix_colours
from litheseg.errors import DataError
from litheseg.masks.image_format import ImageFormat

__all__ = ["UnlabelledViews", "box_mask", "cut_mix", "draw_boxes", "mixed_views", "strong_view"]

_DRAWS = 8  # jitter?, brightness, contrast, saturation, hue, grey?, blur?, sigma
_MOST_BOXES = 16
_TRIES = 32  # sets of boxes per mask; of three boxes on 25 to 50 % of the area seven in eight sets fit
_LEAST_SHARE = 1e-9  # of the area that a box is drawn for; its logarithm must exist


@dataclass(frozen=True)
class UnlabelledViews:
    """How strong views of unlabelled images differ from weak ones, which differ from their image by geometry only.

    Attributes:
        count: strong views per image, 1 or 2, each with boxes and colours of its own.
        boxes: rectangles that a view takes from its partner image; 0 for no mixing.
        area: the range of the share of the view that they cover together, 0 <= low <= high <= 1; (0, 0) for no mixing.
        jitter: the probability that a view's colours are jittered, in [0, 1].
        brightness: then factors are drawn from [1 - brightness, 1 + brightness]; in [0, 1].
        contrast: likewise, around the view's mean grey.
        saturation: likewise, around each pixel's grey.
        hue: then the hue turns by up to this fraction of a full turn in either direction; in [0, 0.5].
        grey: the probability that a view loses its colours, in [0, 1].
        blur: the probability that a view is blurred, in [0, 1].
        sigma: the range of the blur's standard deviation in pixels, both > 0.

    Raises:
        DataError: a value outside its range.
    """

    count: int = 1
    boxes: int = 3
    area: tuple[float, float] = (0.25, 0.5)
    jitter: float = 0.0
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        """Refuse ranges that cannot be drawn from."""
        if self.count not in (1, 2):
            raise DataError(f"views.count is {self.count}; give 1 or 2")
        if self.boxes not in range(_MOST_BOXES + 1):
            raise DataError(f"views.boxes is {self.boxes}; give a whole number from 0 to {_MOST_BOXES}")
        low, high = self.area
        if not 0 <= low <= high <= 1:
            raise DataError(f"views.area is {self.area}; give (low, high) with 0 <= low <= high <= 1")
        limits = dict.fromkeys(("jitter", "brightness", "contrast", "saturation", "grey", "blur"), 1.0)
        for name, limit in {**limits, "hue": 0.5}.items():
            if not 0 <= getattr(self, name) <= limit:
                raise DataError(f"views.{name} is {getattr(self, name)}; give a number in [0, {limit:g}]")
        low, high = self.sigma
        if not 0 < low <= high < math.inf:
            raise DataError(f"views.sigma is {self.sigma}; give (low, high) with 0 < low <= high, such as (0.1, 2.0)")

    def for_images(self, images: ImageFormat) -> UnlabelledViews:
        """The same, without what makes no sense for the images; see `Augment.for_images`."""
        if images.dtype == "float32":
            return replace(self, jitter=0.0, grey=0.0)
        return self if images.channels == 3 else replace(self, saturation=0.0, hue=0.0, grey=0.0)

    @property
    def recolours(self) -> bool:
        """Whether a strong view may differ from its weak view at all before it is mixed."""
        return max(self.jitter, self.grey, self.blur) > 0

    @property
    def reach(self) -> int:
        """How far the blur looks to each side, in pixels: three of the largest standard deviations; 0 without blur."""
        return math.ceil(3 * self.sigma[1]) if self.blur > 0 else 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float64 `count` x 8 random numbers in [0, 1), on the CPU; they depend on the generator only."""
        return torch.rand(count, _DRAWS, generator=generator, dtype=torch.float64)

    def resolve(self, draws: Tensor) -> Tensor:
        """Turn drawn numbers (N x 8) into what `strong_view` needs: float32 N x 13 on the CPU.

        A 3x3 colour matrix, 3 contrast weights and the blur's standard deviation (0 for none) per image.
        """
        strength = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue], dtype=torch.float64)
        jitter = (2 * draws[:, 1:5] - 1) * strength * (draws[:, :1] < self.jitter)
        jitter[:, 2] = torch.where(draws[:, 5] < self.grey, -1.0, jitter[:, 2])  # factor 0: no saturation at all
        matrix, weights = colour_matrix(jitter)
        low, high = self.sigma
        sigma = torch.where(draws[:, 6] < self.blur, low + draws[:, 7] * (high - low), 0.0)
        return torch.cat([matrix.flatten(1), weights, sigma[:, None]], 1).float()


def draw_boxes(
    count: int, generator: torch.Generator, *, size: tuple[int, int], boxes: int, area: tuple[float, float]
) -> Tensor:
    """Boxes whose union covers a share of the view within exact bounds.

    Each box is drawn for an equal part of a share within the bounds, with any aspect ratio, anywhere inside the view;
    sets whose union leaves the bounds (boxes overlap, edges are rounded) are drawn again. If none of 32 sets fits, one
    near-rectangle with the last set's aspect is made to fit.

    Args:
        count: number of masks.
        generator: on the CPU; how far it moves depends on `count` and `boxes` only.
        size: (H, W) of the view, in pixels.
        boxes: per mask, >= 0.
        area: (low, high), the bounds of the union's share of the view. Where no whole number of pixels lies between,
            the nearest is taken; a single box comes as near from below as a rectangle can.

    Returns:
        int64 `count` x `boxes` x 4 on the CPU: top, left, bottom, right in pixels, the latter two exclusive.
    """
    numbers = torch.rand(count, _TRIES, boxes, 4, generator=generator, dtype=torch.float64)
    if boxes == 0 or area[1] == 0:
        return torch.zeros(count, boxes, 4, dtype=torch.int64)
    least, most = _pixel_bounds(size, area)
    found = _boxes_of(numbers, size, area)
    covered = _union(found.flatten(0, 1)).view(count, _TRIES)
    fits = (covered >= least) & (covered <= most)
    chosen = found[torch.arange(count), fits.int().argmax(1)]
    for row in (~fits.any(1)).nonzero().flatten().tolist():
        chosen[row] = _made_to_measure(numbers[row, -1], size, least, most)
    return chosen


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The union of boxes (integers ... x K x 4) as bool ... x h x w, True inside, on the boxes' device."""
    rows, columns = (torch.arange(length, device=boxes.device) for length in size)
    mask = torch.zeros(*boxes.shape[:-2], *size, dtype=torch.bool, device=boxes.device)
    for box in boxes.unbind(-2):
        top, left, bottom, right = box[..., None].unbind(-2)
        mask |= ((rows >= top) & (rows < bottom))[..., None] & ((columns >= left) & (columns < right))[..., None, :]
    return mask


def cut_mix(values: Tensor, cut: Tensor, partner: Tensor) -> Tensor:
    """Each of the first n rows, with its partner's values where `cut` is True.

    Args:
        values: M C h w (images, predictions) or M h w, M >= n.
        cut: bool n h w, or V n h w for V mixes of the same values.
        partner: int64 n, rows of `values`.

    Returns:
        As `values`, n rows; with V in front where `cut` has it.
    """
    count = cut.shape[-3]
    where = cut.unsqueeze(-3) if values.dim() == 4 else cut
    return torch.where(where, values.index_select(0, partner), values[:count])


def strong_view(
    weak: Tensor,
    parameters: Tensor,
    inside: Tensor,
    *,
    normalisation: ImageFormat = ImageFormat(),  # noqa: B008 - frozen
    reach: int = 0,
) -> Tensor:
    """Weak views with other colours and blurred; on CUDA nothing in it waits for the device.

    Args:
        weak: float NChw, normalised; 0 outside the image.
        parameters: float32 N x 13 from `UnlabelledViews.resolve`, on the views' device.
        inside: bool Nhw, True inside the image.
        normalisation: the format of the images that they are of.
        reach: of the blur, see `UnlabelledViews.reach`; 0 for no blur whatever the parameters say.

    Returns:
        NChw in the type of `weak`; 0 outside the image.
    """
    with torch.autocast(weak.device.type, enabled=False):
        view = weak.float()
        if normalisation.dtype != "float32":
            centre, gain = channel_constants(normalisation.mean, normalisation.std, weak.device)
            matrix, weights = parameters[:, :9].view(-1, 3, 3), parameters[:, 9:12]
            plain = mix_colours(view / gain + centre, inside[:, None], matrix, weights)
            view = plain.sub_(centre).mul_(gain).mul_(inside[:, None])
        if reach:
            view = _blur(view, parameters[:, 12], reach).mul_(inside[:, None])
        return view.to(weak.dtype)


def mixed_views(
    weak: Tensor,
    inside: Tensor,
    *,
    parameters: Tensor,
    boxes: Tensor,
    views: UnlabelledViews,
    normalisation: ImageFormat = ImageFormat(),  # noqa: B008 - frozen
) -> dict[str, Tensor]:
    """What a task gets of unlabelled images; on CUDA nothing in it waits for the device.

    Args:
        weak: float MChw, normalised; row n is the partner of row n - 1, if M is n + 1.
        inside: bool Mhw, False in the padding outside the image.
        parameters: float32 V x M x 13 from `UnlabelledViews.resolve`.
        boxes: integers V x n x K x 4 from `draw_boxes`.
        views: whose parameters they are.
        normalisation: the format of the images that they are of.

    Returns:
        {"weak": MChw, "inside": bool Mhw, "mixed": V n C h w, strong views mixed with their partners',
        "cut": bool V n h w, True where a pixel is the partner's, "partner": int64 n, rows of "weak"}.
    """
    partner = torch.arange(1, boxes.shape[1] + 1, device=weak.device) % len(weak)
    cut = box_mask(boxes, (weak.shape[-2], weak.shape[-1]))
    strong = [weak] * len(parameters)
    if views.recolours:
        how: dict[str, Any] = {"normalisation": normalisation, "reach": views.reach}
        strong = [strong_view(weak, own, inside, **how) for own in parameters]
    mixed = torch.stack([cut_mix(view, where, partner) for view, where in zip(strong, cut, strict=True)])
    return {"weak": weak, "inside": inside, "mixed": mixed, "cut": cut, "partner": partner}


def _blur(view: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Gaussian blur of NChw by standard deviations N in pixels, mirrored at the edges; 0 leaves an image as it is."""
    count, channels, height, width = view.shape
    blurred = view.reshape(1, count * channels, height, width)
    for axis, length in ((-2, height), (-1, width)):
        near = min(reach, length - 1)  # mirroring reaches no further
        kernel = _gaussian(sigma, near).repeat_interleave(channels, 0)[:, None, :, None].transpose(-2, axis)
        pad = (0, 0, near, near) if axis == -2 else (near, near, 0, 0)
        blurred = F.conv2d(F.pad(blurred, pad, mode="reflect"), kernel, groups=count * channels)
    return torch.where(sigma[:, None, None, None] > 0, blurred.view_as(view), view)


def _gaussian(sigma: Tensor, reach: int) -> Tensor:
    """N x (2 reach + 1) weights that sum to 1."""
    steps = torch.arange(-reach, reach + 1, device=sigma.device, dtype=sigma.dtype)
    # Standard deviations near 0 would divide by 0; at 0.01 pixels only the middle weighs anything.
    return torch.softmax(-0.5 * (steps / sigma.clamp(min=0.01)[:, None]) ** 2, 1)


def _pixel_bounds(size: tuple[int, int], area: tuple[float, float]) -> tuple[int, int]:
    """The least and the most pixels that a share within `area` can be."""
    # By its text: 0.1 means one tenth, not the nearest binary fraction.
    low, high = (Fraction(str(share)) * size[0] * size[1] for share in area)
    if math.ceil(low) > math.floor(high):
        nearest = math.floor((low + high) / 2 + Fraction(1, 2))
        return nearest, nearest
    return math.ceil(low), math.floor(high)


def _boxes_of(numbers: Tensor, size: tuple[int, int], area: tuple[float, float]) -> Tensor:
    """Boxes (int64 ... x K x 4) out of numbers (... x K x 4: share, aspect, row, column)."""
    share = (area[0] + numbers[..., 0] * (area[1] - area[0])).clamp(min=_LEAST_SHARE)
    # Height and width as shares of the view's: their product is the box's share, their ratio log-uniform.
    tall = share ** numbers[..., 1]
    smaller = numbers.shape[-2] ** -0.5
    height = torch.round(tall * smaller * size[0])
    width = torch.round(share / tall * smaller * size[1])
    top = torch.round((size[0] - height) * numbers[..., 2])
    left = torch.round((size[1] - width) * numbers[..., 3])
    return torch.stack([top, left, top + height, left + width], -1).long()


def _union(boxes: Tensor) -> Tensor:
    """The number of pixels in the union of boxes: int64 N out of N x K x 4.

    The edges of all boxes cut the plane into at most (2K - 1)^2 cells, each wholly inside or outside of a box.
    """
    (tops, lefts), (bottoms, rights) = boxes[..., :2].unbind(-1), boxes[..., 2:].unbind(-1)
    inside, lengths = [], []
    for low, high in ((tops, bottoms), (lefts, rights)):
        edges = torch.cat([low, high], 1).sort(1).values
        inside.append((low[..., None] <= edges[:, None, :-1]) & (edges[:, None, 1:] <= high[..., None]))
        lengths.append(edges.diff(dim=1))
    cells = (inside[0][..., None] & inside[1][..., None, :]).any(1)
    return (cells * lengths[0][:, :, None] * lengths[1][:, None, :]).sum((1, 2))


def _made_to_measure(numbers: Tensor, size: tuple[int, int], least: int, most: int) -> Tensor:
    """K x 4 boxes with least..most pixels: a rectangle of drawn aspect, and a part of one more column for the rest."""
    found = torch.zeros(len(numbers), 4, dtype=torch.int64)
    amount, aspect, row, column = numbers[0].tolist()
    pixels = least + int(amount * (most - least + 1))
    if pixels == 0:
        return found
    height = round(size[0] * (pixels / (size[0] * size[1])) ** aspect)
    height = min(max(height, -(-pixels // size[1])), size[0], pixels)
    width, rest = divmod(pixels, height)
    if len(numbers) == 1:
        (height, width), rest = _one_box(height, size, least, most), 0
    top = round((size[0] - height) * row)
    left = round((size[1] - width - (rest > 0)) * column)
    found[0] = torch.tensor([top, left, top + height, left + width])
    if rest:
        found[1] = torch.tensor([top, left + width, top + rest, left + width + 1])
    return found


def _one_box(height: int, size: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """The box (height, width) with least..most pixels whose height is nearest; otherwise the largest below."""
    fitting = ((tall, min(size[1], most // tall)) for tall in range(1, min(size[0], most) + 1))
    return min(fitting, key=lambda box: (max(least - box[0] * box[1], 0), abs(box[0] - height)))
