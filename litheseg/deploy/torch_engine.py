"""Networks that run in PyTorch: of a model file, on any device, or of a `torch.export` archive.

`open_model` opens the networks of a model file, in PyTorch or, through a temporary export, in another runtime. The
engine computes as training and evaluation do, makes labels on the same device, and on a GPU takes several images at
once. The box imports this module only to run one of these files (`litheseg.lazy`).

Usage:
    >>> networks = open_model("model.safetensors", device="cuda")
    >>> logits = networks.engine(0.5)(image)  # uint8 h x w x 3 -> float32 K x h' x w'
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.bundle.exported import Artefact, Export, check_choice
from litheseg.bundle.targets import FORMATS, PRECISIONS, RUNTIMES, TARGETS, target_of
from litheseg.data.loading.transforms import channel_constants, normalise
from litheseg.deploy.conversion import Conversion, write_network
from litheseg.deploy.cuda_graphs import RecordedPasses
from litheseg.deploy.network import deployed, fold_batch_norms
from litheseg.deploy.torch_export import load_archive
from litheseg.errors import LithesegError, first_line
from litheseg.masks.image_format import ImageFormat
from litheseg.models.base import SegmentationModel
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.models.inference import has_bfloat16, threads_limited
from litheseg.models.upsampling import upsample_labels
from litheseg.runtime.engines import Engine, open_engine
from litheseg.runtime.networks import Networks

__all__ = ["ModuleEngine", "archive_engine", "bundle_engine", "open_model"]

Size = tuple[int, int]

_MAX_LOGITS = 1 << 26  # values held at once, so that a 24-megapixel photo needs no 2 GB
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TOGETHER = 8  # images in one pass of a GPU, whose time for one is mostly that of starting its kernels


class _TorchEngine(Engine):
    """Runs on a device, and labels there."""

    runtime = "torch"

    def __init__(self, precision: str, device: torch.device, threads: int | None) -> None:
        if precision == "int8":
            raise LithesegError("PyTorch runs no int8 network here; choose --runtime openvino or onnxruntime")
        if precision == "fp16" and device.type != "cuda":
            raise LithesegError(f"fp16 runs on a GPU, not on '{device}' (PyTorch would be slower for it); choose fp32")
        if precision == "bf16" and not has_bfloat16(device):
            raise LithesegError(f"'{device}' has no bf16 here (PyTorch would emulate it, slowly); choose fp32")
        self.precision, self._device, self._threads = precision, device, threads
        self.output, self.size = "logits", None

    def array(self, output: Tensor) -> np.ndarray:
        """See `Engine.array`."""
        return np.asarray(output.cpu().numpy())

    def labels(self, output: Tensor, size: Size, threads: int | None = None) -> np.ndarray:
        """See `Engine.labels`."""
        if output.device.type == "cpu":
            return super().labels(output.numpy(), size, threads)
        return np.asarray(_labels(output, size).cpu().numpy())

    def wait(self) -> None:
        """See `Engine.wait`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _computing(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(threads_limited(self._threads))
        if self.precision in _HALVES:
            # No cache: weights that are cast while a graph is recorded belong to that graph.
            half = torch.autocast(self._device.type, _HALVES[self.precision], cache_enabled=False)
            stack.enter_context(half)
        return stack


class ModuleEngine(_TorchEngine):
    """A plain module as an engine: normalised as in training, nothing converted.

    The module is moved to `device`, put into evaluation mode and shared, not copied; its weights get no gradients.

    Args:
        module: image N x C x h x w, normalised -> logits; a `SegmentationModel` gives them at its own stride.
        images: what it takes.
        device: where it runs.
        threads: of the CPU; None leaves PyTorch's as they are.
        channels_last: run in this memory format.
        precision: "fp32", or "bf16" or, on a GPU, "fp16" (autocast).

    Raises:
        LithesegError: a precision or device that is not to be had here.
    """

    def __init__(
        self,
        module: nn.Module,
        images: ImageFormat,
        *,
        device: str = "cpu",
        threads: int | None = None,
        channels_last: bool = False,
        precision: str = "fp32",
    ) -> None:
        super().__init__(precision, _checked_device(device), threads)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        module = module.eval().requires_grad_(False)
        self.module = module.to(device=self._device, memory_format=self._format)  # type: ignore[call-overload]
        self.images = images
        self._constants = channel_constants(images.mean, images.std, self._device)  # graphs read them where they are
        on_gpu = self._device.type == "cuda"
        self.together = _TOGETHER if on_gpu else 1
        self._passes: Callable[[Tensor], Tensor] = (
            RecordedPasses(self._logits, self._device) if on_gpu else self._logits
        )

    def run(self, image: np.ndarray) -> Tensor:
        """See `Engine.run`: float32 K x h' x w' on the device."""
        return self._run(self.batched(image))[0]

    def run_batch(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """See `Engine.run_batch`."""
        return list(self._run(np.concatenate([self.batched(image) for image in images])))

    def outputs(self, image: np.ndarray) -> dict[str, Tensor]:
        """``logits`` of an image and, of a `SegmentationModel`, ``features``, each 1 x C x h x w."""
        with self._computing():
            return self._outputs(_tensor(self.batched(image)).to(self._device))

    def _run(self, images: np.ndarray) -> Tensor:
        with self._computing():
            return self._passes(_tensor(images))

    def _logits(self, pixels: Tensor) -> Tensor:
        return self._outputs(pixels)["logits"].float()

    def _outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Of images N x h x w x C on the device."""
        ready = normalise(pixels.permute(0, 3, 1, 2), self.images)
        ready = ready.contiguous(memory_format=self._format)
        if isinstance(self.module, SegmentationModel):
            return self.module.outputs(ready)
        return {"logits": self.module(ready)}


class _ArchiveEngine(_TorchEngine):
    """A network of an archive."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        artefact: Artefact,
        images: ImageFormat,
        precision: str,
        threads: int | None,
    ) -> None:
        super().__init__(precision, torch.device("cpu"), threads)
        self.output, self.size, self.layout = artefact.output, artefact.size, artefact.layout
        self._network, self.images = network, images

    def run(self, image: np.ndarray) -> Tensor:
        """See `Engine.run`."""
        batch = self.batched(image)
        with self._computing():
            return self._network(_tensor(batch))[0]


def open_model(
    source: Bundle | str | Path,
    width: float | None = None,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    device: str = "cpu",
    size: Size | None = None,
    threads: int | None = None,
    channels_last: bool = False,
) -> Networks:
    """Networks of a model file in any runtime.

    Args:
        source: a loaded bundle, or its path.
        width: the first to be used; None for the widest.
        runtime: one of `RUNTIMES`; None for PyTorch.
        precision: "fp32", "bf16" or, on a GPU, "fp16"; None for fp32.
        device: "cpu"; PyTorch has others.
        size: of the images that the networks will see; None for any.
        threads: of the CPU; None for the runtime's own choice.
        channels_last: run in this memory format, in PyTorch.

    Raises:
        BundleError: the file cannot be loaded.
        WidthError: the bundle does not have the width.
        MissingExtraError: a runtime that is not installed.
        LithesegError: a runtime, precision or device that is not to be had.
    """
    bundle = source if isinstance(source, Bundle) else load_bundle(source)
    runtime, precision = runtime or "torch", precision or "fp32"
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("precision", precision, PRECISIONS)
    if precision == "int8":
        raise LithesegError("a bundle holds no int8 network; make one with `litheseg export --precision int8`")
    if runtime != "torch" and device != "cpu":
        raise LithesegError(f"{runtime} runs bundles on the CPU, not on '{device}'; choose runtime torch or device cpu")

    def extracted(width: float) -> Engine:
        with torch.inference_mode(False):  # else the weights of the module could not be exported later
            module = bundle.plain(width)
            fold_batch_norms(module)
            how: dict[str, Any] = {"device": device, "threads": threads, "channels_last": channels_last}
            return ModuleEngine(module, bundle.header.images, precision=precision, **how)

    def exported(width: float) -> Engine:
        with tempfile.TemporaryDirectory(prefix="litheseg-") as folder:
            format = "onnx" if runtime in FORMATS["onnx"] else TARGETS[runtime].format
            file = f"network{target_of(format).suffix}"
            write_network(format, Conversion(deployed(bundle, width), size), Path(folder) / file)
            artefact = Artefact(format, width, "fp32", size, "NHWC", "logits", file)
            export = Export(Path(folder), bundle.header, (artefact,))
            return open_engine(export, runtime=runtime, precision=precision, threads=threads)

    make = extracted if runtime == "torch" else exported
    return Networks(bundle.header, bundle.header.available_widths, bundle.check_width, make, width)


def bundle_engine(bundle: Bundle, width: float, runtime: str, **how: Any) -> Engine:
    """The engine of one width of a bundle; arguments and errors as of `open_model`."""
    return open_model(bundle, width, runtime=runtime, **how).engine(width)


def archive_engine(
    file: Path, artefact: Artefact, images: ImageFormat, *, precision: str, threads: int | None, device: str
) -> Engine:
    """An engine of a `torch.export` archive, as `open_engine` asks for it.

    Raises:
        BundleError: as `load_archive`.
        LithesegError: a device or precision that is not to be had.
    """
    if device != "cpu":
        raise LithesegError(f"an archive runs on the CPU; for '{device}', give the bundle instead of the export")
    return _ArchiveEngine(load_archive(file), artefact, images, precision, threads)


def _tensor(images: np.ndarray) -> Tensor:
    """The array itself, or a copy of one that is not to be written to, which PyTorch does not know of."""
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def _labels(logits: Tensor, size: Size) -> Tensor:
    """uint8 H x W of the largest of the logits K x h x w, each interpolated to `size` (H, W), on their device."""
    if len(logits) * size[0] * size[1] > _MAX_LOGITS:
        return upsample_labels(logits, size, max_values=_MAX_LOGITS)
    # On a GPU two large operations take less time than several small ones.
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0).to(torch.uint8)


def _checked_device(device: str) -> torch.device:
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise LithesegError(f"device '{device}' cannot be used here ({reason}); choose 'cpu'") from error
    return checked
