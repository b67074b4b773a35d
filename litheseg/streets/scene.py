"""The plan of a procedural street: which buildings, trees, cars and people stand where.

`plan(rng, size)` draws all random choices from one generator, paints the scene far to near and returns it; textures,
light and the sensor come later (`shade`).

Usage:
    >>> scene = plan(np.random.default_rng(0), (360, 480))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from litheseg.streets import things
from litheseg.streets.things import BUILDING, PAVEMENT, ROAD, SKY, TREE, Brush
from litheseg.streets.world import NEAR, Camera, Canvas, Facade, Rgb, Texture

__all__ = ["FAR", "Layout", "Scene", "Sun", "plan"]

FAR = 150.0  # metres; the street ends here
_WALLS: tuple[Rgb, ...] = (
    (132, 84, 66), (150, 104, 78), (168, 140, 110), (190, 172, 144), (205, 200, 190), (112, 108, 104), (92, 90, 92),
    (146, 148, 150), (120, 98, 84), (214, 196, 150), (98, 74, 66), (160, 166, 172),
)  # fmt: skip
_ROOFS: tuple[Rgb, ...] = ((88, 70, 66), (70, 72, 78), (110, 74, 62), (96, 96, 98))
_GLASS: tuple[Rgb, ...] = ((36, 42, 52), (56, 62, 70), (104, 120, 136), (170, 186, 202), (70, 64, 56))


_Jobs = list[tuple[float, Callable[[], None]]]  # depth, and what paints the thing there; far things come first


@dataclass(frozen=True)
class Sun:
    """Light: `across` and `along` are the shadow's metres per metre of height; `direct` is 0 (overcast) to 1."""

    across: float
    along: float
    direct: float

    def light(self, normal_x: float, normal_z: float) -> float:
        """Brightness of a wall with the given outward normal, about 0.6 to 1.15."""
        length = (self.across**2 + self.along**2) ** 0.5 or 1.0
        facing = -(self.across * normal_x + self.along * normal_z) / length
        return 1.0 - 0.35 * self.direct + 0.55 * self.direct * max(facing, 0.0)


@dataclass(frozen=True)
class Layout:
    """Ground plan in metres; x = 0 is the middle of the road."""

    half_road: float
    pavement: float  # width of each pavement
    verge: float  # width of the grass beyond it, 0 for none
    lanes: int
    crossing: float  # depth of a side street's near kerb; beyond FAR where there is none
    crossing_width: float
    zebra: float  # depth of a zebra crossing; beyond FAR where there is none
    yellow_lines: bool
    seen_from: float  # the camera's x
    sides: tuple[str, str]  # "street", "park" or "wall", left and right

    @property
    def frontage(self) -> float:
        """Distance of the building line from the middle of the road."""
        return self.half_road + self.pavement + self.verge


@dataclass(frozen=True)
class Scene:
    """A painted street, ready for light and texture (`shade`)."""

    canvas: Canvas
    layout: Layout
    sun: Sun
    haze: float  # 1/m


