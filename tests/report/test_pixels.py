from __future__ import annotations

import numpy as np
import pytest

from litheseg.errors import DataError
from litheseg.masks.classes import Classes
from litheseg.report.pixels import ERROR_COLORS, error_map, overlay

CLASSES = Classes(names=("road", "car"), colors=((200, 0, 0), (0, 0, 100)))
IMAGE = np.full((2, 3, 3), 100, dtype=np.uint8)
MASK = np.array([[0, 1, 255], [0, 0, 255]], dtype=np.uint8)


def test_overlay_blends_classes_and_leaves_ignored_pixels() -> None:
    painted = overlay(IMAGE, MASK, CLASSES, alpha=0.5)
    assert painted.dtype == np.uint8
    assert painted[0, 0].tolist() == [150, 50, 50]
    assert painted[0, 1].tolist() == [50, 50, 100]
    assert painted[:, 2].tolist() == IMAGE[:, 2].tolist()


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [100, 100, 100]), (1.0, [200, 0, 0])])
def test_overlay_at_the_ends_of_alpha(alpha: float, expected: list[int]) -> None:
    assert overlay(IMAGE, MASK, CLASSES, alpha)[0, 0].tolist() == expected


def test_overlay_takes_signed_masks_and_keeps_its_inputs() -> None:
    image, mask = IMAGE.copy(), MASK.astype(np.int64)
    assert np.array_equal(overlay(image, mask, CLASSES), overlay(IMAGE, MASK, CLASSES))
    assert np.array_equal(image, IMAGE) and np.array_equal(mask, MASK)


@pytest.mark.parametrize(
    ("image", "mask", "alpha", "message"),
    [
        (IMAGE, MASK + np.uint8(1), 0.5, r"ids \[2\]"),
        (IMAGE, MASK.astype(int) - 1, 0.5, r"ids \[-1, 254\]"),
        (IMAGE, MASK[:, :2], 0.5, "resize"),
        (IMAGE.astype(np.float32), MASK, 0.5, "uint8"),
        (IMAGE[..., 0], MASK, 0.5, "RGB"),
        (IMAGE, MASK, 1.5, "alpha is 1.5"),
    ],
)
def test_overlay_refuses_what_does_not_fit(image: np.ndarray, mask: np.ndarray, alpha: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        overlay(image, mask, CLASSES, alpha)


def test_error_map_tells_right_wrong_ignored_and_band_apart() -> None:
    prediction = np.array([[0, 0, 0], [0, 1, 1]])
    band = np.array([[False, True, True], [True, False, False]])
    result = error_map(IMAGE, prediction, MASK, band)
    assert result.dtype == np.uint8
    assert result[0, 0].tolist() == [170, 170, 170]  # right: the image, grey and paler
    assert tuple(result[0, 1]) == ERROR_COLORS["wrong, at a boundary"]
    assert tuple(result[1, 1]) == ERROR_COLORS["wrong"]
    assert (result[:, 2] == 0).all()  # ignored, whatever was predicted and in the band or not
    red, _, blue = (int(value) for value in result[1, 0])
    assert blue > red  # right, at a boundary: tinted


def test_error_map_without_a_band_has_one_kind_of_error() -> None:
    result = error_map(IMAGE, np.ones_like(MASK), MASK)
    assert {tuple(pixel) for pixel in result[MASK == 0]} == {ERROR_COLORS["wrong"]}


def test_error_map_refuses_other_sizes() -> None:
    with pytest.raises(DataError, match=r"the band is \(1, 3\)"):
        error_map(IMAGE, MASK, MASK, np.ones((1, 3), dtype=bool))
    with pytest.raises(DataError, match="the prediction is"):
        error_map(IMAGE, MASK.T, MASK)
