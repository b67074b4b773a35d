"""`litheseg serve`: segment images over HTTP, with a page to try it."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from inspect import signature

from litheseg.bundle.exported import PRECISIONS, RUNTIMES
from litheseg.cli.options import device_option, parse_amount, parse_width
from litheseg.serving import serve
from litheseg.serving.settings import ServerSettings

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
        default=ServerSettings.target_ms,
        metavar="MS",
        help=f"narrow under load, so that 95%% of answers take less, waiting included [{ServerSettings.target_ms:g}]",
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
    limits.add_argument(
        "--queue", type=int, default=ServerSettings.queue, metavar="N", help="requests that may wait [16]"
    )
    limits.add_argument(
        "--max-upload",
        type=parse_amount,
        default=ServerSettings.max_upload,
        metavar="BYTES",
        help="such as 500kB or 20MB [20MB]",
    )
    limits.add_argument(
        "--max-pixels",
        type=parse_amount,
        default=ServerSettings.max_pixels,
        metavar="N",
        help="of an image, such as 25M [25M]",
    )
    limits.add_argument(
        "--timeout", type=float, default=ServerSettings.timeout, metavar="S", help="seconds from upload to answer [30]"
    )
    limits.add_argument(
        "--upload-timeout",
        type=float,
        default=ServerSettings.upload_timeout,
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
    serve(**{name: value for name, value in vars(args).items() if name in signature(serve).parameters})


def _port(text: str) -> int:
    if not (text.isdigit() and int(text) < 1 << 16):
        raise ArgumentTypeError(f"'{text}' is no port; give a number from 0 to 65535")
    return int(text)
