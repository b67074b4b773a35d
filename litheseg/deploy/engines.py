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
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from litheseg.bundle.exported import PRECISIONS, RUNTIMES, Artefact, Export, check_choice, load_export
from litheseg.cost.latency import threads_limited
from litheseg.deploy.network import Deployed, deployed
from litheseg.deploy.onnx import onnx_model, save_onnx
from litheseg.deploy.openvino import openvino_core
from litheseg.deploy.torch_export import export_program, load_archive
from litheseg.errors import DataError, LithesegError, MissingExtraError
from litheseg.models.bundle import Bundle

__all__ = [
    "Engine",
    "available_runtimes",
    "bundle_engine",
    "has_bfloat16",
    "open_engine",
    "session_options",
    "torch_engine",
]


@runtime_checkable
class Engine(Protocol):
    """A network that runs.

    Attributes:
        runtime: one of `litheseg.bundle.exported.RUNTIMES`.
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
    artefact = opened.find(width, runtime or _installed(opened, width, precision), precision)
    chosen = runtime or next(name for name in artefact.runtimes if name in available_runtimes())
    file = opened.file(artefact)
    return _OPENERS[chosen](file, artefact, precision=precision, threads=threads, device=device)


def _installed(export: Export, width: float | None, precision: str) -> str | None:
    """A runtime that is here and takes what the export holds; None to let `find` say what is wrong."""
    runtimes = [name for artefact in export.artefacts for name in artefact.runtimes]
    here = [name for name in runtimes if name in available_runtimes()]
    if not here:
        raise LithesegError(f"{export.path} runs in {', '.join(dict.fromkeys(runtimes))}, none of which is installed")
    for name in dict.fromkeys(here):
        if precision == "bf16" and name == "onnxruntime":  # reads the network, but cannot run it so
            continue
        with suppress(LithesegError):
            export.find(width, name, precision)
            return name
    return None


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
    place = torch.device(device)
    _check_torch(precision, place)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    layout = "NHWC" if channels_last else "NCHW"  # as the pixels lie, so the network runs
    network = Deployed(module, mean, std, layout=layout).eval().requires_grad_(False)
    network = network.to(device=place, memory_format=memory)  # type: ignore[call-overload]
    anything = Artefact("torch", 1.0, "fp32", None, layout, "logits", "-")
    return _TorchEngine(network, anything, precision=precision, threads=threads, device=place)


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
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("precision", precision, PRECISIONS)
    if precision == "int8":
        raise LithesegError("a bundle holds no int8 network; make one with `litheseg export --precision int8`")
    network = deployed(bundle, width)
    if runtime == "torch":
        return torch_engine(
            network.network, bundle.header.mean, bundle.header.std, threads=threads, precision=precision
        )
    with tempfile.TemporaryDirectory(prefix="litheseg-") as folder:
        file = Path(folder) / "network.onnx"
        save_onnx(onnx_model(export_program(network, size), "logits"), file)
        artefact = Artefact("onnx", width, "fp32", size, "NHWC", "logits", file.name)
        return _OPENERS[runtime](file, artefact, precision=precision, threads=threads, device="cpu")


class _TorchEngine:
    """A function of a uint8 tensor 1 x h x w x 3, or 1 x 3 x h x w."""

    runtime = "torch"

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        artefact: Artefact,
        *,
        precision: str,
        threads: int | None,
        device: str | torch.device,
    ) -> None:
        self.precision, self.output, self.size = precision, artefact.output, artefact.size
        self._network, self._layout, self._threads = network, artefact.layout, threads
        self._device = torch.device(device)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(_batched(image, self._layout, self.size)).to(self._device)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(threads_limited(self._threads))
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self._device.type, torch.bfloat16))
            return np.asarray(self._network(pixels)[0].cpu().numpy())


class _OnnxEngine:
    """A session of ONNX Runtime, which is safe to be shared."""

    runtime = "onnxruntime"

    def __init__(self, session: Any, artefact: Artefact) -> None:
        self.precision, self.output, self.size = artefact.precision, artefact.output, artefact.size
        self._session, self._layout = session, artefact.layout
        self._input = session.get_inputs()[0].name

    def __call__(self, image: np.ndarray) -> np.ndarray:
        batch = _batched(image, self._layout, self.size)
        with _explained(self.runtime, image):
            return np.asarray(self._session.run(None, {self._input: batch})[0][0])


class _OpenVinoEngine:
    """A compiled model; every thread has a request of its own."""

    runtime = "openvino"

    def __init__(self, model: Any, artefact: Artefact, precision: str) -> None:
        self.precision, self.output, self.size = precision, artefact.output, artefact.size
        self._model, self._layout, self._requests = model, artefact.layout, threading.local()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        batch = _batched(image, self._layout, self.size)
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        with _explained(self.runtime, image):
            self._requests.own.infer([batch], share_inputs=True)
            return np.array(self._requests.own.get_output_tensor(0).data[0])  # a copy: the next call overwrites it


def _open_torch(file: Path, artefact: Artefact, *, precision: str, threads: int | None, device: str) -> Engine:
    if torch.device(device).type != "cpu":
        raise LithesegError(f"an archive runs on the CPU; for '{device}', give the bundle instead of the export")
    _check_torch(precision, torch.device(device))
    return _TorchEngine(load_archive(file), artefact, precision=precision, threads=threads, device=device)


def _open_onnx(file: Path, artefact: Artefact, *, precision: str, threads: int | None, device: str) -> Engine:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", "running in ONNX Runtime") from error
    if precision == "bf16":
        raise LithesegError(
            "ONNX Runtime has no bf16 convolutions; choose fp32 or int8, or --runtime openvino or torch"
        )
    providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if providers[0] not in onnxruntime.get_available_providers():
        raise LithesegError(f"this ONNX Runtime has no '{device}'; install onnxruntime-gpu, or choose cpu")
    options = session_options(threads)
    with _explained("onnxruntime", file):
        return _OnnxEngine(onnxruntime.InferenceSession(str(file), options, providers=providers), artefact)


def session_options(threads: int | None = None) -> Any:
    """How ONNX Runtime runs a network here."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    return options


