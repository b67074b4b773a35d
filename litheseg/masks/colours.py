"""Colours for classes that have none of their own: far from each other, from black, white and grey, for most eyes.

The first are those of Okabe and Ito ("Color Universal Design", 2008; without its black). Every further one is, of a
grid of colours, the farthest from all before it, as Glasbey et al. ("Colour displays for categorical images", Color
Research and Application 2007) do; how far is the CIELAB distance to the nearest, for normal vision and for lack of
each of the three kinds of cones, whichever is least. That is simulated as in Machado, Oliveira and Fernandes ("A
Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG 2009), at full severity.

Usage:
    >>> default_colors(["road", "car", "background"])
    ((230, 159, 0), (86, 180, 233), (190, 190, 190))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["BACKGROUND", "Color", "default_colors", "is_background"]

Color = tuple[int, int, int]

BACKGROUND: Color = (190, 190, 190)
"""Of a class that is the rest, by its name."""
_BACKGROUNDS = frozenset({"background", "bg", "void", "other", "others", "none", "nothing", "unlabelled", "unlabeled"})
_OKABE_ITO: tuple[Color, ...] = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
_TAKEN: tuple[Color, ...] = ((0, 0, 0), (255, 255, 255), BACKGROUND)
_LEVELS = (0, 36, 73, 109, 146, 182, 219, 255)  # of each channel of the grid
_DARKEST = 25.0  # CIELAB lightness
_NEAR = 12.0  # of a colour that a class has already
_DEFICIENCIES = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _TO_XYZ.sum(1)


def is_background(name: str) -> bool:
    """Whether a class is, by its name, what is left when all others are named."""
    return name.strip().strip("_").lower() in _BACKGROUNDS


def default_colors(names: Sequence[str], own: Sequence[Color | None] = ()) -> tuple[Color, ...]:
    """A colour for each class; of those without their own, the same for the same place, but for the background.

    Args:
        names: of the classes.
        own: their own colours, None for those that have none; by default none has.
    """
    own = own or [None] * len(names)
    taken = tuple(color for color in own if color is not None)
    spare = iter(_sequence(len(names), taken))
    named = zip(names, own, spare, strict=True)
    return tuple(color or (BACKGROUND if is_background(name) else other) for name, color, other in named)


@lru_cache(maxsize=8)
def _sequence(count: int, taken: tuple[Color, ...] = ()) -> tuple[Color, ...]:
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(-1, 3)
    seen = _as_seen(grid)
    first = [color for color in _OKABE_ITO if not taken or _far(color, taken)]
    chosen, near = first[:count], np.full(len(grid), np.inf)
    for color in (*_TAKEN, *taken, *chosen):
        near = np.minimum(near, _distances(seen, color))
    near[seen[0, :, 0] < _DARKEST] = 0.0
    while len(chosen) < count:
        color = tuple(grid[int(near.argmax())].tolist())
        chosen.append(color)
        near = np.minimum(near, _distances(seen, color))
    return tuple(chosen)


def _far(color: Color, others: Sequence[Color]) -> bool:
    return bool(_distances(_as_seen(np.array(others)), color).min() >= _NEAR)


def _distances(seen: np.ndarray, color: Color) -> np.ndarray:
    """Distance of a colour to each that is seen, for the eye that tells them apart worst."""
    result: np.ndarray = np.linalg.norm(seen - _as_seen(np.array([color])), axis=2).min(0)
    return result


def _as_seen(colors: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB colours N x 3, as each of four kinds of eyes sees them: 4 x N x 3."""
    shares = colors / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.einsum("dij,nj->dni", _DEFICIENCIES, linear), 0, 1)
    xyz = seen @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
