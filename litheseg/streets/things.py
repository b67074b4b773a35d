"""The things in a procedural street: trees, lamps, signs, fences, people, bicycles, cars, vans and buses.

Each function paints one thing at (x, z) metres from the camera with random looks; `scene` decides where it stands.

Usage:
    >>> tree(brush, x=2.0, z=12.0)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from litheseg.streets.world import Canvas, Facade, Rgb, Texture

__all__ = [
    "BICYCLIST", "BUILDING", "CAR", "FENCE", "PAINTS", "PAVEMENT", "PEDESTRIAN", "POLE", "ROAD", "SIGN", "SKY", "TREE",
    "Brush", "bollard", "car", "cyclist", "fence", "lamp", "pedestrian", "sign", "traffic_light", "tree",
]  # fmt: skip

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

PAINTS: tuple[Rgb, ...] = (
    (190, 192, 195), (230, 230, 228), (60, 62, 66), (32, 33, 36), (120, 124, 130), (150, 30, 32), (34, 58, 120),
    (36, 84, 62), (90, 120, 160), (170, 150, 60), (110, 60, 50), (150, 152, 150),
)  # fmt: skip
_CLOTHES: tuple[Rgb, ...] = (
    (34, 36, 44), (52, 54, 62), (70, 60, 54), (40, 52, 90), (130, 36, 40), (160, 156, 148), (210, 208, 200),
    (80, 96, 70), (190, 150, 60), (110, 112, 118), (60, 96, 110),
)  # fmt: skip
_SKIN: tuple[Rgb, ...] = ((206, 160, 134), (170, 120, 94), (110, 76, 58), (226, 186, 164))
_HAIR: tuple[Rgb, ...] = ((40, 32, 28), (96, 70, 44), (30, 28, 28), (150, 120, 80), (180, 40, 40))
_LEAVES: tuple[Rgb, ...] = ((74, 92, 48), (58, 78, 44), (96, 104, 52), (120, 98, 50), (84, 76, 58), (50, 66, 50))
# Length, width, height and clearance in metres.
_CARS = {"car": (4.2, 1.72, 1.45, 0.3), "van": (5.0, 1.95, 2.2, 0.35), "bus": (9.5, 2.5, 3.0, 0.4)}


@dataclass
class Brush:
    """What painting any thing needs.

    Args:
        canvas: receives the polygons.
        rng: the only source of random numbers.
        light: brightness of a wall from its normal (x, z).
        seen: road x -> x as seen from the camera.
        slant: shadow metres (x, z) per metre of height.
    """

    canvas: Canvas
    rng: np.random.Generator
    light: Callable[[float, float], float]
    seen: Callable[[float], float]
    slant: tuple[float, float]
    leaf: Rgb = field(init=False)
    bare: bool = field(init=False)

    def __post_init__(self) -> None:
        self.leaf = _LEAVES[self.rng.integers(len(_LEAVES))]
        self.bare = bool(self.rng.random() < 0.3)

    def jitter(self, color: Rgb, spread: float) -> Rgb:
        """The colour, a little brighter or darker and a little off in hue."""
        common, r, g, b = (self.rng.standard_normal(4) * spread).tolist()
        return (color[0] + common + r / 3, color[1] + common + g / 3, color[2] + common + b / 3)

    def pick(self, colors: Sequence[Rgb], spread: float) -> Rgb:
        """One of the colours, jittered."""
        return self.jitter(colors[int(self.rng.integers(len(colors)))], spread)

    def flat(self, label: int, color: Rgb, z: float, light: float = 1.0) -> int:
        """A new untextured surface."""
        return self.canvas.surface(label, (color[0] * light, color[1] * light, color[2] * light), z)

    def shape(self, points: Sequence[tuple[float, float]], z: float, number: int) -> None:
        """A polygon of (x, y) that faces the camera."""
        self.canvas.polygon([(x, y, z) for x, y in points], number)

    def upright(self, left: float, right: float, low: float, high: float, z: float, number: int) -> None:
        """A rectangle that faces the camera."""
        self.shape([(left, low), (right, low), (right, high), (left, high)], z, number)

    def bar(self, start: tuple[float, float], end: tuple[float, float], z: float, width: float, number: int) -> None:
        """A line between two (x, y), `width` metres wide."""
        self.canvas.line((*start, z), (*end, z), width, number)

    def cast(self, footprint: Sequence[tuple[float, float]], height: float, strength: int = 255) -> None:
        """The shadow on the ground of a prism over the footprint [(x, z), ...]."""
        dx, dz = self.slant[0] * height, self.slant[1] * height
        count = len(footprint)
        for i, (x, z) in enumerate(footprint):
            x1, z1 = footprint[(i + 1) % count]
            self.canvas.shadow([(x, 0, z), (x1, 0, z1), (x1 + dx, 0, z1 + dz), (x + dx, 0, z + dz)], strength)
        self.canvas.shadow([(x + dx, 0, z + dz) for x, z in footprint], strength)


def tree(brush: Brush, x: float, z: float) -> None:
    """A tree with leaves, or a bare one whose branches show the sky."""
    rng = brush.rng
    height, trunk = float(rng.uniform(4, 11)), float(rng.uniform(0.12, 0.35))
    bark = brush.flat(TREE, brush.jitter((72, 62, 54), 12), z)
    crown = height * float(rng.uniform(0.3, 0.55))
    brush.bar((x, 0), (x + float(rng.normal(0, 0.2)), height - crown * 0.8), z, trunk, bark)
    shadow = [(x - crown * 0.5, z), (x + crown * 0.5, z), (x, z + crown * 0.5)]
    brush.cast(shadow, height, 70 if brush.bare else 190)
    if brush.bare and rng.random() < 0.8:
        _branches(brush, x, height - crown * 1.3, z, crown, trunk, bark)
        return
    tones = [brush.canvas.surface(TREE, brush.jitter(brush.leaf, 14), z, Texture.FOLIAGE) for _ in range(4)]
    middle, squash = height - crown * 0.7, float(rng.uniform(0.7, 1.2))
    count = 7 if z > 60 else 26
    angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0.0, 1.0, count))
    for i in range(count):
        size = crown * (0.5 - 0.3 * reach[i]) * (1.6 if count == 7 else 1.0)
        across = x + crown * squash * reach[i] * np.cos(angle[i]) * 0.85
        up = middle + crown * reach[i] * np.sin(angle[i]) * 0.85
        brush.canvas.disc((across, up, z), size, tones[i % 4], squash=1.15)


def _branches(brush: Brush, x: float, y: float, z: float, crown: float, trunk: float, bark: int) -> None:
    rng = brush.rng
    tips = [(x, y, 0.0, crown * 0.8, trunk * 0.7)]
    for depth in range(4 if z < 35 else 3):
        grown = []
        for x0, y0, lean, length, width in tips:
            for turn in rng.normal((-0.45, 0.4), 0.25):
                angle = lean + turn
                x1, y1 = x0 + length * 0.6 * np.sin(angle), y0 + length * 0.6 * np.cos(angle)
                brush.bar((x0, y0), (x1, y1), z, max(width, 0.04), bark)
                grown.append((x1, y1, angle, length * 0.75, width * 0.6))
        tips = grown if depth else [*grown, (x, y + crown * 0.5, 0.0, crown * 0.7, trunk * 0.5)]
    if z < 60:
        twigs = brush.canvas.surface(TREE, brush.jitter((92, 82, 70), 10), z, Texture.FOLIAGE)
        for x0, y0, *_ in tips[::3]:
            brush.canvas.disc((x0, y0, z), crown * 0.09, twigs)


def lamp(brush: Brush, x: float, z: float, inward: int) -> None:
    """A street lamp; its arm points to `inward` (-1 left, 1 right)."""
    rng, height = brush.rng, float(brush.rng.uniform(5, 9))
    number = brush.flat(POLE, brush.jitter((104, 106, 104), 26), z)
    brush.bar((x, 0), (x, height), z, float(rng.uniform(0.12, 0.22)), number)
    end = x + float(rng.uniform(0.6, 1.8)) * inward
    brush.bar((x, height), (end, height + 0.3), z, 0.1, number)
    brush.upright(end - 0.3, end + 0.3, height + 0.2, height + 0.42, z, number)
    brush.cast([(x - 0.08, z), (x + 0.08, z)], height)


def bollard(brush: Brush, x: float, z: float) -> None:
    """A short post."""
    color = brush.jitter((60, 60, 62), 12) if brush.rng.random() < 0.7 else brush.jitter((190, 188, 180), 15)
    brush.upright(x - 0.08, x + 0.08, 0, 1.0, z, brush.flat(POLE, color, z))


def sign(brush: Brush, x: float, z: float) -> None:
    """A traffic sign or a name board on a post."""
    rng, height = brush.rng, float(brush.rng.uniform(2.2, 3.2))
    brush.bar((x, 0), (x, height), z, 0.09, brush.flat(POLE, brush.jitter((120, 122, 122), 25), z))
    brush.cast([(x - 0.05, z), (x + 0.05, z)], height)
    red, white, blue = (188, 34, 40), (228, 228, 224), (30, 70, 150)
    shape = int(rng.integers(5))
    size = float(rng.uniform(0.32, 0.5))
    if shape == 0:
        brush.canvas.disc((x, height, z), size, brush.flat(SIGN, brush.jitter(red, 14), z))
        brush.canvas.disc((x, height, z), size * 0.7, brush.flat(SIGN, brush.jitter(white, 10), z))
    elif shape == 1:
        brush.canvas.disc((x, height, z), size, brush.flat(SIGN, brush.jitter(blue, 14), z))
        brush.bar((x, height - size * 0.5), (x, height + size * 0.5), z, 0.12, brush.flat(SIGN, white, z))
    elif shape == 2:
        for scale, color in ((1.3, red), (0.8, white)):
            half, low, high = size * scale, height - size * scale * 0.6, height + size * scale
            brush.shape([(x - half, low), (x + half, low), (x, high)], z, brush.flat(SIGN, brush.jitter(color, 12), z))
    else:
        _board(brush, x, z, height)


def _board(brush: Brush, x: float, z: float, height: float) -> None:
    """A board with three lines of text."""
    rng = brush.rng
    wide, tall = float(rng.uniform(0.35, 1.1)), float(rng.uniform(0.3, 0.7))
    board = brush.pick(((24, 92, 60), (30, 70, 150), (224, 222, 214), (200, 160, 40), (120, 124, 128)), 16)
    brush.upright(x - wide, x + wide, height - tall, height + tall, z, brush.flat(SIGN, board, z))
    text = brush.flat(SIGN, brush.jitter((228, 228, 224) if sum(board) < 420 else (60, 60, 60), 10), z)
    for level in (-0.4, 0.1, 0.5):
        end, low, high = wide * float(rng.uniform(0.0, 0.8)), tall * (level - 0.1), tall * (level + 0.1)
        brush.upright(x - wide * 0.8, x + end, height + low, height + high, z, text)


def traffic_light(brush: Brush, x: float, z: float) -> None:
    """A signal head (class sign/symbol) on a pole."""
    height = float(brush.rng.uniform(2.6, 3.6))
    brush.bar((x, 0), (x, height), z, 0.13, brush.flat(POLE, brush.jitter((70, 72, 72), 18), z))
    brush.upright(x - 0.2, x + 0.2, height - 0.4, height + 0.6, z, brush.flat(SIGN, brush.jitter((26, 27, 28), 6), z))
    lamp_on = int(brush.rng.integers(3))
    for i, color in enumerate(((60, 230, 150), (240, 170, 40), (240, 50, 40))):
        light = 1.0 if i == lamp_on else 0.25
        brush.canvas.disc((x, height - 0.2 + 0.32 * i, z), 0.12, brush.flat(SIGN, color, z, light))


def fence(brush: Brush, x: float, near: float, far: float, *, railing: bool = False) -> None:
    """A fence along the street from depth `near` to `far`: planks or a low wall, or a railing one can look through."""
    rng, canvas, curve = brush.rng, brush.canvas, brush.canvas.camera.curve
    height = 1.1 if railing else float(rng.uniform(0.9, 2.1))
    see_through = railing or rng.random() < 0.3
    r, g, b = brush.pick(((110, 92, 72), (136, 132, 124), (70, 74, 70), (150, 110, 84), (190, 190, 186)), 16)
    light = brush.light(-1 if x > 0 else 1, 0)
    step = 12.0
    # Short pieces follow the bend of the street; far ones first, because a bent fence can hide itself.
    edges = [far - i * step for i in range(int((far - near) / step) + 1) if far - i * step > near + 0.1] + [near]
    for z1, z0 in itertools.pairwise(edges):
        x0, x1 = x + curve * z0 * z0, x + curve * z1 * z1
        slope = (x1 - x0) / (z1 - z0)
        storey, pitch = (1.0, 0.14) if see_through else (0.0, float(rng.choice([0.15, 1.8])))
        facade = Facade(x0 - slope * z0, slope, frontal=False, eaves=height, storey=storey, pitch=pitch)
        number = canvas.surface(FENCE, (r * light, g * light, b * light), z0, Texture.FENCE, facade)
        points = [(x, 0.0, z0), (x, height, z0), (x, height, z1), (x, 0.0, z1)]
        if see_through:
            canvas.railing(points, number)
        else:
            canvas.polygon(points, number)
            brush.cast([(x, z0), (x, z1)], height)


def pedestrian(brush: Brush, x: float, z: float) -> None:
    """Somebody on foot, 1.2 m to 1.95 m tall."""
    rng = brush.rng
    height = float(np.clip(rng.normal(1.68, 0.13), 1.2, 1.95))
    legs = brush.flat(PEDESTRIAN, brush.pick(_CLOTHES, 10), z)
    stride = float(rng.uniform(0.02, 0.3))
    for foot in (-stride, stride):
        brush.bar((x + foot, 0), (x + foot * 0.3, height * 0.5), z, 0.15, legs)
    _upper_body(brush, PEDESTRIAN, x, z, height * 0.46, height, float(rng.normal(0, 0.04)))
    brush.cast([(x - 0.2, z), (x + 0.2, z)], height, 200)


def _upper_body(brush: Brush, label: int, x: float, z: float, hip: float, height: float, lean: float) -> None:
    rng, head = brush.rng, height * 0.075
    coat = brush.flat(label, brush.pick(_CLOTHES, 14), z)
    shoulder, half = height - head * 2.5, float(rng.uniform(0.19, 0.27))
    trunk = [(-half * 0.8, hip), (half * 0.8, hip), (half + lean, shoulder), (-half + lean, shoulder)]
    brush.shape([(x + across, y) for across, y in trunk], z, coat)
    for side in (-1, 1):
        hand = x + side * (half + float(rng.uniform(0.0, 0.18)))
        brush.bar((x + lean + side * half * 0.9, shoulder), (hand, hip + 0.05), z, 0.1, coat)
    skin = brush.flat(label, brush.pick(_SKIN, 10), z)
    brush.canvas.disc((x + lean, height - head, z), head * 1.25, skin, squash=0.8)
    hair = brush.flat(label, brush.pick(_HAIR, 10), z)
    brush.canvas.disc((x + lean, height - head * 0.4, z), head * 0.8, hair)


def cyclist(brush: Brush, x: float, z: float) -> None:
    """A rider and the bicycle, from the side or from behind."""
    rng = brush.rng
    frame = brush.flat(BICYCLIST, brush.pick(PAINTS, 14), z)
    tyre = brush.flat(BICYCLIST, (30, 30, 32), z)
    legs = brush.flat(BICYCLIST, brush.pick(_CLOTHES, 10), z)
    brush.cast([(x - 0.2, z), (x + 0.2, z)], 1.6, 200)
    if rng.random() < 0.5:
        brush.upright(x - 0.04, x + 0.04, 0, 0.75, z, tyre)
        brush.bar((x - 0.28, 1.02), (x + 0.28, 1.02), z, 0.06, frame)
        for side in (-0.12, 0.12):
            brush.bar((x + side, 0.15 + abs(side + 0.12)), (x + side, 0.95), z, 0.15, legs)
        _upper_body(brush, BICYCLIST, x, z, 0.88, float(rng.uniform(1.6, 1.8)), 0.0)
        return
    ahead = float(rng.choice([-1, 1]))
    for centre in (x - 0.52, x + 0.52):
        ring = [(centre + 0.34 * np.cos(a), 0.34 + 0.34 * np.sin(a)) for a in np.arange(13) * np.pi / 6]
        for start, end in itertools.pairwise(ring):
            brush.bar(start, end, z, 0.05, tyre)
    saddle, crank, head = (x - 0.2 * ahead, 0.9), (x, 0.3), (x + 0.42 * ahead, 0.92)
    rear, front = (x - 0.52 * ahead, 0.34), (x + 0.52 * ahead, 0.34)
    for start, end in ((saddle, crank), (crank, head), (saddle, head), (saddle, rear), (head, front)):
        brush.bar(start, end, z, 0.06, frame)
    knee = (x + 0.15 * ahead, 0.72)
    brush.bar(saddle, knee, z, 0.16, legs)
    brush.bar(knee, crank, z, 0.13, legs)
    _upper_body(brush, BICYCLIST, x - 0.15 * ahead, z, 0.88, float(rng.uniform(1.55, 1.75)), 0.25 * ahead)


@dataclass(frozen=True)
class _Body:
    """A car's body, a box with a waist: heights in metres above the ground."""

    floor: float
    height: float
    paint: Rgb
    boxy: bool  # a van or a bus

    @property
    def waist(self) -> float:
        return self.floor + (self.height - self.floor) * 0.55


