"""Light, texture and sensor of the procedural streets: from surface numbers to a picture.

Textures are computed in world coordinates (metres on the wall, metres on the asphalt), so they shrink with distance as
real ones do. Shading moves no border, so the mask stays exact.

Usage:
    >>> image = shade(scene, rng)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from litheseg.streets.scene import FAR, Layout, Scene
from litheseg.streets.world import Camera, Facade, Rgb, Surface, Texture

__all__ = ["label_map", "shade"]

Floats = NDArray[np.float32]
Pixels = NDArray[np.intp]  # indices into the flattened map
_FIELDS = tuple(field.name for field in fields(Facade))
_TILE = 256  # pixels of a noise tile; a power of two, so that wrapping is a bit mask


def label_map(
    numbers: NDArray[np.int32], overlay: NDArray[np.int32] | None, surfaces: list[Surface]
) -> NDArray[np.uint8]:
    """Class numbers from surface numbers; a railing counts as fence between its bars too, as annotators draw it."""
    labels = np.array([surface.label for surface in surfaces], dtype=np.uint8)
    mask = labels[numbers]
    return mask if overlay is None else np.where(overlay > 0, labels[overlay], mask)


def shade(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light and render the scene.

    Args:
        scene: painted at twice the picture's size.
        rng: the only source of random numbers.

    Returns:
        uint8 H W 3, half the size of the surface map.
    """
    surfaces, overlay, shadow = scene.canvas.maps()
    # Flat arrays indexed by pixel lists: several times faster than boolean masks and `[]`.
    numbers, view = surfaces.ravel(), _View.of(scene, surfaces.shape[0], surfaces.shape[1])
    picture, depth = view.colors.take(numbers, axis=0), view.depths.take(numbers)
    textures = view.textures.take(numbers)
    at = {texture: np.flatnonzero(textures == texture) for texture in Texture}
    sky = _Sky.random(rng)
    offset = rng.integers(_TILE, size=8)
    _paint_sky(picture, view, at[Texture.SKY], sky, offset)
    _paint_ground(picture, depth, view, at[Texture.GROUND], numbers, shadow.ravel(), scene, rng)
    _paint_facades(picture, depth, view, at[Texture.FACADE], numbers, offset)
    _paint_foliage(picture, at[Texture.FOLIAGE], surfaces.shape[1], offset, rng)
    _paint_fences(picture, view, at[Texture.FENCE], numbers)
    if overlay is not None:
        _paint_fences(picture, view, np.flatnonzero(overlay), overlay.ravel())
    picture = picture.reshape(*surfaces.shape, 3)
    depth[at[Texture.SKY]] = 0
    depth = depth.reshape(surfaces.shape)[::2, ::2]
    picture = picture[::2] + picture[1::2]
    picture = (picture[:, ::2] + picture[:, 1::2]) * np.float32(0.25)
    clear = np.exp(-scene.haze * np.minimum(depth, 2 * FAR))[..., None].astype(np.float32)
    grain = _tile(1.2)[np.ix_(*((np.arange(n) + offset[0]) % _TILE for n in clear.shape[:2]))]
    picture = picture * clear * (1 + 0.06 * grain[..., None]) + np.array(sky.horizon, np.float32) * (1 - clear)
    return _sensor(picture, rng)


@lru_cache(maxsize=8)
def _tile(slope: float) -> Floats:
    """Periodic noise with spectrum 1/frequency^slope, zero mean, unit deviation; always the same."""
    rng = np.random.default_rng(20)
    frequency = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(_TILE, _TILE))) / frequency**slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(_TILE, _TILE))
    return (noise / noise.std()).astype(np.float32)


def _noise(slope: float, x: Floats, y: Floats) -> Floats:
    """Noise at tile coordinates (any floats; nearest neighbour)."""
    row, column = y.astype(np.int32) & (_TILE - 1), x.astype(np.int32) & (_TILE - 1)
    return _tile(slope).take(row * _TILE + column)


