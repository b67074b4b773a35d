"""Refusals of requests. Each has a code, a status and a remedy.

They travel as JSON problem details (RFC 9457, `application/problem+json`). `PROBLEMS` lists all of them, and the
OpenAPI document is made from it, so that a code that can be sent is a code that is documented.

Usage:
    >>> raise Problem("busy", "16 requests wait already; try again in 2 s", retry_after=2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from litheseg.errors import LithesegError

__all__ = ["PROBLEMS", "PROBLEM_TYPE", "Problem", "documented"]

PROBLEM_TYPE = "application/problem+json"

PROBLEMS: Mapping[str, tuple[int, str]] = {
    "malformed-upload": (400, "The upload is not one image in a multipart form"),
    "unauthorised": (401, "An API key is needed"),
    "foreign-origin": (403, "Another site's page may not do this"),
    "not-found": (404, "There is nothing at this path"),
    "method-not-allowed": (405, "The path takes other methods"),
    "upload-too-slow": (408, "The upload took too long"),
    "upload-too-large": (413, "The upload has too many bytes"),
    "too-many-pixels": (413, "The image has too many pixels"),
    "not-a-form": (415, "The body is not a multipart form"),
    "not-an-image": (415, "The file is not an image of a known kind"),
    "unknown-host": (421, "The server does not answer to this name"),
    "animated-image": (422, "The image has several frames"),
    "damaged-image": (422, "The image cannot be decoded"),
    "invalid-parameter": (422, "A parameter is out of range"),
    "mask-too-detailed": (422, "The mask is too detailed for polygons"),
    "internal-error": (500, "Something unforeseen went wrong"),
    "busy": (503, "Too many requests wait"),
    "starting": (503, "The server is not ready yet"),
    "stopping": (503, "The server is shutting down"),
    "too-slow": (503, "The time limit passed"),
}
"""HTTP status and title by code; a title never changes."""


class Problem(LithesegError):
    """A request that is refused.

    Args:
        code: a key of `PROBLEMS`.
        detail: what was wrong with this request, with the value and the remedy.
        retry_after: seconds after which the same request may succeed; None where it will not.
        errors: one entry per parameter, for "invalid-parameter": ``{"where": ..., "message": ...}``.
        headers: further ones of the response.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after: int | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.status = code, PROBLEMS[code][0]
        waiting = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.headers = {**waiting, **(headers or {})}
        self.content: dict[str, Any] = {
            "type": f"urn:litheseg:{code}",
            "title": PROBLEMS[code][1],
            "status": self.status,
            "detail": detail,
        }
        if errors:
            self.content["errors"] = [dict(error) for error in errors]


def documented(codes: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an OpenAPI operation that can end in these problems."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = PROBLEMS[code]
        if status not in responses:
            content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
            responses[status] = {"description": f"{HTTPStatus(status).phrase}.", "content": content}
        responses[status]["description"] += f" `{code}`: {title}."
    if HTTPStatus.SERVICE_UNAVAILABLE in responses:
        header = {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}
        responses[HTTPStatus.SERVICE_UNAVAILABLE]["headers"] = {"Retry-After": header}
    return responses
