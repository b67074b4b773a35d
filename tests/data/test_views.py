"""Strong views: exact areas, one mask for all, colours as labelled views have them, torchvision's blur."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from litheseg.data.loading.transforms import Augment, apply_views, image_views
from litheseg.data.loading.views import UnlabelledViews, box_mask, cut_mix, draw_boxes, strong_view
from litheseg.errors import DataError
from litheseg.masks.image_format import ImageFormat

UNIT: dict[str, Any] = {"normalisation": ImageFormat(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def painted(boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The union of one mask's boxes, painted one by one."""
    canvas = np.zeros(size, bool)
    for top, left, bottom, right in boxes.tolist():
        assert 0 <= top <= bottom <= size[0] and 0 <= left <= right <= size[1]
        canvas[top:bottom, left:right] = True
    return canvas


def image(count: int = 6, height: int = 20, width: int = 26) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=generator(1), dtype=torch.uint8)


def everywhere(weak: Tensor) -> Tensor:
    return torch.ones(len(weak), *weak.shape[-2:], dtype=torch.bool)


@pytest.mark.parametrize("size", [(360, 480), (33, 47), (64, 1), (1, 9), (5, 7), (3, 3), (2, 2)])
@pytest.mark.parametrize(
    ("boxes", "area"),
    [
        (1, (0.25, 0.5)),
        (2, (0.5, 0.5)),
        (3, (0.25, 0.5)),
        (3, (0.3, 0.31)),
        (3, (0.9, 1.0)),
        (5, (0.0, 0.1)),
        (4, (1, 1)),
    ],
)
def test_the_union_of_boxes_has_the_asked_area_exactly(size: tuple[int, int], boxes: int, area: Any) -> None:
    low, high = (Fraction(str(share)) * size[0] * size[1] for share in area)
    for mask in draw_boxes(300, generator(), size=size, boxes=boxes, area=area):
        count = int(painted(mask, size).sum())
        if math.ceil(low) <= math.floor(high):
            assert low <= count <= high
        else:  # no whole number of pixels lies between
            assert abs(count - (low + high) / 2) <= Fraction(1, 2)


def test_one_box_comes_as_near_from_below_as_a_rectangle_can() -> None:
    """23 of 7 x 7 pixels are no rectangle, 21 are the most below."""
    for mask in draw_boxes(50, generator(), size=(7, 7), boxes=1, area=(0.47, 0.47)):
        assert painted(mask, (7, 7)).sum() == 21


def test_boxes_vary_in_place_and_shape() -> None:
    boxes = draw_boxes(2000, generator(), size=(30, 40), boxes=3, area=(0.25, 0.5))
    heights, widths = (boxes[..., 2] - boxes[..., 0]) / 30, (boxes[..., 3] - boxes[..., 1]) / 40
    drawn = (heights > 0) & (widths > 0)
    assert 0.4 < (heights > widths)[drawn].float().mean() < 0.6
    share = np.mean([painted(mask, (30, 40)) for mask in boxes], axis=0)
    assert 0.25 < share.mean() < 0.5 and share.min() > 0


def test_masks_are_painted_boxes_and_repeat_with_the_generator() -> None:
    boxes = draw_boxes(12, generator(), size=(31, 17), boxes=3, area=(0.25, 0.5))
    oracle = np.stack([painted(mask, (31, 17)) for mask in boxes])
    assert np.array_equal(box_mask(boxes, (31, 17)).numpy(), oracle)
    folded = box_mask(boxes.view(2, 6, 3, 4).int(), (31, 17))
    assert np.array_equal(folded.flatten(0, 1).numpy(), oracle)
    assert torch.equal(draw_boxes(12, generator(), size=(31, 17), boxes=3, area=(0.25, 0.5)), boxes)
    generators = [generator(), generator()]
    for one, size in zip(generators, ((31, 17), (360, 480)), strict=True):
        draw_boxes(12, one, size=size, boxes=3, area=(0.25, 0.5))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize(("boxes", "area"), [(0, (0.25, 0.5)), (3, (0.0, 0.0))])
def test_nothing_is_cut_without_boxes_or_area(boxes: int, area: tuple[float, float]) -> None:
    found = draw_boxes(4, generator(), size=(9, 8), boxes=boxes, area=area)
    assert found.shape == (4, boxes, 4) and not box_mask(found, (9, 8)).any()


def test_one_mask_mixes_images_predictions_and_labels() -> None:
    cut = torch.rand(2, 3, 5, 4, generator=generator()) < 0.4
    partner = torch.tensor([1, 2, 3])
    images, logits = torch.randn(4, 3, 5, 4), torch.randn(4, 7, 5, 4)
    for values in (images, logits, logits.argmax(1)):
        both = cut_mix(values, cut, partner)
        for view in range(2):
            found = cut_mix(values, cut[view], partner)
            assert torch.equal(found, both[view]) and found.dtype == values.dtype
            for i, y, x in np.ndindex(3, 5, 4):
                source = i + 1 if cut[view, i, y, x] else i
                assert torch.equal(found[i, ..., y, x], values[source, ..., y, x])


