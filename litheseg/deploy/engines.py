"""One network at work in one runtime: a raw image in, logits or labels out.

An engine is what is left of a network when files, widths and libraries are forgotten: a callable. It may be called by
several threads at once. It does not resize images nor upsample logits; callers do (`litheseg.runtime`), with
`litheseg.data.transforms.resize_image` and `litheseg.models.upsampling.upsample_labels`.

Usage:
    >>> engine = open_engine("exports/street", width=0.5, runtime="openvino", threads=2)
    >>> logits = engine(image)  # uint8 H x W x 3 -> float32 K x h x w
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from litheseg.cost.latency import threads_limited
from litheseg.deploy.bundle import Bundle
from litheseg.deploy.exported import RUNTIMES, Export, load_export
from litheseg.deploy.network import Deployed
from litheseg.errors import DataError, LithesegError

__all__ = ["Engine", "available_runtimes", "bundle_engine", "open_engine", "torch_engine"]


@runtime_checkable
class Engine(Protocol):
    """A network that runs.

    Attributes:
        runtime: one of `litheseg.deploy.exported.RUNTIMES`.
        precision: "fp32", "bf16" or "int8".
        output: "logits" or "labels".
        size: height and width of the images that it takes, in pixels; None for any.
    """

    runtime: str
    precision: str
    output: str
    size: tuple[int, int] | None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Run it.

        Args:
            image: uint8 h x w x 3, RGB, any strides.

        Returns:
            float32 K x h' x w' at the network's own stride (logits), or uint8 h x w (labels); the caller's own.

        Raises:
            DataError: an image of another kind or size.
        """


def available_runtimes() -> tuple[str, ...]:
    """The runtimes whose packages are installed here, in the order of `RUNTIMES`."""
    return tuple(name for name in RUNTIMES if importlib.util.find_spec(name) is not None)


def open_engine(
    export: Export | str | Path,
    *,
    width: float | None = None,
    runtime: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    device: str = "cpu",
) -> Engine:
    """An engine for one network of an export.

    Args:
        export: a loaded one, or its path.
        width: one of the export's; None for the widest.
        runtime: one of `RUNTIMES`; None for one that is installed and takes the export's files.
        precision: "fp32", "bf16" (of an fp32 network) or "int8".
        threads: of the CPU; None for the runtime's own choice.
        device: "cpu", or "cuda" where the runtime has it.

    Raises:
        BundleError: no export, or a damaged one.
        WidthError: a width that it does not have.
        MissingExtraError: a runtime that is not installed.
        LithesegError: a network that it does not have, or that this machine cannot run so.
    """
    opened = export if isinstance(export, Export) else load_export(export)
    raise LithesegError(f"{opened.path}: no runtime")


def torch_engine(
    module: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    channels_last: bool = False,
    precision: str = "fp32",
) -> Engine:
    """An engine of a plain network, without any export.

    Args:
        module: image 1 x 3 x h x w, normalised -> logits (a `SegmentationModel`: at its own stride); it is moved to
            `device`, put into evaluation mode and shared, not copied.
        mean: per RGB channel, of images in [0, 1].
        std: likewise.
        device: "cpu", "cuda", "cuda:1", ...
        threads: of the CPU; None leaves PyTorch's as they are.
        channels_last: run in this memory format.
        precision: "fp32", or "bf16" (autocast) where the device has it.

    Raises:
        LithesegError: a precision or device that is not to be had here.
    """
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network = Deployed(module, mean, std).eval().requires_grad_(False)
    network = network.to(device=torch.device(device), memory_format=memory)  # type: ignore[call-overload]
    return _TorchEngine(network, precision=precision, output="logits", threads=threads, device=device)


def bundle_engine(
    bundle: Bundle,
    width: float,
    runtime: str,
    *,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    threads: int | None = None,
) -> Engine:
    """An engine straight from a bundle: PyTorch runs the network itself, other runtimes a passing export of it.

    Args:
        bundle: a loaded one.
        width: one of its widths.
        runtime: one of `RUNTIMES`.
        precision: "fp32" or "bf16"; int8 needs images, and so an export.
        size: height and width of the images to come; None for any.
        threads: of the CPU; None for the runtime's own choice.

    Raises:
        WidthError: a width that the bundle does not have.
        MissingExtraError: a runtime that is not installed.
        LithesegError: an unknown runtime, or a precision that is not to be had.
    """
    header = bundle.header
    if runtime == "torch":
        return torch_engine(bundle.plain(width), header.mean, header.std, threads=threads, precision=precision)
    raise LithesegError(f"no runtime {runtime}")


class _TorchEngine:
    """A module that takes uint8 1 x h x w x 3."""

    runtime = "torch"

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        *,
        precision: str,
        output: str,
        threads: int | None = None,
        device: str | torch.device = "cpu",
        size: tuple[int, int] | None = None,
        layout: str = "NHWC",
    ) -> None:
        self.precision, self.output, self.size = precision, output, size
        self._network, self._threads, self._device, self._layout = network, threads, torch.device(device), layout

    def __call__(self, image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(_batched(image, self._layout, self.size)).to(self._device)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(threads_limited(self._threads))
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self._device.type, torch.bfloat16))
            return np.asarray(self._network(pixels)[0].cpu().numpy())


def _batched(image: np.ndarray, layout: str, size: tuple[int, int] | None) -> np.ndarray:
    """One image as a network takes it: contiguous, uint8 1 x h x w x 3 or 1 x 3 x h x w."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"an image of {image.dtype} and shape {image.shape}; give uint8 h x w x 3, RGB")
    if size is not None and image.shape[:2] != size:
        raise DataError(
            f"an image of {image.shape[0]}x{image.shape[1]}, where the export takes {size[0]}x{size[1]} only; resize "
            "it, or export for any size (--size dynamic)"
        )
    arranged = image if layout == "NHWC" else image.transpose(2, 0, 1)
    batch = np.ascontiguousarray(arranged)[None]
    return batch if batch.flags.writeable else batch.copy()  # PyTorch warns about read-only arrays
