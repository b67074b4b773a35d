"""Which names a server answers to: without this, any page in a browser could use a server on the same machine.

A page whose name an attacker points at 127.0.0.1 (DNS rebinding) sends its own name as `Host`; a page that posts to
another site sends its own address as `Origin`. Both are refused. Numeric addresses cannot be rebound. What comes
without an `Origin`, as from curl, comes from no page.

Usage:
    >>> hosts = Hosts("127.0.0.1", ["seg.example.com"])
    >>> hosts.check("POST", host="evil.example", origin=None)
    Traceback (most recent call last):
    litheseg.serving.problems.Problem: this server does not answer to the name 'evil.example'; ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from litheseg.errors import LithesegError
from litheseg.serving.problems import Problem

__all__ = ["Hosts", "is_loopback"]

_ANY = "*"  # allows every name
_READING = ("GET", "HEAD", "OPTIONS")
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.%]+\]|[^\[\]:/@\s]+)(:(?P<port>\d{0,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


class Hosts:
    """The names of one server.

    Args:
        bound: the address that it listens on: loopback's names are answered to always, an address or a name by itself,
            and every numeric address where the server listens on all of them.
        allowed: further names, without scheme and port; "*" for all.

    Raises:
        LithesegError: an allowed name that is none.
    """

    def __init__(self, bound: str = "127.0.0.1", allowed: Iterable[str] = ()) -> None:
        self._allowed = {_plain(name) for name in allowed}
        for name in self._allowed - {_ANY}:
            if not (_NAME.fullmatch(name) or _address(name)):
                raise LithesegError(
                    f"--allow-host {name!r} is no host name; give one such as seg.example.com, without scheme, port "
                    f"and path, or '{_ANY}' for any"
                )
        self._bound = _plain(bound)
        address = _address(self._bound)
        self._any_address = bound == "" or (address is not None and address.is_unspecified)

    def check(self, method: str, *, host: str | None, origin: str | None) -> None:
        """Refuse a request that is addressed to another name, or that another site's page sends to change something.

        Host and origin are the headers of these names; None where there are none, as from clients that are no browsers.

        Raises:
            Problem: "unknown-host" or "foreign-origin".
        """
        if _ANY in self._allowed:
            return
        match = _AUTHORITY.fullmatch((host or "").strip())
        own, port = (_plain(match["host"]), int(match["port"] or 0)) if match else ("", 0)
        if host is not None and not self._answers_to(own):
            name = _printable(match["host"] if match else host)
            detail = f"this server does not answer to the name '{name}'; start it with --allow-host {name} if it should"
            raise Problem("unknown-host", detail)
        if origin is not None and method not in _READING and not self._is_own(origin, own, port):
            detail = (
                f"a page of '{_printable(origin)}' may not send images here; start the server with --allow-host and "
                f"the page's name, or '{_ANY}' for any"
            )
            raise Problem("foreign-origin", detail)

    def _answers_to(self, name: str) -> bool:
        if name and (name in self._allowed or name == self._bound or is_loopback(name)):
            return True
        return self._any_address and _address(name) is not None

    def _is_own(self, origin: str, own: str, own_port: int) -> bool:
        try:
            parts = urlsplit(origin.strip())
            name, port = _plain(parts.hostname or ""), parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            return False
        # The scheme is not compared: a proxy may have taken TLS away.
        same = bool(name) and (name, port) == (own, own_port or _PORTS.get(parts.scheme))
        return same or name in self._allowed


def is_loopback(name: str) -> bool:
    """Whether a name or address means this machine and no other can reach it."""
    address = _address(_plain(name))
    return address.is_loopback if address else _plain(name) == "localhost"


def _plain(name: str) -> str:
    """As names are compared: lower case, ASCII, without brackets and the last dot."""
    name = name.strip().lower().strip("[]").removesuffix(".")
    with suppress(UnicodeError):
        name = name.encode("idna").decode("ascii")
    address = _address(name)
    return str(address) if address else name


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _printable(value: str) -> str:
    return re.sub(r"[^\x21-\x7e]", "?", value[:120])
