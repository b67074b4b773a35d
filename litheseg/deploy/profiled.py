"""A model file, or a module, made ready for `litheseg.runtime.profiling`: its widths counted, its engines opened.

Usage:
    >>> profiled("model.safetensors", widths=(1, 0.6), size=None).counted[0.6]["macs"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from litheseg.cost.widths import input_size, plain_models, width_costs, with_widths
from litheseg.deploy.torch_engine import ModuleEngine, open_model
from litheseg.errors import LithesegError
from litheseg.masks.image_format import ImageFormat
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.nn.watching import image_channels
from litheseg.runtime.engines import Engine
from litheseg.runtime.profiling import Profiled

__all__ = ["profiled"]


def profiled(
    model: Bundle | nn.Module | str | Path,
    widths: Sequence[float] | None,
    size: tuple[int, int] | None,
    *,
    threads: int | None = None,
    device: str = "cpu",
    channels_last: bool = False,
) -> Profiled:
    """Count a model at every width, and say how each is opened; arguments and errors as of `profile`.

    The engines of a module take images of 8 bits; that changes no time.
    """
    model = load_bundle(model) if isinstance(model, (str, Path)) else model
    size = input_size(model, size)
    costs = width_costs(model, widths, size)
    chosen = tuple(cost.width for cost in costs)
    subject = with_widths(model, chosen) if isinstance(model, Bundle) else model

    def opened(width: float, runtime: str, precision: str) -> Engine:
        how: dict[str, Any] = {"precision": precision, "threads": threads, "device": device}
        how["channels_last"] = channels_last
        if isinstance(subject, Bundle):
            return open_model(subject, width, runtime=runtime or None, size=size, **how).engine(width)
        if runtime not in ("", "torch"):
            raise LithesegError(f"a module runs in PyTorch, not in {runtime}; save it with `save_bundle` first")
        return ModuleEngine(plain_models(subject, [width])[width], ImageFormat(image_channels(subject)), **how)

    counted = {cost.width: {k: v for k, v in asdict(cost).items() if k != "width"} for cost in costs}
    return Profiled(chosen, size, opened, counted)
