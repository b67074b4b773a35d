"""Colours of classes that have none of their own can be told apart, also without one kind of cones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from litheseg.masks.classes import Classes, read_class_file
from litheseg.masks.colours import BACKGROUND, default_colors

# Dichromats in linear RGB after Vienot, Brettel and Mollon (Color Research and Application 1999), another model than
# the one that the colours were chosen by; rows are the red, green and blue that are seen.
EYES = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deuteranopia": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


def lab(color: tuple[int, int, int], eye: str) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour as an eye sees it."""
    share = np.array(color) / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    seen = (EYES[eye] @ linear).clip(0, 1)
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    ratio = np.array(matrix) @ seen / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colors: list[tuple[int, int, int]], eye: str) -> float:
    points = [lab(color, eye) for color in colors]
    return min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(points, 2))


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize(("count", "distance"), [(7, 10.0), (20, 8.0), (40, 5.0)])
def test_they_are_told_apart(eye: str, count: int, distance: float) -> None:
    """A distance of 2.3 is just noticeable (Mahy et al., 1994)."""
    colors = [*default_colors([f"class {index}" for index in range(count)]), (0, 0, 0), (255, 255, 255)]
    assert nearest(colors, eye) >= distance


def test_there_are_as_many_as_classes_can_be() -> None:
    colors = default_colors([f"class {index}" for index in range(254)])
    assert len({*colors, (0, 0, 0)}) == 255
    assert colors[:30] == default_colors([f"other {index}" for index in range(30)]), "the same for the same place"


def test_a_background_is_grey_and_own_colours_are_kept_apart_from(tmp_path: Path) -> None:
    assert Classes.from_names(["Background", "leaf"]).colors == (BACKGROUND, default_colors(["", ""])[1])
    path = tmp_path / "classes.yaml"
    orange = default_colors(["first"])[0]
    path.write_text(f"classes: [a, {{name: b, color: {list(orange)}}}, c, d]")
    colors = read_class_file(path).scheme.classes.colors
    assert colors[1] == orange and nearest(list(colors), "deuteranopia") >= 10.0
