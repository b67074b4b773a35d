"""LiteRT networks, quantized by AI Edge Quantizer: integers from the raw pixels to the logits.

Weights become int8, symmetric, with one scale per output channel; activations int8 with a zero point of their own, over
the range that the images give, on average. Biases are not corrected. The last step makes float32 logits of the
integers; what LiteRT has in floating point only stays there.

Usage:
    >>> network = LitertNetwork.read(Path("street.tflite"), "NHWC")
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.bundle.description import append_description
from litheseg.deploy.quantize.networks import QuantizableNetwork
from litheseg.deploy.samples import CalibrationImages
from litheseg.errors import LithesegError, MissingExtraError, first_line
from litheseg.progress import work

__all__ = ["LitertNetwork"]

_SIGNATURE, _INPUT = "serving_default", "image"  # the converter's name of the network, and ours of what it takes
_EVERY, _BITS = ".*", 8  # the pattern of all layers
_UINT8, _INT8 = 3, 9  # the format's numbers of types
_PASSING = frozenset(
    "CAST CONCATENATION DEQUANTIZE MAX_POOL_2D PAD PADV2 QUANTIZE RESHAPE RESIZE_NEAREST_NEIGHBOR SLICE SPACE_TO_DEPTH "
    "SPLIT SQUEEZE STRIDED_SLICE TRANSPOSE UNPACK".split()
)
"""Operations that only pass values on."""


class LitertNetwork(QuantizableNetwork):
    """The content of a .tflite file; see `QuantizableNetwork`.

    Args:
        model: the content.
        layout: of its input, "NHWC" or "NCHW".
        alone: of a probe: the content of the network in which one layer alone runs in int8, by its name.
    """

    suffix, libraries, corrects_biases = ".tflite", ("ai-edge-quantizer", "ai-edge-litert"), False

    def __init__(self, model: bytes, layout: str, alone: Callable[[str], bytes] | None = None) -> None:
        super().__init__(model, layout)
        self._alone = alone
        self._found: tuple[CalibrationImages, Any] | None = None  # the ranges on the last images

    @classmethod
    def require(cls) -> None:
        """See `QuantizableNetwork.require`."""
        if importlib.util.find_spec("ai_edge_quantizer") is None:
            raise MissingExtraError("ai-edge-quantizer", "litert-export", "int8 in LiteRT")

    @classmethod
    def read(cls, path: Path, layout: str, source: object = None) -> QuantizableNetwork:
        """See `QuantizableNetwork.read`."""
        cls.require()
        return cls(path.read_bytes(), layout)

    def quantized(
        self, images: CalibrationImages, *, kept: Collection[str] = (), corrected: bool = True, probe: bool = False
    ) -> QuantizableNetwork:
        """See `QuantizableNetwork.quantized`."""
        try:
            ranges = self._ranges_on(images)
            int8 = self._int8(ranges, [_EVERY], kept)
        except LithesegError:  # an image that cannot be read
            raise
        except Exception as error:  # the quantizer has no class for what it cannot do
            reason = first_line(error)
            remedy = "export it as fp32"
            raise LithesegError(f"AI Edge Quantizer cannot quantize this network ({reason}); {remedy}") from error
        return LitertNetwork(int8, self.layout, (lambda name: self._int8(ranges, [_only(name)], ())) if probe else None)

    def layers(self) -> tuple[tuple[str, str], ...]:
        """See `QuantizableNetwork.layers`."""
        return tuple(
            (name, kind) for name, kind, integer in _operations(self.model) if integer and kind not in _PASSING
        )

    def only(self, name: str) -> QuantizableNetwork:
        """See `QuantizableNetwork.only`."""
        assert self._alone is not None, "of a probe"
        return LitertNetwork(self._alone(name), self.layout)

    def write(self, path: Path, text: str = "") -> tuple[Path, ...]:
        """See `QuantizableNetwork.write`."""
        path.write_bytes(self.model)
        if text:
            append_description(path, text)
        return (path,)

    def _ranges_on(self, images: CalibrationImages) -> Any:
        """The range of each tensor's values; found once for the same images."""
        if self._found is None or self._found[0] is not images:
            with _quiet():
                from ai_edge_quantizer import calibrator, recipe_manager
                from ai_edge_quantizer.qtyping import TFLOperationName as Kind

                everything = recipe_manager.RecipeManager()
                everything.add_static_config(_EVERY, Kind.ALL_SUPPORTED, _BITS, _BITS)
                seen = calibrator.Calibrator(bytearray(self.model), num_threads=1)
            with work("calibrating, images", len(images)) as passes:
                for image in images:
                    with _quiet():
                        seen.calibrate({_SIGNATURE: [{_INPUT: self._batch(image)}]}, everything)
                    passes.advance()
            self._found = images, self._exact(seen.get_model_qsvs())
        return self._found[1]

    def _exact(self, ranges: dict[str, Any]) -> dict[str, Any]:
        """The ranges, that of raw pixels all of theirs: so each is an integer, in steps of 1."""
        from ai_edge_litert.tools import flatbuffer_utils

        content = flatbuffer_utils.read_model_from_bytearray(bytearray(self.model))
        cast = _pixels(content)
        name = None if cast is None else _name(content.subgraphs[0].tensors[cast.outputs[0]])
        if name in ranges:
            ends = {"min": 0, "max": 255}
            ranges[name] = {end: np.full_like(ranges[name][end], value) for end, value in ends.items()}
        return ranges

    def _int8(self, ranges: Any, layers: Iterable[str], kept: Iterable[str]) -> bytes:
        """The content, of which the layers that match run in int8, less those that are kept."""
        with _quiet():
            from ai_edge_quantizer import quantizer
            from ai_edge_quantizer.algorithm_manager import AlgorithmName
            from ai_edge_quantizer.qtyping import TFLOperationName as Kind

            made = quantizer.Quantizer(bytearray(self.model))
            for pattern in layers:
                made.add_static_config(pattern, Kind.ALL_SUPPORTED, _BITS, _BITS)
            float32 = {"algorithm_key": AlgorithmName.NO_QUANTIZE}
            for name in kept:
                made.update_quantization_recipe(_only(name), Kind.ALL_SUPPORTED, **float32)
            made.update_quantization_recipe(_EVERY, Kind.OUTPUT, **float32)
            how = {"enable_progress_bar": False, "enable_progress_report": False}
            return _integral(made.quantize(ranges, **how).quantized_model)