def car(brush: Brush, x: float, z: float, *, sideways: bool = False) -> None:
    """A car, van or bus seen from behind, ahead or (`sideways`) from the side."""
    rng = brush.rng
    kind = str(rng.choice(["car", "van", "bus"], p=[0.8, 0.14, 0.06]))
    length, width, height, floor = _CARS[kind]
    height *= float(rng.uniform(0.94, 1.1))
    body = _Body(floor, height, brush.pick(PAINTS, 12), kind != "car")
    if sideways:
        # The long side faces the camera: the same box, turned.
        left, right = x - length / 2, x + length / 2
        _body_side(brush, [(left, z), (right, z)], body, brush.light(0, -1))
        brush.cast([(left, z), (right, z), (right, z + width), (left, z + width)], height)
        return
    left, right = x - width / 2, x + width / 2
    brush.cast([(left, z), (right, z), (right, z + length), (left, z + length)], height)
    # Dark below the floor, whatever the light.
    below = [(left - 0.1, 0, z - 0.15), (right + 0.1, 0, z - 0.15), (right, 0, z + length), (left, 0, z + length)]
    brush.canvas.shadow(below, 235)
    if x > width / 2:
        _body_side(brush, [(left, z), (left, z + length)], body, brush.light(-1, 0))
    if x < -width / 2:
        _body_side(brush, [(right, z), (right, z + length)], body, brush.light(1, 0))
    _body_end(brush, left, right, z, body)


