from __future__ import annotations

import numpy as np
import pytest

from litheseg.errors import DataError
from litheseg.report.plots import ERROR_COLORS, error_map

IMAGE = np.full((2, 3, 3), 100, dtype=np.uint8)
MASK = np.array([[0, 1, 255], [0, 0, 255]], dtype=np.uint8)


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
