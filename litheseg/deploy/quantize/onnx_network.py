"""ONNX networks: pairs of QuantizeLinear and DequantizeLinear in front of what runs in int8.

Usage:
    >>> network = OnnxNetwork.read(Path("street.onnx"), "NHWC")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.bundle.description import KEY
from litheseg.deploy.quantize.networks import PASSING, NncfNetwork, QuantizableNetwork
from litheseg.errors import MissingExtraError

__all__ = ["OnnxNetwork"]

_NORMALISATION = "normalisation"


class OnnxNetwork(NncfNetwork):
    """An `onnx.ModelProto`; see `QuantizableNetwork`."""

    suffix, libraries = ".onnx", ("nncf", "onnx", "onnxruntime")

    @classmethod
    def read(cls, path: Path, layout: str, source: object = None) -> QuantizableNetwork:
        """See `QuantizableNetwork.read`."""
        try:
            import onnx
        except ImportError as error:
            raise MissingExtraError("onnx", "export", "int8 in ONNX") from error
        model = onnx.load(str(path))
        return cls(model, layout, _unite_normalisation(model))

    def layers(self) -> tuple[tuple[str, str], ...]:
        """See `QuantizableNetwork.layers`."""
        quantizers = self._quantizers()
        return tuple((node.name, node.op_type) for node in self.model.graph.node if quantizers.get(node.name))

    def only(self, name: str) -> QuantizableNetwork:
        """See `QuantizableNetwork.only`."""
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
        nodes = [node for node in model.graph.node if node.output[0] not in bypass]
        read = {value for node in nodes for value in node.input}
        nodes = [node for node in nodes if node.op_type != "QuantizeLinear" or node.output[0] in read]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return OnnxNetwork(model, self.layout)

    def write(self, path: Path, text: str = "") -> tuple[Path, ...]:
        """See `QuantizableNetwork.write`."""
        from onnx.helper import set_model_props

        model = self._copy()
        if text:
            set_model_props(model, {KEY: text})
        path.write_bytes(model.SerializeToString(deterministic=True))
        return (path,)

    def _quantizers(self) -> dict[str, frozenset[str]]:
        """By layer: the outputs of the DequantizeLinears whose values it reads."""
        by_output = {output: node for node in self.model.graph.node for output in node.output}

        def behind(node: Any) -> Iterator[str]:
            for value in node.input:
                source = by_output.get(value)
                if source is not None and source.op_type == "DequantizeLinear":
                    yield value
                elif source is not None and source.op_type in PASSING:
                    yield from behind(source)

        skipped = {"QuantizeLinear", "DequantizeLinear", *PASSING}
        return {node.name: frozenset(behind(node)) for node in self.model.graph.node if node.op_type not in skipped}

    def _copy(self) -> Any:
        model = type(self.model)()
        model.CopyFrom(self.model)
        return model

    def _feed(self, image: np.ndarray) -> Any:
        return {self.model.graph.input[0].name: self._batch(image)}


def _unite_normalisation(model: Any) -> tuple[str, ...]:
    """Make the image's multiplication and addition one batch norm, with the same result, in place; returns its name.

    ONNX Runtime arranges an int8 network by pixels, and its multiplication by a few numbers per pixel is slow: as long
    as a fifth of the network at width 1. A batch norm it leaves as it is.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    multiply, add = _normalisation(graph)
    constants = {entry.name: entry for entry in graph.initializer}

    def constant(node: Any) -> Any:
        return next((constants[name] for name in node.input if name in constants), None)

    gain, offset = constant(multiply), constant(add)
    if gain is None or offset is None or gain.dims != offset.dims or np.prod(gain.dims) != max(gain.dims, default=0):
        return ()
    values = [numpy_helper.to_array(constant).ravel() for constant in (gain, offset)]
    values += [np.zeros(len(values[0])), np.ones(len(values[0]))]
    names = [f"{_NORMALISATION}.{part}" for part in ("gain", "offset", "mean", "variance")]
    for name, value in zip(names, values, strict=True):
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    inputs = [*(name for name in multiply.input if name != gain.name), *names]
    united = helper.make_node("BatchNormalization", inputs, list(add.output), name=_NORMALISATION, epsilon=0.0)
    graph.node.insert(list(graph.node).index(add), united)
    graph.node.remove(multiply)
    graph.node.remove(add)
    graph.initializer.remove(gain)
    graph.initializer.remove(offset)
    return (_NORMALISATION,)


def _normalisation(graph: Any) -> tuple[Any, Any]:
    """The Mul and the Add that follow the image as float32; without inputs where there are none."""
    from onnx import NodeProto

    nothing = NodeProto()
    readers = {value: node for node in graph.node for value in node.input}
    pixels = graph.input[0].name
    while readers.get(pixels, nothing).op_type in ("Cast", "Transpose"):
        pixels = readers[pixels].output[0]
    multiply = readers.get(pixels, nothing)
    add = readers.get(multiply.output[0], nothing) if multiply.op_type == "Mul" else nothing
    return (multiply, add) if add.op_type == "Add" else (nothing, nothing)
