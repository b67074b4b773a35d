"""The page: a handful of static files out of the package, and nothing from elsewhere.

The content security policy lets the page load its own files and talk to its own server, and no more. The files know the
API's paths; the server knows nothing of what they do.

Usage:
    >>> app.include_router(site)
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from fastapi import APIRouter, Response

from litheseg.serving.problems import Problem

__all__ = ["CONTENT_SECURITY_POLICY", "site"]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}

site = APIRouter(include_in_schema=False)


@site.get("/")
async def index() -> Response:
    """The page itself."""
    return await page_file("index.html")


@site.get("/page/{name}")
async def page_file(name: str) -> Response:
    """A file that the page asks for."""
    content = _files().get(name)
    if content is None:
        raise Problem("not-found", f"the page has no file '{name[:80]}'")
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=_HEADERS)


@lru_cache(maxsize=1)
def _files() -> dict[str, bytes]:
    folder = files("litheseg.serving") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}
