"""Camera and canvas of the procedural streets: world polygons become a map of surface numbers.

Everything is painted once, far to near, into one map of *surface numbers* at twice the image size. A table gives each
number's class, colour, depth and texture, so mask and picture always agree.

World axes in metres: x right, y up, z away from the camera; the ground is y = 0 and bends sideways by ``curve * z**2``.

Usage:
    >>> canvas = Canvas(Camera(focal=400, u0=240, v0=170, height=1.5, roll=0.0, curve=0.0), (360, 480))
    >>> wall = canvas.surface(1, (120, 90, 70), z=20.0)
    >>> canvas.polygon([(-1, 0, 20), (1, 0, 20), (1, 3, 20), (-1, 3, 20)], wall)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["NEAR", "Camera", "Canvas", "Facade", "Point", "Rgb", "Surface", "Texture"]

NEAR = 0.9  # metres; whatever is nearer is moved to this plane

Point = tuple[float, float, float]
Rgb = tuple[float, float, float]


class Texture(IntEnum):
    """How a surface is textured."""

    SKY = 0
    GROUND = 1
    FLAT = 2
    FOLIAGE = 3
    FACADE = 4
    FENCE = 5


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along +z.

    Args:
        focal: focal length in pixels.
        u0: horizontal place of the vanishing point of the z axis, in pixels.
        v0: vertical place of that point, in pixels: the horizon.
        height: of the lens above the ground in metres.
        roll: rotation of the picture around the vanishing point in radians.
        curve: sideways bend of the world in 1/m.
    """

    focal: float
    u0: float
    v0: float
    height: float
    roll: float
    curve: float

    def project(self, point: Point) -> tuple[float, float]:
        """World point (x, y, z) in metres -> (u, v) in pixels."""
        x, y, z = point
        z = z if z > NEAR else NEAR
        scale = self.focal / z
        du, dv = (x + self.curve * z * z) * scale, (self.height - y) * scale
        return self.u0 + du - self.roll * dv, self.v0 + dv + self.roll * du

    def rays(self, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Directions (x/z, -y/z) of all pixel centres: two float32 arrays H W."""
        du = (np.arange(size[1], dtype=np.float32) + 0.5 - self.u0) / self.focal
        dv = (np.arange(size[0], dtype=np.float32) + 0.5 - self.v0) / self.focal
        # First-order inverse of the small roll in `project`.
        right = du[None, :] + np.float32(self.roll) * dv[:, None]
        down = dv[:, None] - np.float32(self.roll) * du[None, :]
        return right, down


@dataclass(frozen=True)
class Facade:
    """Texture of a vertical plane: storeys, windows, shop front (lengths in metres, shares in 0..1).

    The plane is x = `offset` + `slope` * z, or z = `offset` where `frontal`.
    """

    offset: float
    slope: float
    frontal: bool
    storey: float = 3.0
    pitch: float = 2.5
    window_width: float = 0.5
    window_height: float = 0.55
    phase: float = 0.0
    shop: float = 0.0  # height of the shop front
    eaves: float = 1e3  # height where the roof begins
    bricks: float = 0.0  # contrast of the courses
    glass: Rgb = (40.0, 45.0, 55.0)
    trim: Rgb = (200.0, 200.0, 195.0)
    roof: Rgb = (80.0, 70.0, 70.0)
    fascia: Rgb = (120.0, 30.0, 30.0)


@dataclass(frozen=True)
class Surface:
    """One row of the table: class number, colour 0..255, depth in metres, texture."""

    label: int
    color: Rgb
    z: float
    texture: Texture = Texture.FLAT
    facade: Facade | None = None


@dataclass
class Canvas:
    """Paints world polygons into a map of surface numbers; the last one painted wins.

    Railings go to a second map, `overlay`, because what stands behind them shows between the bars.
    """

    camera: Camera
    size: tuple[int, int]
    surfaces: list[Surface] = field(default_factory=list)

    def __post_init__(self) -> None:
        height, width = self.size
        self._map = Image.new("I", (width, height), 0)
        self._draw = ImageDraw.Draw(self._map)
        self._overlay = Image.new("I", (width, height), 0)
        self._overlay_draw = ImageDraw.Draw(self._overlay)
        self._overlay_used = False
        self._shadow = Image.new("L", (width, height), 0)
        self._shadow_draw = ImageDraw.Draw(self._shadow)

    def surface(
        self, label: int, color: Rgb, z: float, texture: Texture = Texture.FLAT, facade: Facade | None = None
    ) -> int:
        """Add a row to the table and return its number."""
        self.surfaces.append(Surface(label, color, z, texture, facade))
        return len(self.surfaces) - 1

    def fill(self, numbers: NDArray[np.int32]) -> None:
        """Replace the whole map (int32 H W): sky and ground, before anything is painted on them."""
        self._map = Image.fromarray(numbers)
        self._draw = ImageDraw.Draw(self._map)

    def polygon(self, points: Sequence[Point], number: int) -> None:
        """Paint a filled polygon."""
        self._paint([self.camera.project(point) for point in points], number)

    def disc(self, centre: Point, radius: float, number: int, *, squash: float = 1.0) -> None:
        """Paint an upright ellipse; `radius` in metres is its half height, `squash` times that its half width."""
        u, v = self.camera.project(centre)
        half_v = radius * self.camera.focal / max(centre[2], NEAR)
        half_u = half_v * squash
        box = (u - half_u, v - half_v, u + half_u, v + half_v)
        # A third of all leaves lies outside the picture; skipping them here is faster than in Pillow.
        outside = box[2] < -1 or box[0] > self.size[1] + 1 or box[3] < -1 or box[1] > self.size[0] + 1
        if half_v < 0.4 or outside:
            return
        self._draw.ellipse(box, fill=number)
        if self._overlay_used:
            self._overlay_draw.ellipse(box, fill=0)

    def line(self, start: Point, end: Point, width: float, number: int) -> None:
        """Paint a thin quadrilateral, `width` metres wide and never thinner than one fine pixel."""
        (u0, v0), (u1, v1) = self.camera.project(start), self.camera.project(end)
        length = math.hypot(u1 - u0, v1 - v0) or 1.0
        half0 = max(0.5 * width * self.camera.focal / max(start[2], NEAR), 0.5)
        half1 = max(0.5 * width * self.camera.focal / max(end[2], NEAR), 0.5)
        nu, nv = -(v1 - v0) / length, (u1 - u0) / length
        self._paint(
            [
                (u0 + nu * half0, v0 + nv * half0),
                (u1 + nu * half1, v1 + nv * half1),
                (u1 - nu * half1, v1 - nv * half1),
                (u0 - nu * half0, v0 - nv * half0),
            ],
            number,
        )

    def railing(self, points: Sequence[Point], number: int) -> None:
        """Paint a see-through polygon above what is there."""
        self._overlay_used = True
        self._overlay_draw.polygon([self.camera.project(point) for point in points], fill=number)

    def roughen(self, shift: NDArray[np.int32]) -> None:
        """Fray the borders between foliage and the sky or houses behind it.

        Args:
            shift: int H W, where in the flattened map each pixel looks for its surface.
        """
        numbers = np.asarray(self._map, dtype=np.int32).ravel()
        textures = np.array([surface.texture for surface in self.surfaces], dtype=np.uint8)
        loose = np.isin(textures, (Texture.SKY, Texture.FOLIAGE, Texture.FACADE))
        where = np.flatnonzero(loose.take(numbers))
        moved = numbers.take(where + shift.ravel().take(where), mode="clip")
        was, now = textures.take(numbers.take(where)), textures.take(moved)
        frayed = loose.take(moved) & ((was == Texture.FOLIAGE) | (now == Texture.FOLIAGE))
        numbers = numbers.copy()
        numbers[where[frayed]] = moved[frayed]
        self.fill(numbers.reshape(self.size))

    def shadow(self, points: Sequence[Point], strength: int = 255) -> None:
        """Darken the ground inside the polygon."""
        self._shadow_draw.polygon([self.camera.project(point) for point in points], fill=strength)

    def maps(self) -> tuple[NDArray[np.int32], NDArray[np.int32] | None, NDArray[np.uint8]]:
        """The surface map, the railing map (0 = none; None if never used) and the shadow map (0..255), each H W."""
        overlay = np.asarray(self._overlay, dtype=np.int32) if self._overlay_used else None
        return np.asarray(self._map, dtype=np.int32), overlay, np.asarray(self._shadow)

    def _paint(self, points: list[tuple[float, float]], number: int) -> None:
        self._draw.polygon(points, fill=number)
        if self._overlay_used:
            self._overlay_draw.polygon(points, fill=0)
