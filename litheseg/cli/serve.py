"""Segment images over HTTP, with a page to try it.

Examples:
  litheseg serve model.safetensors                         then open http://127.0.0.1:8000
  litheseg serve model.safetensors --target-ms 80          narrower networks while more clients ask than it can serve
  litheseg serve model.safetensors --width 0.5             always this width; when the queue is full, 503
  litheseg serve exports/street --runtime openvino --precision int8
  litheseg serve model.safetensors --host 0.0.0.0 --api-key-file key.txt
  litheseg serve model.safetensors --allow-host seg.example.com       behind a proxy that has this name
  curl -F image=@street.jpg "http://127.0.0.1:8000/v1/segment/mask?budget_ms=50" -o mask.png
"""

from __future__ import annotations

from typing import Any

from litheseg import serving
from litheseg.cli.parsing import command

__all__ = ["serve"]


@command(serving.serve, exclusive=("width", "target_ms"))
def serve(**options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        **options: of `litheseg.serving.serve`.
    """
    serving.serve(**options)
