"""A multipart form -> the bytes of its one image, counted and timed while they arrive.

Nothing is written to disk, and nothing beyond the limit is kept in memory. It does not look at the bytes: see `images`.

Usage:
    >>> data = await read_upload(request, max_bytes=20_000_000, seconds=30)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from litheseg.serving.problems import Problem

__all__ = ["FIELD", "FORM", "read_upload"]

FIELD = "image"
"""The name of the file in the form."""

FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, ..."}},
                "additionalProperties": False,
            },
            "encoding": {FIELD: {"contentType": "image/png, image/jpeg, image/webp"}},
        }
    },
}
"""The form as OpenAPI describes it."""

_FRAME = 64 << 10  # bytes that a form may have around its file
_FIELDS = 8  # more are not even named in the refusal


async def read_upload(request: Request, *, max_bytes: int, seconds: float) -> bytes:
    """Receive the file.

    Args:
        request: with its body not yet read.
        max_bytes: of the file.
        seconds: until all of it must be here.

    Raises:
        Problem: "not-a-form", "malformed-upload", "upload-too-large" or "upload-too-slow".
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem("not-a-form", f"content type '{kind}'; send multipart/form-data: curl -F {FIELD}=@photo.jpg URL")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes + _FRAME:
        raise _too_large(f"{int(declared)} bytes", max_bytes)
    try:
        async with asyncio.timeout(seconds):
            return await _parsed(request, max_bytes)
    except TimeoutError as error:
        detail = f"the upload was not complete after {seconds:g} s; send a smaller image"
        raise Problem("upload-too-slow", detail, headers={"Connection": "close"}) from error


async def _parsed(request: Request, max_bytes: int) -> bytes:
    parser = MultiPartParser(request.headers, _counted(request, max_bytes), max_files=1, max_fields=_FIELDS)
    parser.spool_max_size = max_bytes + _FRAME + 1  # never reached, so nothing goes to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem("malformed-upload", f"{error.message} Send one file: curl -F {FIELD}=@photo.jpg URL") from error
    try:
        data = await _only_file(form).read()
    finally:
        await form.close()
    if len(data) > max_bytes:
        raise _too_large(f"{len(data)} bytes", max_bytes)
    return data


def _only_file(form: FormData) -> UploadFile:
    unknown = sorted(set(form) - {FIELD})
    if unknown:
        detail = f"unknown form field '{unknown[0][:80]}'; the form holds '{FIELD}' only, options go into the URL"
        raise Problem("malformed-upload", detail)
    file = form.get(FIELD)
    if not isinstance(file, UploadFile):
        raise Problem("malformed-upload", f"the form holds no file '{FIELD}': curl -F {FIELD}=@photo.jpg URL")
    return file


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes + _FRAME:
            raise _too_large("more bytes than that", max_bytes)
        yield chunk


def _too_large(what: str, max_bytes: int) -> Problem:
    return Problem("upload-too-large", f"{what}; at most {max_bytes} bytes are taken here: make the image smaller")