@pytest.mark.parametrize("size", [(20, 26), (5, 30)])
def test_blur_is_torchvisions(size: tuple[int, int]) -> None:
    views = UnlabelledViews(blur=0.6, sigma=(0.3, 1.5))
    weak, _ = image_views(image(6, *size), plain(size), crop=size)
    parameters = views.resolve(views.draw(6, generator(3)))
    assert views.reach == 5
    found = strong_view(weak, parameters, everywhere(weak), reach=views.reach)
    kernel = [2 * min(views.reach, size[1] - 1) + 1, 2 * min(views.reach, size[0] - 1) + 1]
    sigmas = parameters[:, 12].tolist()
    assert 0 in sigmas and max(sigmas) > 0.3
    for one, before, sigma in zip(found, weak, sigmas, strict=True):
        expected = tv.gaussian_blur(before.double(), kernel, [sigma, sigma]).float() if sigma else before
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)


def plain(source: tuple[int, int], crop: tuple[int, int] | None = None, count: int = 6) -> Tensor:
    return Augment.none().parameters(count, generator(), source=source, crop=crop or source)


@pytest.mark.parametrize("crop", [(20, 26), (33, 40)])
def test_colours_are_those_that_labelled_views_have(crop: tuple[int, int]) -> None:
    strength = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.6, "hue": 0.2}
    views = UnlabelledViews(jitter=1.0, **strength)
    draws = views.draw(6, generator(5))
    augment, numbers = Augment(scale=(1.0, 1.0), flip=0.0, **strength), torch.full((6, 8), 0.5, dtype=torch.float64)
    numbers[:, 4:8] = draws[:, 1:5]
    parameters = augment.resolve(numbers, source=(20, 26), crop=crop)
    expected, labels = apply_views(image(), torch.zeros(6, 20, 26, dtype=torch.uint8), parameters, crop=crop)
    weak, inside = image_views(image(), augment.geometry_only().resolve(numbers, source=(20, 26), crop=crop), crop=crop)
    assert torch.equal(inside, labels != 255)
    found = strong_view(weak, views.resolve(draws), inside)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert (found - weak).abs().mean() > 0.1


def test_grey_is_torchvisions() -> None:
    weak, inside = image_views(image(), plain((20, 26)), crop=(20, 26), **UNIT)
    views = UnlabelledViews(grey=1.0)
    found = strong_view(weak, views.resolve(views.draw(6, generator())), inside, **UNIT)
    torch.testing.assert_close(found, tv.rgb_to_grayscale(weak, num_output_channels=3), atol=1e-3, rtol=0)


def test_jittered_greys_have_no_colour_left() -> None:
    weak, inside = image_views(image(), plain((20, 26)), crop=(20, 26), **UNIT)
    views = UnlabelledViews(jitter=1.0, grey=1.0)
    found = strong_view(weak, views.resolve(views.draw(6, generator())), inside, **UNIT)
    assert (found.amax(1) - found.amin(1)).max() < 1e-4 and found.std() > 0.01


def test_probabilities_are_as_asked() -> None:
    views = UnlabelledViews(jitter=0.3, saturation=0.0, grey=0.2, blur=0.6, sigma=(0.5, 3.0))
    parameters = views.resolve(views.draw(5000, generator()))
    identity = torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0, 1])
    still = (parameters[:, :9] - identity).abs().amax(1) < 1e-6
    assert 0.53 < still.float().mean() < 0.59  # 0.7 not jittered x 0.8 not grey
    sigma = parameters[:, 12]
    assert 0.57 < (sigma > 0).float().mean() < 0.63
    assert 0.5 <= sigma[sigma > 0].min() < 0.51 and 2.99 < sigma.max() <= 3.0


def test_what_changes_nothing_keeps_every_value() -> None:
    weak, inside = image_views(image(), plain((20, 26)), crop=(20, 26))
    views = UnlabelledViews()
    assert not views.recolours and views.reach == 0
    found = strong_view(weak, views.resolve(views.draw(6, generator())), inside)
    torch.testing.assert_close(found, weak, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padding_stays_zero_in_any_type(dtype: torch.dtype) -> None:
    weak, inside = image_views(image(), plain((20, 26), (30, 40)), crop=(30, 40))
    views = UnlabelledViews(jitter=1.0, blur=1.0)
    found = strong_view(weak.to(dtype), views.resolve(views.draw(6, generator())), inside, reach=views.reach)
    assert found.dtype == dtype and not inside.all()
    assert found.permute(0, 2, 3, 1)[~inside].abs().max() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 3}, "views.count is 3; give 1 or 2"),
        ({"boxes": -1}, "views.boxes is -1"),
        ({"boxes": 17}, "views.boxes is 17.*0 to 16"),
        ({"area": (0.5, 0.25)}, r"views.area is \(0.5, 0.25\)"),
        ({"area": (0.5, 1.5)}, "views.area"),
        ({"area": (math.nan, 0.5)}, "views.area"),
        ({"jitter": 1.5}, "views.jitter is 1.5"),
        ({"grey": -0.1}, "views.grey"),
        ({"blur": math.nan}, "views.blur"),
        ({"hue": 0.6}, r"views.hue is 0.6; give a number in \[0, 0.5\]"),
        ({"sigma": (0.0, 1.0)}, "views.sigma"),
        ({"sigma": (1.0, math.inf)}, "views.sigma"),
    ],
)
def test_values_out_of_range_are_refused(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        UnlabelledViews(**values)
