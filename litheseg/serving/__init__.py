"""Segmentation over HTTP, with a page to try a model: what `litheseg serve` runs. Needs the extra `serve`.

Usage:
    >>> serve("model.safetensors", port=8000, target_ms=80)  # until SIGTERM or Ctrl-C
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from litheseg.bundle.names import is_named
from litheseg.bundle.targets import PrecisionName, RuntimeName
from litheseg.errors import LithesegError, MissingExtraError
from litheseg.machine import cores
from litheseg.runtime.predictor import Predictor
from litheseg.serving.hosts import is_loopback
from litheseg.serving.settings import ServerSettings, read_api_key
from litheseg.values import Bytes, Quantity, Width

if TYPE_CHECKING:
    from litheseg.serving.service import Service

__all__ = ["announce", "check_extra", "serve"]

_MODULES = ("fastapi", "prometheus_client", "python_multipart", "uvicorn")  # of the extra


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: Sequence[str] = (),
    api_key_file: str | Path | None = None,
    width: Width | None = None,
    target_ms: float = ServerSettings.target_ms,
    workers: int | None = None,
    queue: int = ServerSettings.queue,
    max_upload: Bytes = ServerSettings.max_upload,
    max_pixels: Quantity = ServerSettings.max_pixels,
    timeout: float = ServerSettings.timeout,
    upload_timeout: float = ServerSettings.upload_timeout,
    grace: float = 30.0,
    runtime: RuntimeName | None = None,
    precision: PrecisionName | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; prints the address and what each width can hold when it is ready.

    Args:
        model: a model file, or an export: its folder or one of its networks.
        host: address to listen on; 0.0.0.0 for all.
        port: to listen on; 0 for a free one.
        allow_host: names that clients reach the server by, such as seg.example.com behind a proxy, or sites whose
            pages may send images here; "*" for any. Loopback names and `host` are always allowed.
        api_key_file: holds the key that clients send as 'Authorization: Bearer KEY'; None for the environment variable
            LITHESEG_API_KEY, or no key.
        width: of all requests that name none; None to choose it by load.
        target_ms: milliseconds that 95% of the answers are to stay below, waiting included, by narrowing under load.
        workers: images at work at once; None for the number of cores.
        queue: requests that may wait.
        max_upload: bytes of one upload.
        max_pixels: of one image, width times height.
        timeout: seconds from a received upload to its answer.
        upload_timeout: seconds that an upload may take.
        grace: seconds to finish requests after SIGTERM.
        runtime: what runs the network; None for torch, or what fits the export.
        precision: of the network; None for fp32 if there is one.
        threads: of the CPU for each image.
        device: cpu, cuda, cuda:1, ...

    Raises:
        MissingExtraError: a package of the extra `serve` is not installed.
        WidthError: the model does not have the width.
        LithesegError: a value out of range, an address that cannot be listened on, or a model that cannot be loaded.
    """
    check_extra()
    # Only now: this module needs the packages that were just checked.
    from litheseg.serving.running import run_until_stopped
    from litheseg.serving.service import Service

    if not 0 <= port < 1 << 16:
        raise LithesegError(f"'{port}' is no port; give a number from 0 to 65535")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("litheseg").setLevel(logging.INFO)
    settings = ServerSettings(
        width=width,
        target_ms=target_ms,
        queue=queue,
        workers=cores() if workers is None else workers,
        max_upload=max_upload,
        max_pixels=max_pixels,
        timeout=timeout,
        upload_timeout=upload_timeout,
        api_key=read_api_key(api_key_file),
        allow_hosts=tuple(allow_host),
    )
    if settings.api_key is None and not is_loopback(host):
        _warn(f"anyone who reaches {host} can use this server; set --api-key-file, and put a proxy with TLS before it")
    predictor = Predictor(model, device=device, runtime=runtime, precision=precision, threads=threads)
    service = Service(predictor, settings, _display_name(model))
    run_until_stopped(service, host, port, grace=grace, announce=partial(announce, service))


def _display_name(model: str | Path) -> str:
    if is_named(model):
        return str(model)
    path = Path(model).expanduser().resolve()
    # Training calls every model file model.safetensors: there the folder says more.
    return path.parent.name if path.stem == "model" and path.parent.name else path.stem


def check_extra() -> None:
    """Make sure that the packages behind the server are there.

    Raises:
        MissingExtraError: naming the one that is not.
    """
    for module in _MODULES:
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(module.replace("_", "-"), "serve", "the server") from error


def announce(service: Service, url: str) -> None:
    """Print the address, what each width takes and can serve, and a warning where the target cannot be held."""
    chooser, widths, (height, width) = service.chooser, service.chooser.widths, service.sample_size
    target, workers = f"{chooser.target_ms:g} ms", service.workers.workers
    timings = {width: timing.p50 for width in widths if (timing := chooser.timing(width))}
    loads = {width: load for width in widths if (load := service.sustained(width))}
    to_begin_with = "" if chooser.fixed else f" to begin with, for 95% of answers within {target}"
    print(f"width    {chooser.width:g}{to_begin_with}")
    print("ms      ", ", ".join(f"{width:g}: {ms:.0f}" for width, ms in timings.items()))
    clients = ", ".join(f"{width:g}: {load.clients}" for width, load in loads.items())
    print(f"clients  {clients} at once within {target}")
    rates = ", ".join(f"{width:g}: {load.per_second:.0f}" for width, load in loads.items())
    print(f"images   {rates} a second, of {height}x{width} pixels, with so many clients")
    print(f"page     {url}\napi      {url}/openapi.json\nmetrics  {url}/metrics", flush=True)
    narrowest = loads.get(widths[-1])
    if chooser.fixed or narrowest is None or narrowest.clients >= workers:
        return
    enough, at_once, fewer = math.ceil(narrowest.enough_ms), "", ""
    if narrowest.clients:
        at_once, fewer = f" with {workers} images at once", f"--workers {narrowest.clients}, "
    _warn(
        f"the target of {target} cannot be held: even width {widths[-1]:g} takes {enough} ms{at_once}; "
        f"give {fewer}--target-ms {enough} or more, or an export in int8 or for smaller images"
    )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
