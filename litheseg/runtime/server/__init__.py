"""Segmentation over HTTP, with a page: `litheseg serve`.

The parts, from the ground up: `problems` (refusals), `settings` (limits), `images`, `polygons`, `rle`, `encodings`
(bytes to pixels to bytes), `workers` (queue), `pace` (widths), `metrics`, `service` (all of it for one model); then
HTTP: `schemas`, `uploads`, `gate`, `routes`, `site` (the page), `app`, `running`. Needs the extra `serve`.

Usage:
    >>> from litheseg.runtime.server.running import Server
    >>> with Server(create_app(Service(Predictor("model.safetensors"), Settings(), name="model"))) as server:
    ...     print(server.url)
"""

from __future__ import annotations

from importlib import import_module

from litheseg.errors import MissingExtraError

__all__ = ["check_extra"]

_PACKAGES = {"fastapi": "fastapi", "python_multipart": "python-multipart", "prometheus_client": "prometheus-client"}


def check_extra() -> None:
    """Make sure that the packages behind the server are there.

    Raises:
        MissingExtraError: naming the one that is not.
    """
    for module, package in (_PACKAGES | {"uvicorn": "uvicorn"}).items():
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(package, "serve", "the server") from error