def _body_side(brush: Brush, ends: list[tuple[float, float]], body: _Body, light: float) -> None:
    """The long side of a car between two ground points [(x, z), (x, z)]."""
    (x0, z0), (x1, z1) = ends
    canvas, depth = brush.canvas, min(z0, z1)
    painted = brush.flat(CAR, body.paint, depth, light)
    lower = brush.flat(CAR, body.paint, depth, light * 0.8)
    glass = brush.flat(CAR, brush.jitter((44, 50, 58), 10), depth)
    floor, waist, height, boxy = body.floor, body.waist, body.height, body.boxy
    flip = brush.rng.random() < 0.5 and not boxy

    def shape(points: list[tuple[float, float]], number: int) -> None:
        """A polygon of (share of the length, metres above the ground)."""
        shares = [(1 - s if flip else s, y) for s, y in points]
        canvas.polygon([(x0 + (x1 - x0) * s, y, z0 + (z1 - z0) * s) for s, y in shares], number)

    top = [(0.0, height), (0.98, height)]
    if not boxy:
        top = [(0.02, waist * 1.02), (0.14, height * 0.97), (0.2, height), (0.55, height), (0.72, waist)]
    shape([(0.0, floor), (0.0, waist), *top, (1.0, waist * (1.0 if boxy else 0.88)), (1.0, floor)], painted)
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


