"""Network files in memory as NNCF takes them: quantized after training, and quantized one layer at a time.

Everything that NNCF, ONNX and OpenVINO want done in their own way is here. Weights become int8, one scale per output
channel and symmetric; activations become uint8 with a zero point of their own (NNCF's preset "mixed"). Weights use half
the range of int8 (`OverflowFix.ENABLE`): processors without VNNI add pairs of products in 16 bits, which saturates at
the full range, so that one file would give one result on one machine and a far worse one on the next.

It does not know how accurate the result is, nor which layers are worth keeping in floating point.

Usage:
    >>> network = read_network(Path("street.onnx"), "onnx", "NHWC")
    >>> network.quantized(images, kept=["node_Conv_809"]).write(Path("street-int8.onnx"))
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich

from litheseg.deploy.metadata import KEY
from litheseg.errors import LithesegError, MissingExtraError

__all__ = ["Layer", "Network", "read_network"]

# Operations that hand values on, so that NNCF moves what quantizes them in front: they belong to who reads them.
_PASSING = {"Concat", "DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice"}
_PASSING |= {"SpaceToDepth", "Split", "Squeeze", "StridedSlice", "Transpose", "Unsqueeze", "VariadicSplit"}


@dataclass(frozen=True)
class Layer:
    """An operation that runs in int8.

    Attributes:
        name: in its network; unique.
        kind: as its format calls it, e.g. "Conv".
    """

    name: str
    kind: str


class Network(ABC):
    """A network in memory.

    Args:
        model: as its library holds it; never changed.
        layout: of its input, "NHWC" or "NCHW".
    """

    suffix: str
    """Of its main file."""

    def __init__(self, model: Any, layout: str) -> None:
        self.model, self.layout = model, layout

    def quantized(
        self, images: Sequence[np.ndarray], *, kept: Collection[str] = (), corrected: bool = True, probe: bool = False
    ) -> Network:
        """An int8 network; the same images give the same one.

        Args:
            images: to calibrate on: uint8 h w 3, RGB, at a size that it takes.
            kept: names of layers that stay in floating point.
            corrected: whether biases make up for the mean error of their layers (Nagel et al., ICCV 2019, section 4.2).
            probe: for `layers` and `only`: weights are stored as they were; not with `corrected`, since a layer in
                floating point wants the bias that it had.

        Raises:
            MissingExtraError: NNCF is not installed.
            LithesegError: NNCF cannot quantize this network.
        """
        nncf = _nncf()
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE,
            disable_bias_correction=not corrected,
            backend_params={"compress_weights": not probe},
        )
        try:
            with _quiet():
                model = nncf.quantize(
                    self._copy(),
                    nncf.Dataset(images, self._feed),
                    preset=nncf.QuantizationPreset.MIXED,
                    target_device=nncf.TargetDevice.CPU,
                    subset_size=len(images),
                    ignored_scope=nncf.IgnoredScope(names=sorted(kept)) if kept else None,
                    advanced_parameters=advanced,
                )
        except LithesegError:  # an image that cannot be read
            raise
        except Exception as error:  # NNCF and its runtimes have errors of their own for what they cannot do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LithesegError(f"NNCF cannot quantize this network ({reason}); export it as fp32") from error
        return type(self)(model, self.layout)

    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The operations of a probe that run in int8, in the order in which they run."""

    @abstractmethod
    def only(self, name: str) -> Network:
        """A probe in which one of its `layers` runs in int8 and everything else in floating point."""

    @abstractmethod
    def described(self, text: str) -> Network:
        """The same network with an account of itself inside."""

    @abstractmethod
    def write(self, path: Path) -> tuple[Path, ...]:
        """Write it to `path`, which ends in `suffix`, and, for some formats, beside it; returns the files."""

    @abstractmethod
    def _copy(self) -> Any:
        """The model, for NNCF to do with as it likes."""

    @abstractmethod
    def _feed(self, image: np.ndarray) -> Any:
        """An image as NNCF hands it to the model."""

    def _batch(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image if self.layout == "NHWC" else image.transpose(2, 0, 1))[None]


def read_network(path: Path, form: str, layout: str) -> Network:
    """Read a network file.

    Args:
        path: the main file.
        form: "onnx" or "openvino".
        layout: of its input, "NHWC" or "NCHW".

    Raises:
        LithesegError: a format that cannot be quantized.
        MissingExtraError: its library is not installed.
    """
    if form == "onnx":
        return _Onnx(_onnx().load(str(path)), layout)
    if form == "openvino":
        return _OpenVino(_openvino_model(path), layout)
    raise LithesegError(f"{path} cannot be quantized: int8 is for --format onnx and openvino, not {form}")


