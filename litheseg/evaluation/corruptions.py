"""Corruptions that a camera meets: noise, blur, weather, light and compression, each in five strengths.

The idea and most of the kinds are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, section 3). Code and
parameters are ours, so numbers compare with each other and not with those of the paper. What differs: lengths are
shares of the image's shorter side, so a scene is hurt alike at any resolution; frost, snow and rain are drawn, not
photographed; rain and darkness are added; elastic and glass distortions are left out, because they move things away
from their labels.

An image and a seed always give the same result, and the strengths of a kind share its random pattern: stronger is more
of the same. Everything works on uint8 H W 3, RGB; `FAMILIES` says which kind is of which sort.

Usage:
    >>> corrupted = corrupt(image, "fog", 3, seed="street_0012")
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.signal import fftconvolve

from litheseg.errors import DataError, LithesegError, did_you_mean

__all__ = ["CORRUPTIONS", "FAMILIES", "STRENGTHS", "check_corruptions", "corrupt"]

STRENGTHS = (1, 2, 3, 4, 5)

Pixels = np.ndarray
"""float32 H W 3 in [0, 1], as the file has it (gamma encoded)."""
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]

_GAMMA = 2.2  # near enough to sRGB's curve for exposures
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def corrupt(image: np.ndarray, name: str, strength: int, *, seed: str | int = 0) -> np.ndarray:
    """An image as a camera might have delivered it.

    Args:
        image: uint8 H W 3, RGB.
        name: one of `CORRUPTIONS`.
        strength: 1 to 5.
        seed: whatever names the image: the same seed gives the same noise.

    Returns:
        uint8 H W 3.

    Raises:
        DataError: an image of another kind.
        LithesegError: an unknown corruption or strength.
    """
    check_corruptions((name,), (strength,))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"an image of {image.dtype} and shape {image.shape}; corruptions are of RGB, uint8 H W 3")
    generator = np.random.default_rng(zlib.crc32(f"{seed} {name}".encode()))
    pixels = CORRUPTIONS[name](image.astype(np.float32) / 255, strength - 1, generator)
    return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)


def check_corruptions(names: tuple[str, ...], strengths: tuple[int, ...] = STRENGTHS) -> None:
    """Refuse what does not exist.

    Raises:
        LithesegError: an unknown corruption or strength; names those that there are.
    """
    for name in names:
        if name not in CORRUPTIONS:
            raise LithesegError(f"unknown corruption '{name}'.{did_you_mean(name, CORRUPTIONS)}")
    for strength in strengths:
        if strength not in STRENGTHS:
            raise LithesegError(f"a corruption has no strength {strength}; choose from 1 (mild) to 5 (severe)")


# --- noise: per pixel, as a sensor makes it ---------------------------------------------------------------------------


def _gaussian_noise(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Of standard deviation 0.04 to 0.22: electronics in the dark."""
    return pixels + (0.04, 0.07, 0.11, 0.16, 0.22)[level] * random.standard_normal(pixels.shape, np.float32)