def _fraction(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """`x % 1`, to the last bit, several times faster."""
    return x - np.floor(x)


@dataclass(frozen=True)
class _View:
    """The table as arrays over the S surface numbers, and the ray of each pixel."""

    camera: Camera
    surfaces: list[Surface]
    colors: Floats  # S 3
    depths: Floats  # S
    textures: NDArray[np.uint8]  # S
    across: Floats  # H * W
    down: Floats  # H * W
    facade: dict[str, Floats]  # fields of `Facade`, S or S 3

    @staticmethod
    def of(scene: Scene, height: int, width: int) -> _View:
        surfaces, camera = scene.canvas.surfaces, scene.canvas.camera
        colors = np.array([surface.color for surface in surfaces], dtype=np.float32)
        depths = np.array([surface.z for surface in surfaces], dtype=np.float32)
        textures = np.array([surface.texture for surface in surfaces], dtype=np.uint8)
        across, down = camera.rays((height, width))
        textured = [i for i, surface in enumerate(surfaces) if surface.facade]
        facade = {}
        for name in _FIELDS:
            values = np.array([getattr(surfaces[i].facade, name) for i in textured], dtype=np.float32)
            facade[name] = np.zeros((len(surfaces), *values.shape[1:]), dtype=np.float32)
            facade[name][textured] = values
        return _View(camera, surfaces, colors, depths, textures, across.ravel(), down.ravel(), facade)

    def facades(self, numbers: NDArray[np.int32], *names: str) -> tuple[Floats, ...]:
        """The named `Facade` fields of each pixel in `numbers`, [P] or [P 3]."""
        return tuple(self.facade[name].take(numbers, axis=0) for name in names)

    def on_plane(self, where: Pixels, numbers: NDArray[np.int32]) -> tuple[Floats, Floats, Floats]:
        """Metres along the wall, metres above the ground and depth of the pixels `where`, [P] each."""
        across, down = self.across.take(where), self.down.take(where)
        offset, slope, frontal = self.facades(numbers, "offset", "slope", "frontal")
        spread = across - slope
        spread = np.where(np.abs(spread) < 1e-3, np.float32(1e-3), spread)
        depth = np.clip(np.where(frontal > 0, offset, offset / spread), 0.3, 4 * FAR)
        along = np.where(frontal > 0, across * depth, depth)
        return along, self.camera.height - down * depth, depth


@dataclass(frozen=True)
class _Sky:
    zenith: Rgb
    horizon: Rgb
    clouds: float

    @staticmethod
    def random(rng: np.random.Generator) -> _Sky:
        looks = (
            ((96, 142, 205), (196, 214, 232), 0.5),  # fair
            ((206, 210, 216), (232, 234, 236), 0.25),  # overcast
            ((150, 156, 166), (190, 192, 194), 0.6),  # heavy clouds
            ((120, 130, 168), (236, 202, 170), 0.5),  # evening
            ((246, 246, 246), (252, 252, 252), 0.05),  # burnt out
        )
        zenith, horizon, clouds = looks[rng.choice(5, p=[0.32, 0.26, 0.18, 0.1, 0.14])]
        shift = rng.normal(0, 8, 3)
        return _Sky(
            tuple((np.array(zenith) + shift).tolist()), tuple((np.array(horizon) + shift).tolist()),
            clouds * float(rng.uniform(0.3, 1.4)),
        )  # fmt: skip


def _paint_sky(picture: Floats, view: _View, where: Pixels, sky: _Sky, offset: NDArray[np.int64]) -> None:
    up = np.clip(-view.down.take(where), 0.0, 1.0)
    mix = np.minimum(up * 1.6, 1.0)[:, None]
    color = np.array(sky.horizon, np.float32) * (1 - mix) + np.array(sky.zenith, np.float32) * mix
    # Clouds lie on a plane overhead and so flatten towards the horizon.
    reach = 1.0 / (up + 0.12)
    cover = _noise(1.7, view.across.take(where) * reach * 24 + offset[1], reach * 30 + offset[2])
    white = np.clip(cover * 0.8 + 0.1, -0.6, 1.0)[:, None] * sky.clouds
    picture[where] = (
        color + (np.array((250, 250, 252), np.float32) - color) * np.maximum(white, 0) + 60 * np.minimum(white, 0)
    )


def _paint_ground(
    picture: Floats, depth: Floats, view: _View, where: Pixels, numbers: NDArray[np.int32],
    shadow: NDArray[np.uint8], scene: Scene, rng: np.random.Generator,
) -> None:  # fmt: skip
    layout, number = scene.layout, numbers.take(where)
    z = np.clip(view.camera.height / np.maximum(view.down.take(where), 1e-4), 0.3, 4 * FAR).astype(np.float32)
    x = view.across.take(where) * z - view.camera.curve * z * z + np.float32(layout.seen_from)
    gray = float(rng.uniform(72, 128))
    tint = rng.normal(0, 4, 3)
    # A pavement is often just another asphalt.
    slab = gray + float(rng.uniform(-8, 22)) if rng.random() < 0.45 else float(rng.uniform(110, 175))
    colors = np.array(
        [(0, 0, 0), gray + tint, slab + rng.normal(0, 7, 3) + (5, 1, -4), rng.normal((84, 100, 54), 14)], np.float32
    )
    color = colors.take(number, axis=0)
    fine = np.minimum(8 / z, 1.0)
    rough = 0.05 * fine * _noise(0.5, x * 30, z * 12) + 0.06 * _noise(1.4, x * 9, z * 4)
    color *= (1 + np.where(number == 3, 2.2, 1.0) * rough)[:, None]
    color *= _wear(x, z, number, layout, rng)[:, None]
    _paint_markings(color, x, z, number, layout, rng)
    dark = shadow.take(where).astype(np.float32) * np.float32((0.12 + 0.5 * scene.sun.direct) / 255)
    light = (1 + 0.12 * scene.sun.direct) * (1 - dark)
    picture[where] = color * light[:, None]
    depth[where] = z


def _wear(x: Floats, z: Floats, number: NDArray[np.int32], layout: Layout, rng: np.random.Generator) -> Floats:
    """Brightness factor from patches, manholes, wheel tracks, slabs and the kerb."""
    factor = np.ones_like(x)
    for _ in range(int(rng.integers(1, 6))):
        x0, z0, wide, long = rng.uniform(-6, 6), rng.uniform(2, 40), rng.uniform(0.3, 1.6), rng.uniform(0.3, 6)
        factor[(np.abs(x - x0) < wide) & (np.abs(z - z0) < long)] *= rng.uniform(0.78, 1.12)
    factor *= 1 + np.where(number == 1, 0.05 * np.cos(x * (2 * np.pi / 1.75)), 0)
    slabs = np.flatnonzero((number == 2) & (z < 18))
    joint = (_fraction(x[slabs] * 1.6) < 0.07) | (_fraction(z[slabs] * 1.1) < 0.06)
    factor[slabs[joint]] *= rng.uniform(0.75, 0.97)
    kerb = (number == 2) & (np.abs(x) < layout.half_road + 0.18)
    factor[kerb] *= rng.uniform(0.9, 1.3)
    factor[(number == 1) & (np.abs(x) > layout.half_road - 0.25)] *= 0.85
    return factor


def _paint_markings(
    color: Floats, x: Floats, z: Floats, number: NDArray[np.int32], layout: Layout, rng: np.random.Generator
) -> None:
    """Lane lines, edge lines and zebra stripes; they are road."""
    white = np.array((216, 216, 210), np.float32) * float(rng.uniform(0.75, 1.08))
    faded = float(rng.uniform(0.5, 0.95))
    cycle, share = float(rng.uniform(4, 9)), float(rng.uniform(0.3, 0.6))
    line = np.zeros(x.shape, bool)
    for lane in range(1, layout.lanes):
        middle = layout.half_road * (2 * lane / layout.lanes - 1)
        lane_line = np.flatnonzero(np.abs(x - middle) < 0.08)
        line[lane_line[(z[lane_line] + rng.uniform(0, 9)) % cycle < cycle * share]] = True
    outside = (z < layout.crossing - 1) | (z > layout.crossing + layout.crossing_width + 1)
    line &= outside
    if layout.crossing < FAR:
        line |= (np.abs(z - layout.crossing + 1.2) < 0.2) & (x < 0) & (x > -layout.half_road)
    if layout.zebra < FAR:
        line |= (np.abs(z - layout.zebra) < 1.5) & (x % 1.2 < 0.55) & (np.abs(x) < layout.half_road)
    line &= number == 1
    color[line] = color[line] * (1 - faded) + white * faded
    if layout.yellow_lines:
        side = np.abs(x)
        yellow = (np.abs(side - layout.half_road + 0.4) < 0.05) | (np.abs(side - layout.half_road + 0.6) < 0.05)
        yellow &= outside & (number == 1)
        color[yellow] = color[yellow] * (1 - faded) + np.array((204, 176, 70), np.float32) * faded


def _paint_facades(
    picture: Floats, depth: Floats, view: _View, where: Pixels, numbers: NDArray[np.int32],
    offset: NDArray[np.int64],
) -> None:  # fmt: skip
    number = numbers.take(where)
    if not number.size:
        return
    along, above, z = view.on_plane(where, number)
    storey, pitch, wide, tall, phase, shop, eaves, bricks = view.facades(
        number, "storey", "pitch", "window_width", "window_height", "phase", "shop", "eaves", "bricks"
    )
    color = picture.take(where, axis=0)
    # Stains, and courses that fade once they are finer than the pixels.
    color *= (1 + 0.07 * _noise(1.5, along * 7 + number * 31, above * 7 + offset[3]))[:, None]
    course = (_fraction(above * 6) < 0.3) | (_fraction(along * 2 + np.floor(above * 6) * 0.5) < 0.12)
    color *= (1 - bricks * course * np.minimum(14 / z, 1))[:, None]
    column, row = (along + phase) / pitch, (above - shop) / storey
    h, v = np.abs(_fraction(column) - 0.5) * 2 / wide, np.abs(_fraction(row) - 0.5) * 2 / tall
    upper = (above > shop) & (above < eaves - 0.4)
    window = (h < 1) & (v < 1) & upper
    framed = (h < 1.22) & (v < 1.16) & upper & ~window
    front = (above < shop - 0.7) & (above > 0.4) & ((along + phase) % (pitch * 2) > 0.35)
    fascia = (above < shop) & (above >= shop - 0.7)
    framed |= ((along + phase * 3) % (pitch * 4) < 0.13) & ~window  # drainpipes, thin as poles
    panes = np.flatnonzero(window | front)
    (glass,) = view.facades(number[panes], "glass")
    # Each pane has its own brightness: curtains, lamps, reflections of the sky.
    pane = _noise(0.0, np.floor(column[panes]) * 7 + number[panes] * 13, np.floor(row[panes]) * 11 + offset[4])
    color[panes] = np.maximum(glass * (1 + 0.3 * np.clip(pane, -1.5, 2.2))[:, None], 8)
    for name, part in (("trim", framed), ("fascia", fascia), ("roof", above > eaves)):
        pixels = np.flatnonzero(part)
        (color[pixels],) = view.facades(number[pixels], name)
    color *= (0.78 + 0.22 * np.clip(above / 4, 0, 1))[:, None]
    picture[where] = color
    depth[where] = z


def _paint_foliage(
    picture: Floats, where: Pixels, width: int, offset: NDArray[np.int64], rng: np.random.Generator
) -> None:
    rows, columns = np.divmod(where, width)
    coarse = _noise(1.3, columns.astype(np.float32) + offset[5], rows.astype(np.float32) + offset[6])
    leaves = _noise(0.4, columns.astype(np.float32) + offset[6], rows.astype(np.float32) + offset[7])
    light = (1 + float(rng.uniform(0.1, 0.28)) * leaves + 0.18 * coarse)[:, None].clip(0.25, 2.2)
    picture[where] = picture.take(where, axis=0) * light


def _paint_fences(picture: Floats, view: _View, where: Pixels, numbers: NDArray[np.int32]) -> None:
    """Planks and walls are solid (`storey` 0); railings show what is behind them between the bars."""
    number = numbers.take(where)
    if not number.size:
        return
    along, above, z = view.on_plane(where, number)
    pitch, solid, top = view.facades(number, "pitch", "storey", "eaves")
    bar = (along / pitch) % 1 < 0.3
    rail = (above > top - 0.09) | (np.abs(above - 0.15) < 0.05)
    color = view.colors[number]
    color *= np.where((solid == 0) & ((along / pitch) % 1 < 0.12), 1 - 0.35 * np.minimum(10 / z, 1), 1.0)[:, None]
    opaque = np.where((solid == 0) | rail | bar, 1.0, 0.12)[:, None].astype(np.float32)
    picture[where] = picture[where] * (1 - opaque) + color * opaque


def _sensor(picture: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exposure, white balance, contrast, vignette, blur and noise."""
    height, width, _ = picture.shape
    exposure = float(np.exp(rng.normal(0.2, 0.25))) * (0.45 if rng.random() < 0.1 else 1.0)
    balance = rng.normal(1.0, 0.045, 3).astype(np.float32)
    y, x = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    vignette = 1 - np.float32(rng.uniform(0, 0.11)) * (y[:, None] ** 2 + x[None, :] ** 2)
    gain = (exposure / 255 * balance).astype(np.float32)
    picture = picture * vignette[..., None] * gain
    gamma = float(rng.uniform(0.8, 1.15))
    picture = np.clip(picture, 0, 1.6) ** np.float32(gamma)
    # A soft shoulder instead of hard clipping of the lights.
    soft = np.float32(0.8) + np.float32(0.2) * np.tanh((picture - np.float32(0.8)) * 5)
    picture = np.where(picture > 0.8, soft, picture) * np.float32(255)
    blur = float(rng.choice([0.0, rng.uniform(0.3, 0.9)])) * (height * width / 43200) ** 0.5
    if blur:
        sharp = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        picture = np.asarray(sharp.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 6.0))
    return np.clip(picture + noise + 0.5, 0, 255).astype(np.uint8)