class _Onnx(Network):
    """Pairs of QuantizeLinear and DequantizeLinear in front of what runs in int8."""

    suffix = ".onnx"

    def layers(self) -> tuple[Layer, ...]:
        quantizers = self._quantizers()
        return tuple(Layer(node.name, node.op_type) for node in self.model.graph.node if quantizers.get(node.name))

    def only(self, name: str) -> Network:
        active, model = self._quantizers()[name], self._copy()
        by_output = {output: node for node in model.graph.node for output in node.output}
        bypass = {
            node.output[0]: by_output[node.input[0]].input[0]
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and node.output[0] not in active
        }
        for node in model.graph.node:
            for index, value in enumerate(node.input):
                node.input[index] = bypass.get(value, value)
        used = {value for node in model.graph.node if node.op_type != "QuantizeLinear" for value in node.input}
        idle = [node for node in model.graph.node if node.output[0] in bypass]
        idle += [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.output[0] not in used]
        for node in idle:
            model.graph.node.remove(node)
        return _Onnx(model, self.layout)

    def described(self, text: str) -> Network:
        model = self._copy()
        _onnx().helper.set_model_props(model, {KEY: text})
        return _Onnx(model, self.layout)

    def write(self, path: Path) -> tuple[Path, ...]:
        path.write_bytes(self.model.SerializeToString(deterministic=True))
        return (path,)

    def _quantizers(self) -> dict[str, frozenset[str]]:
        """By layer: the outputs of the DequantizeLinears whose values it reads."""
        by_output = {output: node for node in self.model.graph.node for output in node.output}

        def behind(node: Any) -> Iterator[str]:
            for value in node.input:
                source = by_output.get(value)
                if source is not None and source.op_type == "DequantizeLinear":
                    yield value
                elif source is not None and source.op_type in _PASSING:
                    yield from behind(source)

        skipped = {"QuantizeLinear", "DequantizeLinear", *_PASSING}
        return {node.name: frozenset(behind(node)) for node in self.model.graph.node if node.op_type not in skipped}

    def _copy(self) -> Any:
        model = type(self.model)()
        model.CopyFrom(self.model)
        return model

    def _feed(self, image: np.ndarray) -> Any:
        return {self.model.graph.input[0].name: self._batch(image)}


class _OpenVino(Network):
    """A FakeQuantize in front of what runs in int8."""

    suffix = ".xml"

    def layers(self) -> tuple[Layer, ...]:
        operations = {node.get_friendly_name(): node for node in self.model.get_ordered_ops()}
        found = self._quantizers()
        return tuple(Layer(name, node.get_type_name()) for name, node in operations.items() if found.get(name))

    def only(self, name: str) -> Network:
        active, model = self._quantizers()[name], self._copy()
        for node in model.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize" and node.get_friendly_name() not in active:
                node.output(0).replace(node.input_value(0))
        return _OpenVino(model, self.layout)

    def described(self, text: str) -> Network:
        model = self._copy()
        model.set_rt_info(text, KEY)
        return _OpenVino(model, self.layout)

    def write(self, path: Path) -> tuple[Path, ...]:
        import openvino

        openvino.save_model(self.model, str(path), compress_to_fp16=False)
        return (path, path.with_suffix(".bin"))

    def _quantizers(self) -> dict[str, frozenset[str]]:
        """By layer: the names of the FakeQuantizes whose values it reads."""

        def behind(node: Any) -> Iterator[str]:
            for value in node.input_values():
                source = value.get_node()
                if source.get_type_name() == "FakeQuantize":
                    yield source.get_friendly_name()
                elif source.get_type_name() in _PASSING:
                    yield from behind(source)

        skipped = {"FakeQuantize", *_PASSING}
        return {
            node.get_friendly_name(): frozenset(behind(node))
            for node in self.model.get_ordered_ops()
            if node.get_type_name() not in skipped
        }

    def _copy(self) -> Any:
        return self.model.clone()

    def _feed(self, image: np.ndarray) -> Any:
        return self._batch(image)


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF without its log and its progress bars, which go through rich's own console."""
    logger, console = logging.getLogger("nncf"), rich.get_console()
    before = logger.level, console.quiet
    logger.setLevel(logging.ERROR)
    console.quiet = True
    try:
        yield
    finally:
        logger.setLevel(before[0])
        console.quiet = before[1]


def _nncf() -> Any:
    # Otherwise it reports every call to its makers; it asks once, when it is imported.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", "openvino", "int8") from error
    return nncf


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "int8 in ONNX") from error
    return onnx


def _openvino_model(path: Path) -> Any:
    try:
        import openvino
        from openvino.passes import ConstantFolding, Manager
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "int8 in OpenVINO") from error
    model = openvino.Core().read_model(str(path))
    manager = Manager()
    manager.register_pass(ConstantFolding())  # NNCF corrects biases that it sees as constants only
    manager.run_passes(model)
    return model