def _shot_noise(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Of 120 to 6 photons where it is white; a pixel's variance grows with its light."""
    photons = (120, 50, 25, 12, 6)[level]
    return random.poisson(pixels * photons).astype(np.float32) / photons


def _impulse_noise(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """1 to 16 % of the values are black or white: dead pixels and broken bits."""
    share, draw = (0.01, 0.03, 0.06, 0.10, 0.16)[level], random.random(pixels.shape, np.float32)
    return np.where(draw < share, np.float32(draw < share / 2), pixels)


# --- blur -------------------------------------------------------------------------------------------------------------


def _defocus_blur(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """A disk of radius 0.4 to 2.4 % of the shorter side."""
    return _convolved(pixels, _disk((0.004, 0.008, 0.012, 0.018, 0.024)[level] * min(pixels.shape[:2])))


def _motion_blur(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """A line of 1.5 to 10 % of the shorter side, at most 45 degrees from level."""
    length = (0.015, 0.03, 0.05, 0.075, 0.10)[level] * min(pixels.shape[:2])
    return _convolved(pixels, _line(length, random.uniform(-np.pi / 4, np.pi / 4)))


def _zoom_blur(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """The mean of eight enlargements up to 1.03 to 1.18 about the middle: driving while the shutter is open."""
    height, width = pixels.shape[:2]
    photo, total = Image.fromarray(_bytes(pixels)), np.zeros_like(pixels)
    for zoom in np.linspace(1, (1.03, 1.06, 1.10, 1.14, 1.18)[level], 8):
        left, top = (side * (1 - 1 / zoom) / 2 for side in (width, height))
        box = (left, top, width - left, height - top)
        total += np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box), np.float32)
    return total / (8 * 255)


# --- weather ----------------------------------------------------------------------------------------------------------


def _fog(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """20 to 78 % of the light is that of a pale cloud, which is denser here and thinner there."""
    dense = (0.2, 0.36, 0.52, 0.66, 0.78)[level]
    share = (dense * (0.7 + 0.6 * _clouds(pixels.shape[:2], random)))[..., None].clip(0, 0.95)
    return pixels * (1 - share) + 0.85 * share


def _frost(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Ice on the glass: bluish white ferns over 15 to 65 % of the image, thicker towards its edges, and haze."""
    cover = (0.15, 0.28, 0.4, 0.52, 0.65)[level]
    height, width = pixels.shape[:2]
    ferns = 1 - np.abs(2 * _clouds((height, width), random, rough=0.75) - 1)  # ridges of the noise
    rows, columns = np.abs(np.linspace(-1, 1, height)), np.abs(np.linspace(-1, 1, width))
    ice = ferns + 0.35 * np.maximum(rows[:, None], columns[None])
    thick = ((ice - np.quantile(ice, 1 - cover)) / 0.3).clip(0, 1)[..., None]
    share = 0.12 + 0.63 * thick
    return pixels * (1 - share) + share * np.array([0.86, 0.91, 0.96], np.float32)


def _snow(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Flakes of several sizes that the shutter draws long, over a paler and greyer scene."""
    flakes, pale = (250, 500, 900, 1500, 2400)[level], (0.1, 0.18, 0.26, 0.34, 0.42)[level]
    side, fallen = min(pixels.shape[:2]), np.zeros(pixels.shape[:2], np.float32)
    angle = random.uniform(np.pi / 3, 2 * np.pi / 3)
    for radius, share in ((0.0025, 0.6), (0.005, 0.3), (0.009, 0.1)):
        flake = fftconvolve(_line(4 * radius * side, angle), _disk(radius * side))
        fallen = np.maximum(fallen, _stamped(_seeds(pixels, flakes * share, random), flake))
    grey = (pixels @ _GREY)[..., None]
    scene = pixels + pale * (0.5 * (grey - pixels) + 0.8 * (1 - pixels))
    return scene + fallen[..., None] * (0.97 - scene)


def _rain(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Thin slanted streaks of 6 % of the shorter side, over a darker and flatter scene."""
    drops, veil = (150, 300, 500, 800, 1200)[level], (0.1, 0.2, 0.3, 0.4, 0.5)[level]
    streak = _line(0.06 * min(pixels.shape[:2]), random.uniform(np.pi / 2 - 0.3, np.pi / 2 + 0.3))
    fallen = 0.55 * _stamped(_seeds(pixels, drops, random), streak)[..., None]
    scene = pixels + veil * (0.35 + 0.3 * (pixels @ _GREY)[..., None] - pixels)
    return scene + fallen * (0.8 - scene)


# --- light and files --------------------------------------------------------------------------------------------------


def _brightness(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Exposed for 0.5 to 2.5 stops too long."""
    return pixels * np.float32(2 ** ((0.5, 1, 1.5, 2, 2.5)[level] / _GAMMA))


def _darkness(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """Exposed for 1 to 5 stops too short, with the photons that remain of 2000 where it was white."""
    light = pixels**_GAMMA * 2.0 ** -(level + 1)
    return np.asarray((random.poisson(light * 2000) / 2000) ** (1 / _GAMMA), np.float32)


def _contrast(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """60 to 10 % of the differences from the image's mean are left."""
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return mean + (0.6, 0.42, 0.28, 0.18, 0.1)[level] * (pixels - mean)


def _jpeg(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """JPEG of quality 40 to 5, as Pillow writes it."""
    file = io.BytesIO()
    Image.fromarray(_bytes(pixels)).save(file, "JPEG", quality=(40, 25, 15, 9, 5)[level])
    return np.asarray(Image.open(file).convert("RGB"), np.float32) / 255


def _pixelate(pixels: Pixels, level: int, random: np.random.Generator) -> Pixels:
    """At 50 to 12 % of the resolution: the mean of each block."""
    height, width = pixels.shape[:2]
    share = (0.5, 0.35, 0.25, 0.17, 0.12)[level]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    photo = Image.fromarray(_bytes(pixels)).resize(small, Image.Resampling.BOX)
    return np.asarray(photo.resize((width, height), Image.Resampling.NEAREST), np.float32) / 255


FAMILIES: dict[str, dict[str, Corruption]] = {
    "noise": {"gaussian-noise": _gaussian_noise, "shot-noise": _shot_noise, "impulse-noise": _impulse_noise},
    "blur": {"defocus-blur": _defocus_blur, "motion-blur": _motion_blur, "zoom-blur": _zoom_blur},
    "weather": {"fog": _fog, "frost": _frost, "rain": _rain, "snow": _snow},
    "light": {"brightness": _brightness, "contrast": _contrast, "darkness": _darkness},
    "files": {"jpeg": _jpeg, "pixelate": _pixelate},
}

CORRUPTIONS: dict[str, Corruption] = {name: how for family in FAMILIES.values() for name, how in family.items()}
"""Fifteen kinds by name."""


def _bytes(pixels: Pixels) -> np.ndarray:
    return np.rint(255 * pixels).astype(np.uint8)


def _line(length: float, angle: float) -> np.ndarray:
    """A line of one pixel's thickness and two pixels or more through the middle of a square, radians from level."""
    length = max(length, 2.0)
    half = int(np.ceil(length / 2)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = x * np.sin(angle) - y * np.cos(angle)
    line = (1 - np.abs(across)).clip(0, 1) * (length / 2 + 0.5 - np.abs(along)).clip(0, 1)
    return np.asarray(line, np.float32)


def _disk(radius: float) -> np.ndarray:
    """Full in the middle, one pixel of soft edge; of 0.7 pixels at least."""
    radius = max(radius, 0.7)
    offsets = np.arange(-int(radius) - 1, int(radius) + 2)
    return np.asarray((radius + 0.5 - np.hypot(*np.meshgrid(offsets, offsets))).clip(0, 1), np.float32)


def _convolved(values: np.ndarray, kernel: np.ndarray) -> Pixels:
    """With a kernel of odd sides whose sum is made 1; beyond its edges the image is mirrored."""
    margins = [(side // 2, side // 2) for side in kernel.shape] + [(0, 0)]
    kernel = np.asarray(kernel / kernel.sum(), np.float32)[..., None]
    return np.asarray(fftconvolve(np.pad(values, margins, "symmetric"), kernel, "valid", axes=(0, 1)), np.float32)


def _seeds(pixels: Pixels, count: float, random: np.random.Generator) -> np.ndarray:
    """Where something falls, about `count` times in a square of the shorter side; bool H W."""
    return random.random(pixels.shape[:2], np.float32) < count / min(pixels.shape[:2]) ** 2


def _stamped(seeds: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The shape, whose largest value is made 1, at each seed: bool H W -> float32 H W in [0, 1]."""
    return np.asarray(fftconvolve(seeds.astype(np.float32), shape / shape.max(), "same").clip(0, 1), np.float32)


def _clouds(size: tuple[int, int], random: np.random.Generator, rough: float = 0.5) -> np.ndarray:
    """float32 H W in [0, 1]: octaves of smooth noise, the coarsest of three cells, each next one `rough` times it."""
    total, weight, cells = np.zeros(size, np.float32), 1.0, 3
    while weight > 0.02 and cells <= max(3, min(384, *size)):
        grid = Image.fromarray(random.random((cells, cells), np.float32))
        total += weight * np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC))
        weight, cells = weight * rough, cells * 2
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-6), np.float32)
