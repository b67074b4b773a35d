"""The cars, vans and buses of a procedural street, as boxes with a waist.

Like `objects`: they know their shape and class, not why they stand there.

Usage:
    >>> car(brush, x=2.0, z=12.0)
"""

from __future__ import annotations

import numpy as np

from litheseg.streets.objects import CAR, PAINTS, Brush
from litheseg.streets.world import Rgb

__all__ = ["car"]


def car(brush: Brush, x: float, z: float, *, sideways: bool = False) -> None:
    """A car, van or bus seen from behind, ahead or (`sideways`) from the side."""
    rng = brush.rng
    kind = rng.choice(["car", "van", "bus"], p=[0.8, 0.14, 0.06])
    length, width, height, floor = {
        "car": (4.2, 1.72, 1.45, 0.3),
        "van": (5.0, 1.95, 2.2, 0.35),
        "bus": (9.5, 2.5, 3.0, 0.4),
    }[str(kind)]
    height *= float(rng.uniform(0.94, 1.1))
    paint = brush.pick(PAINTS, 12)
    if sideways:
        # The long side faces the camera: the same box, turned.
        _body_side(
            brush, [(x - length / 2, z), (x + length / 2, z)], floor, height, paint, brush.lit(0, -1), kind != "car"
        )
        brush.cast(
            [(x - length / 2, z), (x + length / 2, z), (x + length / 2, z + width), (x - length / 2, z + width)], height
        )
        return
    left, right = x - width / 2, x + width / 2
    brush.cast([(left, z), (right, z), (right, z + length), (left, z + length)], height)
    # Dark below the floor, whatever the light.
    brush.painter.shadow(
        [(left - 0.1, 0, z - 0.15), (right + 0.1, 0, z - 0.15), (right, 0, z + length), (left, 0, z + length)], 235
    )
    for inner in (left, right):
        if (inner == left and x > width / 2) or (inner == right and x < -width / 2):
            light = brush.lit(-1 if inner == left else 1, 0)
            _body_side(brush, [(inner, z), (inner, z + length)], floor, height, paint, light, kind != "car")
    _body_end(brush, left, right, z, floor, height, paint, kind != "car")


def _body_side(
    brush: Brush, ends: list[tuple[float, float]], floor: float, height: float, paint: Rgb, light: float, boxy: bool
) -> None:
    """The long side of a car between two ground points [(x, z), (x, z)]."""
    (x0, z0), (x1, z1) = ends

    def at(share: float, y: float) -> tuple[float, float, float]:
        return (x0 + (x1 - x0) * share, y, z0 + (z1 - z0) * share)

    painter, depth = brush.painter, min(z0, z1)
    body = brush.flat(CAR, paint, depth, light)
    lower = brush.flat(CAR, paint, depth, light * 0.8)
    glass = brush.flat(CAR, brush.jitter((44, 50, 58), 10), depth)
    waist = floor + (height - floor) * 0.55
    flip = brush.rng.random() < 0.5 and not boxy

    def shape(points: list[tuple[float, float]], number: int) -> None:
        painter.polygon([at(1 - s if flip else s, y) for s, y in points], number)

    top = (
        [(0.0, height), (0.98, height)]
        if boxy
        else [(0.02, waist * 1.02), (0.14, height * 0.97), (0.2, height), (0.55, height), (0.72, waist)]
    )
    shape([(0.0, floor), (0.0, waist), *top, (1.0, waist * (1.0 if boxy else 0.88)), (1.0, floor)], body)
    shape([(0.0, floor), (0.0, floor + 0.25), (1.0, floor + 0.25), (1.0, floor)], lower)
    if boxy:
        shape([(0.06, waist), (0.06, height * 0.88), (0.94, height * 0.88), (0.94, waist)], glass)
    else:
        shape([(0.1, waist), (0.17, height * 0.94), (0.36, height * 0.94), (0.36, waist)], glass)
        shape([(0.39, waist), (0.39, height * 0.94), (0.54, height * 0.94), (0.67, waist)], glass)
    tyre, rim = brush.flat(CAR, (24, 24, 25), depth), brush.flat(CAR, (120, 122, 124), depth)
    length = abs(x1 - x0) + abs(z1 - z0)
    for middle in (0.19, 0.8):
        for radius, number in ((0.32, tyre), (0.17, rim)):
            ring = [(middle + radius / length * np.cos(a), 0.32 + radius * np.sin(a)) for a in np.arange(8) * np.pi / 4]
            shape(ring, number)


def _body_end(
    brush: Brush, left: float, right: float, z: float, floor: float, height: float, paint: Rgb, boxy: bool
) -> None:
    """Front or back of a car at depth z."""
    rng, painter = brush.rng, brush.painter
    light, waist, inset = brush.lit(0, -1), floor + (height - floor) * 0.55, 0.05 if boxy else 0.17
    width, back = right - left, rng.random() < 0.5
    glass_depth = z + (0.0 if boxy else 0.25 if back else 1.3)
    body = brush.flat(CAR, paint, z, light)
    glass = brush.flat(CAR, brush.pick(((40, 46, 54), (90, 104, 116)), 10), z)
    a, b = left + inset * width / 2, right - inset * width / 2
    top_z = glass_depth + (0.0 if boxy else 0.45)
    tyre = brush.flat(CAR, (22, 22, 23), z)
    for side in (left + 0.05, right - 0.27):
        brush.upright(side, side + 0.22, 0.0, floor + 0.1, z + 0.1, tyre)
    painter.polygon(
        [(left, waist, glass_depth), (right, waist, glass_depth), (b, height, top_z), (a, height, top_z)], body
    )
    m, w = 0.06 * width, waist + 0.05
    painter.polygon(
        [
            (left + m, w, glass_depth),
            (right - m, w, glass_depth),
            (b - m, height * 0.95, top_z),
            (a + m, height * 0.95, top_z),
        ],
        glass,
    )
    hood = brush.flat(CAR, paint, z, min(light * 1.15, 1.25))
    painter.polygon(
        [(left, waist * 0.95, z), (right, waist * 0.95, z), (right, waist, glass_depth), (left, waist, glass_depth)],
        hood,
    )
    painter.polygon(
        [(left + 0.08, floor, z), (left, floor + 0.15, z), (left, waist * 0.9, z), (left + 0.12, waist * 0.97, z),
         (right - 0.12, waist * 0.97, z), (right, waist * 0.9, z), (right, floor + 0.15, z), (right - 0.08, floor, z)],
        body,
    )  # fmt: skip
    bumper = brush.flat(CAR, paint if rng.random() < 0.5 else (60, 60, 62), z, light * 0.75)
    brush.upright(left + 0.02, right - 0.02, floor, floor + 0.2, z, bumper)
    lights = brush.flat(CAR, brush.jitter((170, 30, 30) if back else (226, 226, 214), 16), z)
    for side in (left + 0.06, right - 0.36):
        brush.upright(side, side + 0.3, waist * 0.72, waist * 0.88, z, lights)
    plate = brush.flat(CAR, (214, 196, 90) if back else (220, 220, 214), z)
    middle = (left + right) / 2
    brush.upright(middle - 0.26, middle + 0.26, waist * 0.6, waist * 0.7, z, plate)
