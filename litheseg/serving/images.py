"""Uploaded images: receive them as a multipart form, decode them, and refuse what cannot be used.

Bytes are counted and timed while they arrive; nothing is written to disk, and nothing beyond the limit is kept in
memory. Pixels are counted by the header, before anything is decompressed: an image of a few kilobytes can hold billions
of them. Also makes the server's own images: a photo to measure with, and a street to try.

Usage:
    >>> data = await read_upload(request, max_bytes=20_000_000, seconds=30)
    >>> image = decode_image(data, max_pixels=25_000_000)  # uint8 H W 3, RGB, upright
"""

from __future__ import annotations

import asyncio
import struct
import warnings
import zlib
from collections.abc import AsyncGenerator
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from litheseg.errors import DataError
from litheseg.masks.opening import TooManyPixelsError, open_image
from litheseg.runtime.rgb import to_rgb
from litheseg.serving.problems import Problem

__all__ = ["FIELD", "decode_image", "draw_street", "read_upload", "sample_photo"]

FIELD = "image"
"""The name of the file in the form."""

_AROUND = 64 << 10  # bytes that a form may have around its file
_FIELDS = 8  # more are not even named in the refusal
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


async def read_upload(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """Receive the form's one file, of at most `max_bytes`, within so many seconds.

    Raises:
        Problem: "not-a-form", "malformed-upload", "upload-too-large" or "upload-too-slow".
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem("not-a-form", f"content type '{kind}'; send multipart/form-data: curl -F {FIELD}=@photo.jpg URL")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes + _AROUND:
        raise _too_large(f"{int(declared)} bytes", max_bytes)
    try:
        async with asyncio.timeout(seconds):
            data = await _read_form(request, max_bytes)
    except TimeoutError as error:
        detail = f"the upload was not complete after {seconds:g} s; send a smaller image"
        raise Problem("upload-too-slow", detail, headers={"Connection": "close"}) from error
    if len(data) > max_bytes:
        raise _too_large(f"{len(data)} bytes", max_bytes)
    return data


async def _read_form(request: Request, max_bytes: int) -> bytes:
    parser = MultiPartParser(request.headers, _counted(request, max_bytes), max_files=1, max_fields=_FIELDS)
    parser.spool_max_size = max_bytes + _AROUND + 1  # never reached, so nothing goes to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem("malformed-upload", f"{error.message} Send one file: curl -F {FIELD}=@photo.jpg URL") from error
    try:
        file = form.get(FIELD)
        if unknown := sorted(set(form) - {FIELD}):
            detail = f"unknown form field '{unknown[0][:80]}'; the form holds '{FIELD}' only, options go into the URL"
            raise Problem("malformed-upload", detail)
        if not isinstance(file, UploadFile):
            raise Problem("malformed-upload", f"the form holds no file '{FIELD}': curl -F {FIELD}=@photo.jpg URL")
        return await file.read()
    finally:
        await form.close()


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes + _AROUND:
            raise _too_large("more bytes than that", max_bytes)
        yield chunk


def _too_large(what: str, max_bytes: int) -> Problem:
    return Problem("upload-too-large", f"{what}; at most {max_bytes} bytes are taken here: make the image smaller")


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode an image file of at most `max_pixels` (width times height): uint8 H W 3, RGB, upright.

    Raises:
        Problem: "not-an-image", "too-many-pixels", "animated-image" or "damaged-image".
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that the limit here decides on, and of damaged metadata that no pixel needs.
            warnings.simplefilter("ignore")
            with open_image(BytesIO(data), max_pixels, _FORMATS) as image:
                # MPO is what Pillow calls a JPEG with a preview behind it, as some telephones write it.
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    detail = f"a {image.format} of several frames; send the one frame that is meant"
                    raise Problem("animated-image", detail)
                return to_rgb(image)
    except UnidentifiedImageError as error:
        raise Problem("not-an-image", "the file is not an image that is known here; send JPEG, PNG or WebP") from error
    except TooManyPixelsError as error:
        raise Problem("too-many-pixels", f"{error} here: make the image smaller") from error
    except DataError as error:  # no RGB of 8 bits
        raise Problem("damaged-image", str(error)) from error
    except _BROKEN as error:
        raise Problem("damaged-image", f"the image is damaged or truncated ({error}); send it again") from error


def sample_photo(size: tuple[int, int]) -> bytes:
    """A JPEG of a height and width that is as much work as a photo: large coloured areas, and some noise."""
    random, (height, width) = np.random.default_rng(0), size
    areas = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(areas.resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + random.integers(-8, 9, (height, width, 1))
    buffer = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def draw_street(seed: int, size: tuple[int, int]) -> bytes:
    """A procedural street scene of a height and width, as PNG."""
    from litheseg.streets import render_street  # which takes a while to import, and few ask for a street

    image, _ = render_street(np.random.default_rng(seed), size)
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