def _open_openvino(file: Path, artefact: Artefact, *, precision: str, threads: int | None, device: str) -> Engine:
    core = openvino_core()
    if device != "cpu":
        raise LithesegError(f"OpenVINO runs on the CPU here, not on '{device}'; choose cpu, or --runtime torch")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise LithesegError("this CPU has no bf16 (OpenVINO would compute in fp32); choose fp32 or int8")
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    with _explained("openvino", file):
        return _OpenVinoEngine(core.compile_model(str(file), "CPU", settings), artefact, precision)


_OPENERS: dict[str, Callable[..., Engine]] = {
    "onnxruntime": _open_onnx,
    "openvino": _open_openvino,
    "torch": _open_torch,
}


def _check_torch(precision: str, device: torch.device) -> None:
    """Whether PyTorch computes so, and faster than it would emulate it.

    Raises:
        LithesegError: it does not.
    """
    if precision == "int8":
        raise LithesegError("PyTorch runs no int8 network here; choose --runtime openvino or onnxruntime")
    if precision == "bf16" and not has_bfloat16(device):
        raise LithesegError(f"'{device}' has no bf16 here (PyTorch would emulate it, slowly); choose fp32")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU or this CPU multiplies bfloat16; others can, slowly, by way of float32."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def _explained(runtime: str, subject: Path | np.ndarray) -> Iterator[None]:
    """One error in place of a runtime's many; they have no class in common."""
    try:
        yield
    except Exception as error:
        what = subject if isinstance(subject, Path) else f"an image of {subject.shape[0]}x{subject.shape[1]}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise LithesegError(
            f"{runtime} {version(runtime)} cannot run {what} ({lines[-1]}); try another runtime"
        ) from error


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
