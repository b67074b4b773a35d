"""A network file in memory: quantized after training, or one layer at a time; by NNCF, for the formats that it knows.

In NNCF's, weights become int8, symmetric, with one scale per output channel; activations uint8 with a zero point of
their own (its preset "mixed"). Weights use half the range of int8 (`OverflowFix.ENABLE`): processors without VNNI add
pairs of products in 16 bits, which saturates at the full range, and one file would give one result on one machine and a
far worse one on the next.

What differs between formats is in `onnx_network` and `openvino_network`; `litert_network` and `executorch_network`
have other quantizers.

Usage:
    >>> network = OnnxNetwork.read(Path("street.onnx"), "NHWC")
    >>> network.quantized(images, kept=["node_Conv_809"]).write(Path("street-int8.onnx"))
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rich

from litheseg.deploy.conversion import Conversion
from litheseg.deploy.samples import CalibrationImages
from litheseg.errors import LithesegError, MissingExtraError, first_line
from litheseg.progress import work

__all__ = ["PASSING", "NncfNetwork", "QuantizableNetwork"]

PASSING = frozenset(
    "Concat DepthToSpace Flatten Gather Identity MaxPool Pad Reshape Slice SpaceToDepth Split Squeeze StridedSlice "
    "Transpose Unsqueeze VariadicSplit".split()
)
"""Operations that only pass values on: NNCF moves their quantizers in front of them, to be looked for there."""


class QuantizableNetwork(ABC):
    """A network file in memory, which becomes int8.

    Args:
        model: as its library holds it; what it computes is never changed.
        layout: of its input, "NHWC" or "NCHW".
    """

    suffix: str
    """Of its main file."""
    libraries: tuple[str, ...]
    """The packages that quantize, write and run it."""
    corrects_biases: bool
    """Whether there are two ways, with the biases corrected and without."""
    simulated: Callable[[np.ndarray], np.ndarray] | None = None
    """What it gives for an image h w C, without its runtime; where files take too long to write for each layer."""

    def __init__(self, model: Any, layout: str) -> None:
        self.model, self.layout = model, layout

    @classmethod
    @abstractmethod
    def require(cls) -> None:
        """See that what quantizes it is installed, without the seconds that importing it takes.

        Raises:
            MissingExtraError: it is not.
        """

    @abstractmethod
    def quantized(
        self, images: CalibrationImages, *, kept: Collection[str] = (), corrected: bool = True, probe: bool = False
    ) -> QuantizableNetwork:
        """An int8 network; the same images give the same one.

        Args:
            images: to calibrate on, at a size that it takes.
            kept: names of layers that stay in floating point.
            corrected: whether biases make up for the mean error of their layers (Nagel et al., ICCV 2019, section 4.2).
            probe: for `layers` and `only`: weights are stored as they were; not with `corrected`, since a layer in
                floating point wants the bias that it had.

        Raises:
            MissingExtraError: the quantizer is not installed.
            LithesegError: it cannot quantize this network.
        """

    @classmethod
    @abstractmethod
    def read(cls, path: Path, layout: str, source: Callable[[], Conversion] | None = None) -> QuantizableNetwork:
        """Read a network file.

        Args:
            path: the file.
            layout: of its input.
            source: makes what the file was made of, for formats that cannot be read back.

        Raises:
            MissingExtraError: its library is not installed.
        """

    @abstractmethod
    def layers(self) -> tuple[tuple[str, str], ...]:
        """The operations of a probe that run in int8, in running order: (unique name, kind)."""

    @abstractmethod
    def only(self, name: str) -> QuantizableNetwork:
        """A probe in which one of its `layers` runs in int8 and everything else in floating point."""

    @abstractmethod
    def write(self, path: Path, text: str = "") -> tuple[Path, ...]:
        """Write it to `path`, which ends in `suffix`, and, for some formats, beside it; returns the files.

        Args:
            path: the main file.
            text: a description to store inside.
        """

    def _batch(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image if self.layout == "NHWC" else image.transpose(2, 0, 1))[None]


class NncfNetwork(QuantizableNetwork):
    """A network that NNCF quantizes; see `QuantizableNetwork`.

    Args:
        model: as its library holds it.
        layout: of its input.
        untouched: names of operations that are never quantized.
    """

    corrects_biases = True

    def __init__(self, model: Any, layout: str, untouched: Sequence[str] = ()) -> None:
        super().__init__(model, layout)
        self._untouched = untouched

    @classmethod
    def require(cls) -> None:
        """See `QuantizableNetwork.require`."""
        if importlib.util.find_spec("nncf") is None:
            raise MissingExtraError("nncf", "export", "int8")

    def quantized(
        self, images: CalibrationImages, *, kept: Collection[str] = (), corrected: bool = True, probe: bool = False
    ) -> QuantizableNetwork:
        """See `QuantizableNetwork.quantized`."""
        self.require()
        os.environ.setdefault("NNCF_CI", "1")  # disables telemetry; looked at once, when it is imported
        with _quiet():
            import nncf

        stopped = threading.Event()
        ignored = sorted({*kept, *self._untouched})
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE,  # half the range of weights, in all layers
            disable_bias_correction=not corrected,
            backend_params={"compress_weights": not probe},
        )
        try:
            # In a thread, since its cores come and go, see `litheseg.runtime.in_openvino`.
            with _quiet(), ThreadPoolExecutor(1) as aside, work("calibrating, passes over an image") as passes:

                def feed(image: np.ndarray) -> Any:
                    if stopped.is_set():
                        raise LithesegError("stopped by Ctrl-C")
                    passes.advance()
                    return self._feed(image)

                quantizing = aside.submit(
                    nncf.quantize,
                    self._copy(),
                    nncf.Dataset(images, feed),
                    preset=nncf.QuantizationPreset.MIXED,
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=len(images),
                    ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
                    advanced_parameters=advanced,
                )
                try:
                    model = quantizing.result()
                finally:  # where it is left by Ctrl-C, the thread must end, too
                    stopped.set()
        except LithesegError:  # an image that cannot be read
            raise
        except Exception as error:  # NNCF and its runtimes have errors of their own for what they cannot do
            reason = first_line(error)
            raise LithesegError(f"NNCF cannot quantize this network ({reason}); export it as fp32") from error
        return type(self)(model, self.layout)

    @abstractmethod
    def _copy(self) -> Any:
        """A copy of the model that NNCF may change."""

    @abstractmethod
    def _feed(self, image: np.ndarray) -> Any:
        """An image as NNCF hands it to the model."""


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF without its log, PyTorch's remark on the absence of CUDA, and its bars, which rich's own console draws."""
    loggers, console = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")], rich.get_console()
    before = [logger.level for logger in loggers], console.quiet
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    console.quiet = True
    try:
        yield
    finally:
        for logger, level in zip(loggers, before[0], strict=True):
            logger.setLevel(level)
        console.quiet = before[1]
