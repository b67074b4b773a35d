"""`litheseg serve`: segment images over HTTP, with a page to try it."""

from __future__ import annotations

import logging
import math
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from litheseg.bundle.exported import PRECISIONS, RUNTIMES
from litheseg.cli.options import device_option, parse_amount, parse_width
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.server import check_extra
from litheseg.runtime.server.hosts import is_loopback
from litheseg.runtime.server.settings import DEFAULT_TARGET_MS, Settings, read_api_key

if TYPE_CHECKING:
    from litheseg.runtime.server.service import Service

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="a model file, or an export: its folder or one of its networks")
    _address_options(parser)
    width = parser.add_argument_group("width")
    fixed = width.add_mutually_exclusive_group()
    fixed.add_argument("--width", type=parse_width, metavar="W", help="give all requests that name none this width")
    fixed.add_argument(
        "--target-ms",
        type=float,
        default=DEFAULT_TARGET_MS,
        metavar="MS",
        help=f"narrow under load, so that 95%% of answers take less, waiting included [{DEFAULT_TARGET_MS:g}]",
    )
    _limit_options(parser)
    _runtime_options(parser)
    parser.epilog = """examples:
  litheseg serve model.safetensors                         then open http://127.0.0.1:8000
  litheseg serve model.safetensors --target-ms 80          narrower networks while more clients ask than it can serve
  litheseg serve model.safetensors --width 0.5             always this width; when the queue is full, 503
  litheseg serve exports/street --runtime openvino --precision int8
  litheseg serve model.safetensors --host 0.0.0.0 --api-key-file key.txt
  litheseg serve model.safetensors --allow-host seg.example.com       behind a proxy that has this name
  curl -F image=@street.jpg "http://127.0.0.1:8000/v1/segment/mask?budget_ms=50" -o mask.png
"""


def _address_options(parser: ArgumentParser) -> None:
    address = parser.add_argument_group("address")
    address.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all [127.0.0.1]")
    address.add_argument("--port", type=_port, default=8000, help="0 for a free one [8000]")
    address.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients reach the server by, such as seg.example.com behind a proxy, or a site whose pages "
        "may send images here; may be given several times; '*' for any, where nobody can reach the server but those "
        "who may use it [localhost and the address of --host]",
    )
    address.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="a file that holds the key which clients send as 'Authorization: Bearer KEY' [variable LITHESEG_API_KEY]",
    )


def _limit_options(parser: ArgumentParser) -> None:
    limits = parser.add_argument_group("limits")
    limits.add_argument("--workers", type=int, metavar="N", help="images at work at once [the number of cores]")
    limits.add_argument("--queue", type=int, default=Settings.queue, metavar="N", help="requests that may wait [16]")
    limits.add_argument(
        "--max-upload",
        type=parse_amount,
        default=Settings.max_upload,
        metavar="BYTES",
        help="such as 500kB or 20MB [20MB]",
    )
    limits.add_argument(
        "--max-pixels",
        type=parse_amount,
        default=Settings.max_pixels,
        metavar="N",
        help="of an image, such as 25M [25M]",
    )
    limits.add_argument(
        "--timeout", type=float, default=Settings.timeout, metavar="S", help="seconds from upload to answer [30]"
    )
    limits.add_argument(
        "--upload-timeout",
        type=float,
        default=Settings.upload_timeout,
        metavar="S",
        help="seconds an upload may take [30]",
    )
    limits.add_argument("--grace", type=float, default=30.0, metavar="S", help="seconds to finish after SIGTERM [30]")


def _runtime_options(parser: ArgumentParser) -> None:
    parser.add_argument("--runtime", choices=RUNTIMES, help="what runs the network [torch, or what fits the export]")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network [fp32 if there is one]")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU for each image [1]")
    device_option(parser)


def run(args: Namespace) -> None:
    """Serve until it is told to stop."""
    check_extra()
    # Only now: these modules need the packages that were just checked.
    from litheseg.runtime.server.running import run_until_stopped
    from litheseg.runtime.server.service import Service

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("litheseg").setLevel(logging.INFO)
    settings = _settings(args)
    _warn_if_open(args.host, settings)
    how = {name: getattr(args, name) for name in ("device", "runtime", "precision", "threads")}
    service = Service(Predictor(args.model, **how), settings, name=_name(Path(args.model)))
    run_until_stopped(service, args.host, args.port, grace=args.grace, announce=partial(_announce, service))


def _settings(args: Namespace) -> Settings:
    names = ("width", "target_ms", "queue", "max_upload", "max_pixels", "timeout", "upload_timeout")
    given = {name: getattr(args, name) for name in names}
    if args.workers is not None:
        given["workers"] = args.workers
    return Settings(**given, allow_hosts=tuple(args.allow_host), api_key=read_api_key(args.api_key_file))


def _name(path: Path) -> str:
    """Runs all call their file model.safetensors: there the folder says more."""
    path = path.expanduser().resolve()
    return path.parent.name if path.stem == "model" and path.parent.name else path.stem


def _warn_if_open(host: str, settings: Settings) -> None:
    if settings.api_key is None and not is_loopback(host):
        print(
            f"warning: anyone who reaches {host} can use this server; set --api-key-file, and put a proxy with TLS "
            "in front of it",
            file=sys.stderr,
        )


def _announce(service: Service, url: str) -> None:
    pace, widths, (height, width) = service.pace, service.pace.widths, service.sample_size
    within = f"{pace.target_ms:g} ms"
    timings = {width: timing.p50 for width in widths if (timing := pace.timing(width))}
    holds = {width: held for width in widths if (held := service.capacity(width))}
    start = f"{pace.width:g}" if pace.fixed else f"{pace.width:g} to begin with, for 95% of answers within {within}"
    print(f"width    {start}")
    print("ms      ", ", ".join(f"{width:g}: {ms:.0f}" for width, ms in timings.items()))
    print(
        "clients ", ", ".join(f"{width:g}: {held.clients}" for width, held in holds.items()), f"at once within {within}"
    )
    rates = ", ".join(f"{width:g}: {held.per_second:.0f}" for width, held in holds.items())
    print(f"images   {rates} a second, of {height}x{width} pixels, with so many clients")
    print(f"page     {url}\napi      {url}/openapi.json\nmetrics  {url}/metrics", flush=True)
    _warn_if_too_slow(service)


def _warn_if_too_slow(service: Service) -> None:
    """Where even the narrowest width misses the target once all workers are busy."""
    width, workers = service.pace.widths[-1], service.workers.workers
    held, target = service.capacity(width), service.pace.target_ms
    if service.pace.fixed or held is None or held.clients >= workers:
        return
    enough = math.ceil(held.enough_ms)
    at_once, fewer = (f" with {workers} images at once", f"--workers {held.clients}, ") if held.clients else ("", "")
    print(
        f"warning: the target of {target:g} ms cannot be held: even width {width:g} takes {enough} ms{at_once}; "
        f"give {fewer}--target-ms {enough} or more, or an export in int8 or for smaller images",
        file=sys.stderr,
        flush=True,
    )


def _port(text: str) -> int:
    if not (text.isdigit() and int(text) < 1 << 16):
        raise ArgumentTypeError(f"'{text}' is no port; give a number from 0 to 65535")
    return int(text)
