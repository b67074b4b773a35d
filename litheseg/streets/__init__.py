"""Procedural street scenes with exact masks: for use without a camera or a data set.

Each picture is a small 3-D world (road, pavement, houses, trees, traffic, people) seen through a pinhole camera under
random light. The parts: `world` (camera and canvas), `scene` (what stands where), `things` (cars, people, trees, ...),
`shade` (light and sensor). The data set made of them is `litheseg.data.sources.streets`.

Usage:
    >>> image, mask = render_street(np.random.default_rng(0), (180, 240))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from litheseg.streets.scene import plan
from litheseg.streets.shade import label_map, shade

__all__ = ["render_street"]


def render_street(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Generate and render a random street.

    Args:
        rng: the only source of random numbers; the same state gives the same street.
        size: (H, W) in pixels.

    Returns:
        The image, uint8 H W 3 RGB, and the mask, uint8 H W with class numbers 0..10 and no ignored pixel.
    """
    height, width = size
    scene = plan(rng, (2 * height, 2 * width))
    numbers, overlay, _ = scene.canvas.maps()
    # Take one of the four fine pixels: a majority vote would erase the poles.
    fine = label_map(numbers[1::2, 1::2], None if overlay is None else overlay[1::2, 1::2], scene.canvas.surfaces)
    return shade(scene, rng), fine