def _only(name: str) -> str:
    """The pattern of one layer: the quantizer knows layers by their outputs, each with a semicolon."""
    return f"^{re.escape(name)};$"


def _operations(model: bytes) -> Iterator[tuple[str, str, bool]]:
    """Name, kind, and whether the result is int8, of the operations of a network in running order."""
    from ai_edge_litert.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    [graph] = content.subgraphs
    for step in graph.operators:
        output = graph.tensors[step.outputs[0]]
        yield _name(output), str(flatbuffer_utils.opcode_to_name(content, step.opcodeIndex)), output.type == _INT8


def _pixels(content: Any) -> Any:
    """The step that makes raw uint8 pixels float32; None where there is none."""
    [graph], [image] = content.subgraphs, content.subgraphs[0].inputs
    first = graph.operators[0]
    return first if list(first.inputs) == [image] and graph.tensors[image].type == _UINT8 else None


def _integral(model: bytes) -> bytes:
    """An int8 network without the float32 of its pixels: their int8, in steps of 1, is made of uint8."""
    from ai_edge_litert.schema_py_generated import QuantizationParametersT
    from ai_edge_litert.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    [graph], cast = content.subgraphs, _pixels(content)
    readers = [step for step in graph.operators if cast is not None and cast.outputs[0] in step.inputs]
    if [flatbuffer_utils.opcode_to_name(content, step.opcodeIndex) for step in readers] != ["QUANTIZE"]:
        return model  # float32 is what the next layer wants
    image = graph.tensors[graph.inputs[0]]
    image.quantization = QuantizationParametersT()
    image.quantization.scale, image.quantization.zeroPoint = [1.0], [0]
    readers[0].inputs = list(graph.inputs)
    graph.operators.remove(cast)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def _name(tensor: Any) -> str:
    return tensor.name.decode() if isinstance(tensor.name, bytes) else str(tensor.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer without its bars and remarks."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
