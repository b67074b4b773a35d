"""What a request can come to, other than an answer: every refusal has a code, a status and a remedy.

Refusals travel as JSON problem details (RFC 9457, `application/problem+json`). `PROBLEMS` lists all of them, and the
OpenAPI document is made from it, so that a code that can be sent is a code that is documented. It knows no web
framework.

Usage:
    >>> raise Problem("busy", "16 requests wait already; try again in 2 s", retry_after=2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from litheseg.errors import LithesegError

__all__ = ["PROBLEMS", "PROBLEM_TYPE", "Problem", "ProblemKind", "documented", "problem_for_status"]

PROBLEM_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemKind:
    """A sort of refusal: HTTP status, and a title that never changes."""

    status: int
    title: str


PROBLEMS: Mapping[str, ProblemKind] = {
    "malformed-upload": ProblemKind(400, "The upload is not one image in a multipart form"),
    "unauthorised": ProblemKind(401, "An API key is needed"),
    "foreign-origin": ProblemKind(403, "Another site's page may not do this"),
    "not-found": ProblemKind(404, "There is nothing at this path"),
    "method-not-allowed": ProblemKind(405, "The path takes other methods"),
    "upload-too-slow": ProblemKind(408, "The upload took too long"),
    "upload-too-large": ProblemKind(413, "The upload has too many bytes"),
    "too-many-pixels": ProblemKind(413, "The image has too many pixels"),
    "not-a-form": ProblemKind(415, "The body is not a multipart form"),
    "not-an-image": ProblemKind(415, "The file is not an image of a known kind"),
    "unknown-host": ProblemKind(421, "The server does not answer to this name"),
    "animated-image": ProblemKind(422, "The image has several frames"),
    "damaged-image": ProblemKind(422, "The image cannot be decoded"),
    "invalid-parameter": ProblemKind(422, "A parameter is out of range"),
    "mask-too-detailed": ProblemKind(422, "The mask is too detailed for polygons"),
    "internal-error": ProblemKind(500, "Something unforeseen went wrong"),
    "busy": ProblemKind(503, "Too many requests wait"),
    "starting": ProblemKind(503, "The server is not ready yet"),
    "stopping": ProblemKind(503, "The server is shutting down"),
    "too-slow": ProblemKind(503, "The time limit passed"),
}


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
        self.code, self.kind = code, PROBLEMS[code]
        self.detail, self.errors = detail, tuple(errors)
        waiting = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.headers = {**waiting, **(headers or {})}

    def content(self) -> dict[str, Any]:
        """The body of the response."""
        content: dict[str, Any] = {
            "type": f"urn:litheseg:{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
        }
        return content | ({"errors": [dict(error) for error in self.errors]} if self.errors else {})


def problem_for_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    """A problem for what the framework itself refuses (no such path, no such method)."""
    codes = {404: "not-found", 405: "method-not-allowed", 415: "not-a-form"}
    return Problem(codes.get(status, "malformed-upload" if status < 500 else "internal-error"), detail, headers=headers)


def documented(codes: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an OpenAPI operation that can end in these problems."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = PROBLEMS[code]
        entry = responses.setdefault(kind.status, _response(kind.status))
        entry["description"] += f" `{code}`: {kind.title}."
    return responses


def _response(status: int) -> dict[str, Any]:
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    response: dict[str, Any] = {"description": f"{HTTPStatus(status).phrase}.", "content": content}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer"}}
        }
    return response
