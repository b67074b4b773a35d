"""Images from strangers: what is decoded is right, and everything else is refused by name."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_server import encoded, picture

from litheseg.serving.images import decode_image
from litheseg.serving.problems import Problem


def refused(data: bytes, max_pixels: int = 1_000_000) -> str:
    with pytest.raises(Problem) as caught:
        decode_image(data, max_pixels)
    return caught.value.code


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP"])
def test_every_lossless_kind_is_decoded(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(decode_image(encoded(picture(), format, **options), 10_000), picture())


def test_a_cmyk_jpeg_has_the_colours_that_were_meant() -> None:
    smooth = np.zeros((32, 64, 3), np.uint8)
    smooth[:, :32], smooth[:, 32:] = (200, 40, 90), (30, 160, 220)
    data = encoded(Image.fromarray(smooth).convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert Image.open(BytesIO(data)).mode == "CMYK"
    assert np.abs(decode_image(data, 10_000)[:, [5, 50]].astype(int) - smooth[:, [5, 50]]).max() < 12


def test_orientation_depth_and_transparency() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode_image(encoded(np.rot90(picture()), exif=exif), 10_000), picture())
    deep = Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)
    assert refused(encoded(deep)) == "damaged-image"
    clear = np.dstack([picture(), np.zeros((24, 40), np.uint8)])
    assert decode_image(encoded(clear), 10_000).max() == 0


def test_one_pixel() -> None:
    assert decode_image(encoded(np.full((1, 1, 3), 7, np.uint8)), 1).tolist() == [[[7, 7, 7]]]


def test_pixels_are_counted_by_the_header() -> None:
    assert refused(png(50_000, 50_000)) == "too-many-pixels"  # beyond Pillow's own limit
    assert refused(png(8_000, 8_000)) == "too-many-pixels"  # below it
    assert refused(encoded(picture()), max_pixels=24 * 40 - 1) == "too-many-pixels"
    assert decode_image(encoded(picture()), 24 * 40).shape == (24, 40, 3)


def test_a_header_that_promises_fewer_pixels_than_there_are() -> None:
    bomb = png(4, 4, bytes(50_000_000))
    assert len(bomb) < 100_000
    assert decode_image(bomb, 1000).shape == (4, 4, 3)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames(format: str) -> None:
    frames = [Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())]
    assert refused(encoded(frames[0], format, save_all=True, append_images=frames[1:])) == "animated-image"


def test_a_telephones_jpeg_with_a_preview_is_one_image() -> None:
    frames = [Image.fromarray(picture(48, 80)), Image.fromarray(picture())]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert decode_image(data, 10_000).shape == (48, 80, 3)


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.7", b"<svg/>", b"PK\x03\x04", bytes(1000)])
def test_no_images(data: bytes) -> None:
    assert refused(data) == "not-an-image"


def test_floating_point_pixels() -> None:
    assert refused(encoded(Image.new("F", (4, 4)), "TIFF")) == "damaged-image"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_and_damaged_files_never_escape(format: str) -> None:
    rng = np.random.default_rng(0)
    whole = encoded(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), format)
    half = refused(whole[: len(whole) // 2])
    assert half in ("damaged-image", "not-an-image")
    for _ in range(60):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(256)
        try:
            decode_image(bytes(damaged), 1_000_000)
        except Problem as problem:
            assert problem.status in (413, 415, 422)
