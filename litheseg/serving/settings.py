"""What a server allows: sizes, times, how much may wait, and the key that clients send.

Usage:
    >>> ServerSettings(max_upload=5_000_000, target_ms=100).queue
    16
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from litheseg.errors import LithesegError
from litheseg.machine import cores

__all__ = ["ServerSettings", "read_api_key"]

_SHORTEST_KEY = 16  # characters
_KEY_VARIABLE = "LITHESEG_API_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """Limits of one server; they mean what the arguments of the same names mean to `serve`.

    Attributes:
        api_key: what clients have to send; None for an open server.
        allow_hosts: names that the server answers to, besides its own (see `hosts`); "*" for all.

    Raises:
        LithesegError: a value out of range.
    """

    width: float | None = None
    target_ms: float = 200.0
    queue: int = 16
    workers: int = field(default_factory=cores)
    max_upload: int = 20_000_000
    max_pixels: int = 25_000_000
    timeout: float = 30.0
    upload_timeout: float = 30.0
    api_key: str | None = field(default=None, repr=False)
    allow_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("queue", "workers", "max_upload", "max_pixels"):
            if getattr(self, name) < 1:
                raise LithesegError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give 1 or more")
        for name in ("target_ms", "timeout", "upload_timeout"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise LithesegError(f"--{name.replace('_', '-')} {value:g}: give a positive number")
        if self.api_key is not None and len(self.api_key) < _SHORTEST_KEY:
            raise LithesegError(f"an API key of {len(self.api_key)} characters; use {_SHORTEST_KEY} or more")


def read_api_key(path: str | Path | None) -> str | None:
    """The key from a file, or else from the environment variable LITHESEG_API_KEY; None where there is neither.

    Raises:
        LithesegError: a file that cannot be read, or a key that is empty or not printable ASCII.
    """
    where = f"the environment variable {_KEY_VARIABLE}" if path is None else str(path)
    try:
        key = os.environ.get(_KEY_VARIABLE) if path is None else Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LithesegError(f"cannot read the API key from {path} ({error}); give a text file that holds it") from error
    if key is None:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise LithesegError(f"the API key in {where} is empty or not plain ASCII; make one with `openssl rand -hex 32`")
    return key