def plan(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Generate and paint a random street.

    Args:
        rng: the only source of random numbers.
        size: (H, W) of the surface map in pixels.
    """
    layout, sun = _layout(rng), _sun(rng)
    canvas = Canvas(_camera(rng, size), size)
    brush = Brush(canvas, rng, sun.light, lambda x: x - layout.seen_from, (sun.across, sun.along))
    _ground(canvas, layout)
    _skyline(brush, layout)
    jobs: _Jobs = []
    for side in (-1, 1):
        _frontage(brush, layout, sun, side, jobs)
        _kerbside(brush, layout, side, jobs)
        _parked(brush, layout, side, jobs)
        _walkers(brush, layout, side, jobs)
    _traffic(brush, layout, jobs)
    for _, job in sorted(jobs, key=lambda item: -item[0]):
        job()
    canvas.roughen(_leaves(rng, size))
    return Scene(canvas, layout, sun, haze=float(rng.choice([0.001, 0.003, 0.006, 0.012], p=[0.35, 0.35, 0.2, 0.1])))


def _camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    height, width = size
    return Camera(
        focal=float(rng.uniform(0.8, 1.2)) * (height * width) ** 0.5,
        u0=width * float(rng.uniform(0.3, 0.7)),
        v0=height * float(rng.uniform(0.40, 0.56)),
        height=float(rng.uniform(1.25, 1.8)),
        roll=float(rng.normal(0, 0.012)),
        curve=float(rng.choice([0.0, rng.normal(0, 0.0012)])),
    )


def _layout(rng: np.random.Generator) -> Layout:
    half_road = float(rng.uniform(3.0, 6.5))
    sides = rng.choice(["street", "park", "wall"], size=2, p=[0.68, 0.2, 0.12])
    return Layout(
        half_road=half_road,
        pavement=float(rng.uniform(1.8, 5.0)),
        verge=float(rng.choice([0.0, rng.uniform(1.0, 4.0)], p=[0.65, 0.35])),
        lanes=2 if half_road < 5 else int(rng.integers(2, 5)),
        crossing=float(rng.uniform(12, 45)) if rng.random() < 0.45 else FAR + 1,
        crossing_width=float(rng.uniform(6, 10)),
        zebra=float(rng.uniform(5, 20)) if rng.random() < 0.15 else FAR + 1,
        yellow_lines=bool(rng.random() < 0.35),
        seen_from=float(rng.uniform(-0.75, 0.75)) * half_road * (1.0 if rng.random() < 0.85 else 1.35),
        sides=(str(sides[0]), str(sides[1])),
    )


def _sun(rng: np.random.Generator) -> Sun:
    angle, stretch = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.3, 1.6))
    direct = float(rng.choice([0.0, rng.uniform(0.3, 1.0)], p=[0.35, 0.65]))
    return Sun(float(np.cos(angle)) * stretch, float(np.sin(angle)) * stretch, direct)


def _leaves(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.int32]:
    """Random steps of up to 4 fine pixels (of a 360 rows high map) in the flattened map, int32 H W."""
    reach = max(round(size[0] / 90), 1)
    rows, columns = rng.integers(-reach, reach + 1, (2, *(-(-edge // 2) for edge in size)), dtype=np.int32)
    # At the sides the steps lead inwards: outwards they would reach into the next row.
    columns[:, :reach] = np.abs(columns[:, :reach])
    columns[:, -reach:] = -np.abs(columns[:, -reach:])
    steps = rows * size[1] + columns
    # One step for 2 x 2 fine pixels: leaves, not dust.
    return steps.repeat(2, 0).repeat(2, 1)[: size[0], : size[1]]


def _ground(canvas: Canvas, layout: Layout) -> None:
    """Fill sky, road, pavement and grass by pixel, because they reach up to the horizon."""
    for label, kind in ((SKY, Texture.SKY), (ROAD, Texture.GROUND), (PAVEMENT, Texture.GROUND), (TREE, Texture.GROUND)):
        canvas.surface(label, (128, 128, 128), FAR * 4, kind)
    across, down = canvas.camera.rays(canvas.size)
    below = down > canvas.camera.height / (FAR * 4)
    depth = canvas.camera.height / np.maximum(down, 1e-4)
    distance = np.abs(across * depth - canvas.camera.curve * depth * depth + layout.seen_from)
    crossing = (depth > layout.crossing) & (depth < layout.crossing + layout.crossing_width)
    number = 3 - (distance < layout.half_road).astype(np.int32) - (distance < layout.half_road + layout.pavement)
    if not layout.verge:
        number[(number == 3) & (distance < layout.half_road + layout.pavement + 12)] = 2
    number[crossing] = 1
    canvas.fill(np.where(below, number, 0))


def _skyline(brush: Brush, layout: Layout) -> None:
    """Roofs and tree tops at the end of the street, and sometimes a building that closes it."""
    rng, x = brush.rng, -160.0
    while x < 160:
        width, height, z = rng.uniform(6, 28), rng.uniform(3, 14), rng.uniform(FAR, FAR * 1.6)
        if rng.random() < 0.5:
            number = brush.canvas.surface(BUILDING, brush.jitter(_WALLS[rng.integers(len(_WALLS))], 10), z)
            brush.upright(x, x + width, 0, height, z, number)
        else:
            for _ in range(5):
                number = brush.canvas.surface(TREE, brush.jitter(brush.leaf, 12), z, Texture.FOLIAGE)
                brush.canvas.disc((x + rng.uniform(0, width), height * 0.35, z), height * 0.6, number, squash=1.3)
        x += width * rng.uniform(0.5, 1.1)
    if rng.random() < 0.2:
        z = float(rng.uniform(50, FAR))
        _front(brush, -40.0, 40.0, z, float(rng.uniform(8, 16)), _style(brush))


@dataclass(frozen=True)
class _Style:
    """What the walls of one house have in common; the texture's plane is filled in for each wall."""

    color: Rgb
    texture: Facade

    def wall(self, brush: Brush, z: float, light: float, **plane: float) -> int:
        """A new surface at depth z; `plane` holds `offset`, `slope`, `frontal` and `eaves` of its `Facade`."""
        r, g, b = self.color
        facade = replace(self.texture, **plane)  # type: ignore[arg-type]
        return brush.canvas.surface(BUILDING, (light * r, light * g, light * b), z, Texture.FACADE, facade)


def _style(brush: Brush) -> _Style:
    rng = brush.rng
    color = brush.jitter(_WALLS[rng.integers(len(_WALLS))], 16)
    texture = Facade(
        offset=0.0,
        slope=0.0,
        frontal=False,
        storey=float(rng.uniform(2.7, 3.8)),
        pitch=float(rng.uniform(1.6, 4.0)),
        window_width=float(rng.choice([rng.uniform(0.3, 0.6), rng.uniform(0.75, 0.92)], p=[0.8, 0.2])),
        window_height=float(rng.uniform(0.4, 0.75)),
        phase=float(rng.uniform(0, 4)),
        shop=float(rng.uniform(2.8, 3.8)) if rng.random() < 0.4 else 0.0,
        bricks=float(rng.uniform(0.0, 0.16)),
        glass=brush.jitter(_GLASS[rng.integers(len(_GLASS))], 10),
        trim=brush.jitter((198, 196, 190), 25) if rng.random() < 0.6 else brush.jitter((90, 84, 80), 20),
        roof=brush.jitter(_ROOFS[rng.integers(len(_ROOFS))], 10),
        fascia=brush.jitter(things.PAINTS[rng.integers(len(things.PAINTS))], 15),
    )
    return _Style(color, texture)


def _front(brush: Brush, left: float, right: float, z: float, height: float, style: _Style, eaves: float = 1e3) -> None:
    """A wall that faces the camera; x as seen from the camera, bend not included in its texture."""
    wall = style.wall(brush, z, brush.light(0, -1), offset=z, slope=0.0, frontal=True, eaves=eaves)
    brush.upright(left, right, 0, height, z, wall)


def _building(brush: Brush, sun: Sun, side: int, x: float, near: float, far: float, height: float) -> None:
    """A house: the wall along the street, the wall towards the camera, perhaps a roof and chimneys.

    `side` is -1 left, 1 right; `x` of the street wall is as seen from the camera, `near` and `far` are the depths of
    its corners, `height` includes the roof; all in metres.
    """
    rng, curve, style = brush.rng, brush.canvas.camera.curve, _style(brush)
    pitched = rng.random() < 0.45
    eaves = height * float(rng.uniform(0.7, 0.85)) if pitched else 1e3
    z0, z1 = max(near, NEAR), far
    # The bend makes the street wall a chord between its bent corners.
    x0, x1 = x + curve * z0 * z0, x + curve * z1 * z1
    slope = (x1 - x0) / (z1 - z0)
    deep = x + side * rng.uniform(8, 16)
    if near > NEAR:
        _front(brush, min(x, deep), max(x, deep), near, eaves if pitched else height, style, eaves)
        if pitched:
            roof = brush.canvas.surface(BUILDING, style.texture.roof, near)
            brush.shape([(x, eaves), (deep, eaves), (deep, height), (x + side * 2.5, height)], near, roof)
    plane = {"offset": x0 - slope * z0, "slope": slope, "frontal": False, "eaves": eaves}
    wall = style.wall(brush, (z0 + z1) / 2, brush.light(-side, 0), **plane)
    brush.canvas.polygon([(x, 0, z0), (x, height, z0), (x, height, z1), (x, 0, z1)], wall)
    if pitched:
        for _ in range(int(rng.integers(0, 3))):
            z = float(rng.uniform(z0, z1))
            stack = brush.canvas.surface(BUILDING, brush.jitter((110, 76, 64), 14), z)
            brush.upright(x, x + side * 0.9, height - 0.3, height + 1.3, z, stack)
    if sun.direct:
        brush.cast([(x, z0), (x, z1), (deep, z1), (deep, z0)], height)


def _frontage(brush: Brush, layout: Layout, sun: Sun, side: int, jobs: _Jobs) -> None:
    """What stands behind the pavement of one side: a row of houses, a park, or a wall with trees behind it."""
    rng, kind = brush.rng, layout.sides[0 if side < 0 else 1]
    z, typical = float(rng.uniform(-4, 6)), float(rng.uniform(5, 14))
    x_line = side * layout.frontage
    while z < FAR:
        length = float(rng.uniform(6, 22))
        end = z + length
        if end > layout.crossing - 1 and z < layout.crossing + layout.crossing_width + 1:
            end = min(end, layout.crossing - 1)
            if end - max(z, NEAR) < 3:
                z = layout.crossing + layout.crossing_width + 1
                continue
        if end > NEAR + 1:
            near = z
            x = brush.seen(x_line + side * float(rng.choice([0.0, rng.uniform(0, 2.5)])))
            if kind == "street" and rng.random() < 0.93:
                height = max(typical * float(rng.uniform(0.7, 1.4)), 4.0)
                jobs.append((end + 0.5, partial(_building, brush, sun, side, x, near, end, height)))
            else:
                if kind != "park" or rng.random() < 0.5:
                    jobs.append((end + 0.3, partial(things.fence, brush, x, max(near, NEAR), end)))
                for _ in range(int(rng.integers(1, 5))):
                    depth, beyond = float(rng.uniform(max(near, 2), end)), float(rng.uniform(1, 14))
                    jobs.append((end + 0.6, partial(things.tree, brush, x + side * beyond, depth)))
        gap = float(rng.uniform(1.5, 6)) if rng.random() < 0.2 else 0.0
        z = end + gap


def _kerbside(brush: Brush, layout: Layout, side: int, jobs: _Jobs) -> None:
    """Lamps, bollards, signs, lights, trees and railings on one pavement."""
    rng = brush.rng
    edge = brush.seen(side * (layout.half_road + 0.5))
    step, phase = float(rng.uniform(14, 34)), float(rng.uniform(2, 20))
    if rng.random() < 0.8:
        for z in np.arange(phase, FAR, step):
            jobs.append((float(z), partial(things.lamp, brush, edge, float(z), -side)))
    for _ in range(int(rng.integers(0, 5))):
        z = float(rng.uniform(4, 45))
        kind = things.traffic_light if rng.random() < 0.3 else things.sign
        jobs.append((z, partial(kind, brush, edge, z)))
    if rng.random() < 0.35:
        middle = brush.seen(side * (layout.half_road + layout.pavement * 0.8 + layout.verge * 0.5))
        for z in np.arange(float(rng.uniform(3, 14)), 80, float(rng.uniform(6, 16))):
            jobs.append((float(z), partial(things.tree, brush, middle, float(z))))
    if rng.random() < 0.25:
        start = float(rng.uniform(2, 20))
        stop = min(start + float(rng.uniform(6, 30)), max(layout.crossing - 1, start + 2))
        jobs.append((stop, partial(things.fence, brush, edge, start, stop, railing=True)))
    if rng.random() < 0.3:
        for z in np.arange(float(rng.uniform(3, 10)), 40, float(rng.uniform(1.5, 3))):
            jobs.append((float(z), partial(things.bollard, brush, edge, float(z))))


def _parked(brush: Brush, layout: Layout, side: int, jobs: _Jobs) -> None:
    rng = brush.rng
    if rng.random() > 0.55:
        return
    x, z = brush.seen(side * (layout.half_road - 1.1)), float(rng.uniform(2.5, 20))
    while z < 90:
        if rng.random() < 0.75 and not layout.crossing - 6 < z < layout.crossing + layout.crossing_width + 2:
            jobs.append((z, partial(things.car, brush, x + float(rng.normal(0, 0.1)), z)))
        z += float(rng.uniform(5.2, 8.0))


def _traffic(brush: Brush, layout: Layout, jobs: _Jobs) -> None:
    rng = brush.rng
    for _ in range(int(rng.integers(0, 6))):
        x = brush.seen(float(rng.choice([-0.5, 0.5])) * layout.half_road + float(rng.normal(0, 0.4)))
        z = float(4 + rng.gamma(2.0, 12.0))
        jobs.append((z, partial(things.car, brush, x, z)))
    if layout.crossing < FAR and rng.random() < 0.6:
        z = layout.crossing + float(rng.uniform(1, layout.crossing_width - 2))
        jobs.append((z, partial(things.car, brush, float(rng.uniform(-14, 14)), z, sideways=True)))
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.45, 0.3, 0.15, 0.1]))):
        x = brush.seen(float(rng.uniform(-0.9, 0.9)) * layout.half_road)
        z = float(4 + rng.gamma(2.0, 5.0))
        jobs.append((z, partial(things.cyclist, brush, x, z)))
    if rng.random() < 0.3:
        z = float(rng.uniform(5, 25))
        jobs.append((z, partial(things.pedestrian, brush, brush.seen(float(rng.uniform(-1, 1)) * layout.half_road), z)))


def _walkers(brush: Brush, layout: Layout, side: int, jobs: _Jobs) -> None:
    rng = brush.rng
    for _ in range(int(rng.poisson(1.8))):
        z = float(3.5 + rng.gamma(2.0, 6.0))
        x = side * (layout.half_road + float(rng.uniform(0.4, layout.pavement)))
        for _ in range(int(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08]))):
            x, z = x + float(rng.normal(0, 0.5)), z + float(rng.normal(0, 0.3))
            jobs.append((z, partial(things.pedestrian, brush, brush.seen(x), max(z, 2.5))))
    if rng.random() < 0.12:
        z = float(rng.uniform(4, 20))
        x = side * (layout.half_road + layout.pavement * 0.5)
        jobs.append((z, partial(things.cyclist, brush, brush.seen(x), z)))
