"""One interface to PyTorch and the runtimes of the box: an image in, the network's output out.

An `Engine` takes an image at its network's input size and returns logits at the network's own stride, or labels where
the network computes them; it also turns that output into labels of any size. `open_engine` opens exports, in what
`litheseg.bundle.targets` lists; engines that run in PyTorch are in `litheseg.deploy.torch_engine`. `pipeline` resizes
images and runs the stages.

Usage:
    >>> engine = open_engine("exports/street", width=0.5, runtime="openvino", threads=1)
    >>> logits = engine(image)  # h x w x 3 -> float32 K x h' x w'
"""

from __future__ import annotations

import importlib.util
import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.bundle.exported import Artefact, Export, load_export
from litheseg.bundle.targets import TARGETS, Target
from litheseg.errors import DataError, LithesegError, MissingExtraError
from litheseg.lazy import workstation
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.resizing import resize_mask
from litheseg.masks.upsampling import upsample_labels

__all__ = ["Engine", "available_runtimes", "check_package", "open_engine"]

Size = tuple[int, int]

_TOO_NEW = ("IR version", "Opset", "opset")  # what a runtime says of a newer format


class Engine(ABC):
    """A network that runs.

    Attributes:
        runtime: one of `litheseg.bundle.targets.RUNTIMES`.
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
    return tuple(
        name
        for name, target in TARGETS.items()
        if target.runs_here and importlib.util.find_spec(target.imported) is not None
    )


def check_package(runtime: str, purpose: str) -> None:
    """Refuse a package that is missing or too old.

    Args:
        runtime: one of `litheseg.bundle.targets.RUNTIMES`, whose package it is.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
        LithesegError: it is too old.
    """
    target = TARGETS[runtime]
    if importlib.util.find_spec(target.imported) is None:
        raise MissingExtraError(target.package, target.extra, purpose)
    with suppress(PackageNotFoundError):  # packages that were copied to a box have no metadata
        if _numbers(found := version(target.package)) < _numbers(target.oldest):
            remedy = f"pip install --upgrade '{target.package}>={target.oldest}'"
            raise LithesegError(f"{target.package} {found} is too old for {purpose}; {remedy}")


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
        runtime: one of `litheseg.bundle.targets.RUNTIMES`; None for one that is installed and takes the export's files.
        precision: "fp32", "bf16" (of an fp32 network) or "int8".
        threads: of the CPU; None for the runtime's own choice.
        device: "cpu", or "cuda" or "tensorrt" where the runtime has it.

    Raises:
        BundleError: no export, or a damaged one.
        WidthError: a width that it does not have.
        MissingExtraError: a runtime that is not installed.
        LithesegError: a network that it does not have, or that this machine cannot run so.
    """
    how: dict[str, Any] = {"precision": precision, "threads": threads, "device": device}
    opened = export if isinstance(export, Export) else load_export(export)
    artefact = opened.find(width, runtime or _installed(opened, width, precision), precision)
    chosen = runtime or next(name for name in artefact.runtimes if name in available_runtimes())
    file = opened.file(artefact)
    if chosen == "torch":
        engine: Engine = workstation("deploy.torch_engine", f"running {file.name} in PyTorch").archive_engine(
            file, artefact, opened.header.images, **how
        )
        return engine
    return _FileEngine(chosen, file, artefact, opened.header.images, **how)


class _FileEngine(Engine):
    """A network file in a runtime of the box; threads may share it."""

    def __init__(
        self, runtime: str, file: Path, artefact: Artefact, images: ImageFormat, precision: str, **how: Any
    ) -> None:
        self.runtime, self.precision, self.output = runtime, precision, artefact.output
        self.size, self.layout, self.images = artefact.size, artefact.layout, images
        _check_runtime(runtime, precision)
        with _explained(runtime, file):
            module = importlib.import_module(f"litheseg.runtime.in_{runtime}")
            self._network = module.open_network(str(file), precision=precision, **how)

    def run(self, image: np.ndarray) -> np.ndarray:
        batch = self.batched(image)
        with _explained(self.runtime, image):
            return np.asarray(self._network(batch)[0])


def _check_runtime(runtime: str, precision: str) -> None:
    """It is installed, not too old, and runs networks in this precision."""
    target = TARGETS[runtime]
    if not target.runs_here:
        raise LithesegError(
            f"{runtime} runs on {target.system} only, not on {platform.system()}; choose another runtime"
        )
    check_package(runtime, f"running in {runtime}")
    if precision not in target.precisions:
        others = " or ".join(name for name, other in TARGETS.items() if precision in other.precisions)
        known = " or ".join(target.precisions)
        raise LithesegError(f"{runtime} runs no {precision} networks; choose {known}, or --runtime {others}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _installed(export: Export, width: float | None, precision: str) -> str | None:
    """A runtime that is here and takes what the export holds; None to let `find` say what is wrong."""
    here = [name for name in export.runtimes if name in available_runtimes()]
    if not here:
        package = "litheseg[train]" if export.runtimes == ("torch",) else TARGETS[export.runtimes[0]].package
        raise LithesegError(
            f"{export.path} runs in {' or '.join(export.runtimes)}, which this machine does not have: "
            f"pip install '{package}'"
        )
    for name in here:
        with suppress(LithesegError):
            export.find(width, name, precision)
            if precision in TARGETS[name].precisions:
                return name
    return None


@contextmanager
def _explained(runtime: str, subject: Path | np.ndarray) -> Iterator[None]:
    """One error in place of a runtime's many, which have no class in common; NotImplementedError says it all."""
    try:
        yield
    except NotImplementedError as error:
        raise LithesegError(str(error)) from error
    except Exception as error:
        what = subject if isinstance(subject, Path) else f"an image of {subject.shape[0]}x{subject.shape[1]}"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        package, number = _distribution(TARGETS[runtime])
        old = any(sign in str(error) for sign in _TOO_NEW)
        remedy = f"pip install --upgrade {package}" if old else "try another runtime"
        raise LithesegError(f"{f'{package} {number}'.strip()} cannot run {what} ({lines[-1]}); {remedy}") from error


def _distribution(target: Target) -> tuple[str, str]:
    """What pip calls the package that is here, as onnxruntime-gpu for onnxruntime, and its version, "" if unknown."""
    with suppress(PackageNotFoundError):
        return target.package, version(target.package)
    for name in packages_distributions().get(target.imported, ()):
        return name, version(name)
    return target.package, ""  # packages that were copied to a box have no metadata
