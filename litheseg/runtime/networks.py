"""The networks of a model, one per width, each made when it is first asked for and then kept: what a `Predictor` runs.

There are two kinds. `TorchNetworks` runs a bundle in PyTorch, on any device, and is open to those who want more than
labels. `EngineNetworks` runs exports, and bundles in other runtimes, through `litheseg.deploy.engines`. Several threads
may ask at once. It does not know images of other kinds than arrays, nor what becomes of the logits.

Usage:
    >>> networks = TorchNetworks(load_bundle("model.safetensors"))
    >>> logits = networks.run(image, 0.5, (360, 480))  # uint8 H W 3 -> 1 x K x h x w
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from litheseg.bundle.exported import PRECISIONS, RUNTIMES, Export, check_choice
from litheseg.bundle.header import BundleHeader
from litheseg.cost.latency import threads_limited
from litheseg.data.transforms import normalise, resize_image
from litheseg.deploy.engines import Engine, bundle_engine, open_engine, torch_engine
from litheseg.deploy.network import fold_batch_norms
from litheseg.errors import LithesegError
from litheseg.models.base import SegmentationModel
from litheseg.models.bundle import Bundle
from litheseg.nn import extract

__all__ = ["EngineNetworks", "Networks", "TorchNetworks", "bundle_networks", "export_networks", "is_export"]

Made = TypeVar("Made")
Size = tuple[int, int]


class Networks(Protocol):
    """What a predictor asks of a model.

    Attributes:
        header: classes, normalisation, training size.
        runtime: one of `litheseg.bundle.exported.RUNTIMES`.
        widths: widest first.
        size: of the images that the networks take, in pixels; None for any.
    """

    header: BundleHeader
    runtime: str
    widths: tuple[float, ...]
    size: Size | None

    def check_width(self, width: float) -> float:
        """`width` if there is a network of it.

        Raises:
            WidthError: there is none; names those that there are.
        """

    def load(self, width: float) -> None:
        """Make the network of a width, unless it is there."""

    def run(self, image: np.ndarray, width: float, size: Size | None) -> np.ndarray | Tensor:
        """uint8 H W 3, resized to `size` (None: as it is) -> logits, [1 x] K x h x w, or labels, uint8 h x w."""


class _Kept(Generic[Made]):
    """One thing per width, made once even if two threads ask for it; a lookup waits for nothing."""

    def __init__(self, make: Callable[[float], Made]) -> None:
        self._make, self._made, self._lock = make, dict[float, Made](), threading.Lock()

    def __getitem__(self, width: float) -> Made:
        made = self._made.get(width)
        if made is None:
            # Not inference mode: the weights of a module could not be exported later.
            with self._lock, torch.inference_mode(False):
                made = self._made[width] if width in self._made else self._make(width)
                self._made[width] = made
        return made


class TorchNetworks:
    """A bundle in PyTorch, in float32.

    Args:
        bundle: a loaded one.
        device: "cpu", "cuda", ...
        threads: of the CPU; None leaves PyTorch's as they are.
        channels_last: run in this memory format.

    Raises:
        BundleError: as `Bundle.model`.
    """

    runtime = "torch"
    size: Size | None = None

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device = "cpu",
        *,
        threads: int | None = None,
        channels_last: bool = False,
    ) -> None:
        self.header, self.widths, self.check_width = bundle.header, bundle.header.available_widths, bundle.check_width
        self._device, self._threads = torch.device(device), threads
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._elastic = bundle.model()
        self._modules = _Kept(self._extracted)

    def module(self, width: float) -> nn.Module:
        """The plain network of a width, batch norms folded, on the device; shared, not to be changed."""
        return self._modules[width]

    def load(self, width: float) -> None:
        """As in `Networks`."""
        self.module(width)

    def run(self, image: np.ndarray, width: float, size: Size | None) -> Tensor:
        """As in `Networks`: logits, 1 x K x h x w on the device."""
        return self.outputs(image, width, size)["logits"]

    @torch.inference_mode()
    def outputs(self, image: np.ndarray, width: float, size: Size | None) -> dict[str, Tensor]:
        """``logits`` and ``features`` of `SegmentationModel.outputs`, on the device."""
        module = cast(SegmentationModel, self.module(width))
        pixels = _tensor(image, self._device)
        ready = normalise(pixels if size is None else resize_image(pixels, size), self.header.mean, self.header.std)
        with threads_limited(self._threads):
            return module.outputs(ready[None].contiguous(memory_format=self._format))

    def _extracted(self, width: float) -> nn.Module:
        module = extract(self._elastic, width).eval()
        fold_batch_norms(module)
        module.requires_grad_(False)
        return module.to(self._device).to(memory_format=self._format)  # type: ignore[call-overload, no-any-return]


class EngineNetworks:
    """Networks behind engines.

    Args:
        header: of the bundle, or of the one that the export was made from.
        widths: to choose from.
        check_width: says what is wrong with another one.
        make: an engine of a width.
        first: the width that is made at once, so that what is wrong with the runtime is said now.
    """

    def __init__(
        self,
        header: BundleHeader,
        widths: tuple[float, ...],
        check_width: Callable[[float], float],
        make: Callable[[float], Engine],
        first: float,
    ) -> None:
        self.header, self.widths, self.check_width = header, widths, check_width
        self._engines = _Kept(make)
        engine = self._engines[first]
        self.runtime, self.size = engine.runtime, engine.size

    def load(self, width: float) -> None:
        """As in `Networks`."""
        self._engines[width]

    def run(self, image: np.ndarray, width: float, size: Size | None) -> np.ndarray:
        """As in `Networks`."""
        return self._engines[width](image if size is None else _resized(image, size))


def bundle_networks(
    bundle: Bundle,
    width: float | None,
    runtime: str,
    *,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    size: Size | None = None,
    threads: int | None = None,
    channels_last: bool = False,
) -> TorchNetworks | EngineNetworks:
    """Networks of a bundle in any runtime.

    Args:
        bundle: a loaded one.
        width: the first to be used; None for the widest.
        runtime: one of `litheseg.bundle.exported.RUNTIMES`.
        precision: "fp32" or "bf16".
        device: "cpu"; PyTorch has others.
        size: of the images that the networks will see; None for any.
        threads: of the CPU; None for the runtime's own choice.
        channels_last: run in this memory format, in PyTorch.

    Raises:
        WidthError: the bundle does not have the width.
        MissingExtraError: a runtime that is not installed.
        LithesegError: a runtime, precision or device that is not to be had.
    """
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("precision", precision, PRECISIONS)
    first = bundle.header.available_widths[0] if width is None else bundle.check_width(width)
    in_torch = runtime == "torch" and precision != "int8"  # whose absence `bundle_engine` explains
    if in_torch:
        plain = TorchNetworks(bundle, device, threads=threads, channels_last=channels_last)
        if precision == "fp32":
            return plain
    elif torch.device(device).type != "cpu":
        raise LithesegError(f"{runtime} runs bundles on the CPU, not on '{device}'; choose runtime torch or device cpu")

    def make(width: float) -> Engine:
        if not in_torch:
            return bundle_engine(bundle, width, runtime, precision=precision, size=size, threads=threads)
        how: dict[str, Any] = {"threads": threads, "channels_last": channels_last, "precision": precision}
        return torch_engine(plain.module(width), bundle.header.mean, bundle.header.std, device=device, **how)

    return EngineNetworks(bundle.header, bundle.header.available_widths, bundle.check_width, make, first)


def export_networks(
    export: Export,
    width: float | None,
    runtime: str | None,
    *,
    precision: str | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
) -> EngineNetworks:
    """Networks of an export.

    Args:
        export: a loaded one.
        width: the first to be used; None for the widest.
        runtime: None for one that is installed and takes the export's files.
        precision: None for float32 if the export has it.
        device: "cpu", or "cuda" where the runtime has it.
        threads: of the CPU; None for the runtime's own choice.

    Raises:
        WidthError: the export does not have the width.
        MissingExtraError: a runtime that is not installed.
        LithesegError: the export has no such network, or this machine cannot run it.
    """
    stored = {artefact.precision for artefact in export.artefacts}
    precision = precision or ("fp32" if "fp32" in stored else "int8")
    how: dict[str, Any] = {"precision": precision, "threads": threads, "device": str(device)}
    engine = open_engine(export, width=width, runtime=runtime, **how)
    fitting = [
        artefact.width
        for artefact in export.artefacts
        if engine.runtime in artefact.runtimes and artefact.precision == ("int8" if precision == "int8" else "fp32")
    ]
    widths = tuple(sorted(set(fitting), reverse=True))
    first = widths[0] if width is None else width
    ready = {first: engine}  # the first one is open already

    def make(width: float) -> Engine:
        return ready.pop(width, None) or open_engine(export, width=width, runtime=engine.runtime, **how)

    check = partial(_checked_width, export, engine.runtime, precision)
    return EngineNetworks(export.header, widths, check, make, first)


def _checked_width(export: Export, runtime: str, precision: str, width: float) -> float:
    return export.find(width, runtime, precision).width


def _resized(image: np.ndarray, size: Size) -> np.ndarray:
    """uint8 H W 3 to h w 3 as images were resized for training."""
    if image.shape[:2] == size:
        return image
    return np.asarray(resize_image(_tensor(image), size).permute(1, 2, 0).numpy())


def _tensor(image: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """A view 3 x H x W of H x W x 3: torchvision resizes that several times as fast as channel after channel."""
    usable = np.require(
        image, requirements=("C", "W")
    )  # PyTorch knows no negative strides, and warns of read-only arrays
    return torch.from_numpy(usable).to(device).permute(2, 0, 1)


def is_export(path: Path) -> bool:
    """Whether a path is that of an export rather than of a bundle."""
    return path.is_dir() or path.suffix.lower() in (".json", ".onnx", ".pt2", ".xml")