def _body_end(brush: Brush, left: float, right: float, z: float, body: _Body) -> None:
    """Front or back of a car at depth z."""
    rng, canvas, floor, waist, height = brush.rng, brush.canvas, body.floor, body.waist, body.height
    light, inset = brush.light(0, -1), 0.05 if body.boxy else 0.17
    width, back = right - left, rng.random() < 0.5
    glass_depth = z + (0.0 if body.boxy else 0.25 if back else 1.3)
    painted = brush.flat(CAR, body.paint, z, light)
    glass = brush.flat(CAR, brush.pick(((40, 46, 54), (90, 104, 116)), 10), z)
    a, b = left + inset * width / 2, right - inset * width / 2
    top_z = glass_depth + (0.0 if body.boxy else 0.45)
    tyre = brush.flat(CAR, (22, 22, 23), z)
    for side in (left + 0.05, right - 0.27):
        brush.upright(side, side + 0.22, 0.0, floor + 0.1, z + 0.1, tyre)
    corners = [(left, waist, glass_depth), (right, waist, glass_depth), (b, height, top_z), (a, height, top_z)]
    canvas.polygon(corners, painted)
    m, low, high = 0.06 * width, waist + 0.05, height * 0.95
    corners = [(left + m, low, glass_depth), (right - m, low, glass_depth), (b - m, high, top_z), (a + m, high, top_z)]
    canvas.polygon(corners, glass)
    hood = brush.flat(CAR, body.paint, z, min(light * 1.15, 1.25))
    edge = waist * 0.95
    canvas.polygon([(left, edge, z), (right, edge, z), (right, waist, glass_depth), (left, waist, glass_depth)], hood)
    left_edge = [(left + 0.08, floor), (left, floor + 0.15), (left, waist * 0.9), (left + 0.12, waist * 0.97)]
    right_edge = [(right - 0.12, waist * 0.97), (right, waist * 0.9), (right, floor + 0.15), (right - 0.08, floor)]
    brush.shape([*left_edge, *right_edge], z, painted)
    bumper = brush.flat(CAR, body.paint if rng.random() < 0.5 else (60, 60, 62), z, light * 0.75)
    brush.upright(left + 0.02, right - 0.02, floor, floor + 0.2, z, bumper)
    lights = brush.flat(CAR, brush.jitter((170, 30, 30) if back else (226, 226, 214), 16), z)
    for side in (left + 0.06, right - 0.36):
        brush.upright(side, side + 0.3, waist * 0.72, waist * 0.88, z, lights)
    plate = brush.flat(CAR, (214, 196, 90) if back else (220, 220, 214), z)
    middle = (left + right) / 2
    brush.upright(middle - 0.26, middle + 0.26, waist * 0.6, waist * 0.7, z, plate)
