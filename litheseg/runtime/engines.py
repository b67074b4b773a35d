"""One interface to PyTorch, ONNX Runtime and OpenVINO: an image in, the network's output out.

An `Engine` takes an image at its network's input size and returns logits at the network's own stride, or labels where
the network computes them; it also turns that output into labels of any size. `open_engine` opens exports; engines that
run in PyTorch are in `litheseg.deploy.torch_engine`. `pipeline` resizes images and runs the stages.

Usage:
    >>> engine = open_engine("exports/street", width=0.5, runtime="openvino", threads=1)
    >>> logits = engine(image)  # h x w x 3 -> float32 K x h' x w'
"""

from __future__ import annotations

import importlib.util
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.bundle.exported import RUNTIMES, Artefact, Export, load_export
from litheseg.errors import DataError, LithesegError, MissingExtraError
from litheseg.lazy import workstation
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.resizing import resize_mask
from litheseg.masks.upsampling import upsample_labels

__all__ = ["Engine", "available_runtimes", "open_engine", "openvino_core", "session_options"]

Size = tuple[int, int]

_TOO_NEW = ("IR version", "Opset", "opset")  # what a runtime says of a newer format
_PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch"}


class Engine(ABC):
    """A network that runs.

    Attributes:
        runtime: one of `litheseg.bundle.exported.RUNTIMES`.
        precision: "fp32", "bf16" or "int8".
        output: "logits" or "labels".
        size: height and width of the images that it takes, in pixels; None for any.
        images: what it takes.
        layout: of the network's input: "NHWC" or "NCHW".
        together: images of one size that `run_batch` takes faster than `run` one by one; 1 where it never does.
    """

    runtime: str
    precision: str
    output: str
    size: Size | None
    images: ImageFormat = ImageFormat()
    layout: str = "NHWC"
    together: int = 1

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Run it.

        Args:
            image: h x w x C of the type that `images` says, any strides.

        Returns:
            float32 K x h' x w' at the network's own stride (logits), or uint8 h x w (labels); the caller's own.

        Raises:
            DataError: an image of another kind or size.
            LithesegError: the runtime cannot run it.
        """
        return self.array(self.run(image))

    @abstractmethod
    def run(self, image: np.ndarray) -> Any:
        """As `__call__`, but the output stays where it was computed: an array, or a tensor on a GPU."""

    def run_batch(self, images: Sequence[np.ndarray]) -> list[Any]:
        """The outputs of several images of one size."""
        return [self.run(image) for image in images]

    def array(self, output: Any) -> np.ndarray:
        """An output of `run` in main memory."""
        return np.asarray(output)

    def labels(self, output: Any, size: Size, threads: int | None = None) -> np.ndarray:
        """uint8 H x W labels at `size` (H, W) of an output of `run`: each pixel's largest interpolated logit.

        Args:
            output: logits or labels.
            size: of the image, in pixels.
            threads: of the CPU; None for as many as it has cores.
        """
        return resize_mask(output, size) if self.output == "labels" else upsample_labels(output, size, threads=threads)

    def batched(self, image: np.ndarray) -> np.ndarray:
        """One image as the network takes it: contiguous, 1 x h x w x C or 1 x C x h x w.

        Raises:
            DataError: an image of another kind, or of another size than `size`.
        """
        if image.ndim != 3 or not image.size or (image.shape[2], str(image.dtype)) != self.images.kind:
            wanted = f"{self.images.dtype} h x w x {self.images.channels}"
            raise DataError(f"an image of {image.dtype} and shape {image.shape}; give {wanted}")
        if self.size is not None and image.shape[:2] != self.size:
            raise DataError(
                f"an image of {image.shape[0]}x{image.shape[1]}, where the export takes {self.size[0]}x{self.size[1]} "
                "only; resize it, or export for any size (--size dynamic)"
            )
        arranged = image if self.layout == "NHWC" else image.transpose(2, 0, 1)
        return np.ascontiguousarray(arranged)[None]

    def wait(self) -> None:
        """Wait until all computations that were started are done; on a CPU they are."""
        return


def available_runtimes() -> tuple[str, ...]:
    """The runtimes whose packages are installed here, in the order of `RUNTIMES`."""
    return tuple(name for name in RUNTIMES if importlib.util.find_spec(_PACKAGES[name]) is not None)


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
    file, how = opened.file(artefact), {"precision": precision, "threads": threads, "device": device}
    if chosen == "torch":
        engine: Engine = workstation("deploy.torch_engine", f"running {file.name} in PyTorch").archive_engine(
            file, artefact, opened.header.images, **how
        )
        return engine
    return {"onnxruntime": _OnnxEngine, "openvino": _OpenVinoEngine}[chosen](
        file,
        artefact,
        opened.header.images,
        **how,  # type: ignore[arg-type]
    )


def session_options(threads: int | None = None) -> Any:
    """Options of an ONNX Runtime session; the sessions of a process share one memory arena.

    Otherwise each keeps what its largest pass took, and all widths together several times what one of them needs.
    """
    import onnxruntime

    _share_memory()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False  # a plan of each network's own, kept besides
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    return options


@cache
def _share_memory() -> None:
    """Once for the process."""
    import onnxruntime

    kind, default = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, default), None)


def openvino_core() -> Any:
    """The one `openvino.Core` of this process that compiles networks.

    With two, the next signal can end the process: OpenVINO's CPU plugin, one per core, gives the thread that loads it a
    stack for signal handlers, and when the core goes restores the one before, though that may have gone earlier.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "running in OpenVINO") from error
    return _core(openvino)


@cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


class _OnnxEngine(Engine):
    """A session of ONNX Runtime, which is safe to be shared."""

    runtime = "onnxruntime"

    def __init__(
        self,
        file: Path,
        artefact: Artefact,
        images: ImageFormat,
        *,
        precision: str,
        threads: int | None,
        device: str,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", None, "running in ONNX Runtime") from error
        if precision == "bf16":
            raise LithesegError(
                "ONNX Runtime has no bf16 convolutions; choose fp32 or int8, or --runtime openvino or torch"
            )
        providers = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
        if providers[0] not in onnxruntime.get_available_providers():
            raise LithesegError(f"this ONNX Runtime has no '{device}'; install onnxruntime-gpu, or choose cpu")
        options = session_options(threads)
        with _explained("onnxruntime", file):
            self._session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        self.precision, self.output, self.size = artefact.precision, artefact.output, artefact.size
        self.layout, self.images, self._input = artefact.layout, images, self._session.get_inputs()[0].name

    def run(self, image: np.ndarray) -> np.ndarray:
        batch = self.batched(image)
        with _explained(self.runtime, image):
            return np.asarray(self._session.run(None, {self._input: batch})[0][0])


class _OpenVinoEngine(Engine):
    """A compiled model; every thread has a request of its own."""

    runtime = "openvino"

    def __init__(
        self,
        file: Path,
        artefact: Artefact,
        images: ImageFormat,
        *,
        precision: str,
        threads: int | None,
        device: str,
    ) -> None:
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
            self._model = core.compile_model(str(file), "CPU", settings)
        self.precision, self.output, self.size = precision, artefact.output, artefact.size
        self.layout, self.images, self._requests = artefact.layout, images, threading.local()

    def run(self, image: np.ndarray) -> np.ndarray:
        batch = self.batched(image)
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        with _explained(self.runtime, image):
            self._requests.own.infer([batch], share_inputs=True)
            return np.array(self._requests.own.get_output_tensor(0).data[0])  # a copy: the next call overwrites it


def _installed(export: Export, width: float | None, precision: str) -> str | None:
    """A runtime that is here and takes what the export holds; None to let `find` say what is wrong."""
    here = [name for name in export.runtimes if name in available_runtimes()]
    if not here:
        package = "litheseg[train]" if export.runtimes == ("torch",) else _PACKAGES[export.runtimes[0]]
        raise LithesegError(
            f"{export.path} runs in {' or '.join(export.runtimes)}, which this machine does not have: "
            f"pip install '{package}'"
        )
    for name in here:
        if precision == "bf16" and name == "onnxruntime":  # reads the network, but cannot run it so
            continue
        with suppress(LithesegError):
            export.find(width, name, precision)
            return name
    return None


@contextmanager
def _explained(runtime: str, subject: Path | np.ndarray) -> Iterator[None]:
    """One error in place of a runtime's many; they have no class in common."""
    try:
        yield
    except Exception as error:
        what = subject if isinstance(subject, Path) else f"an image of {subject.shape[0]}x{subject.shape[1]}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        old = any(sign in str(error) for sign in _TOO_NEW)
        remedy = f"pip install --upgrade {runtime}" if old else "try another runtime"
        raise LithesegError(f"{runtime} {version(runtime)} cannot run {what} ({lines[-1]}); {remedy}") from error
