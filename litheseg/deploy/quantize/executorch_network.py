"""ExecuTorch networks: PyTorch's graph is quantized for XNNPACK, and then converted; a program cannot be read back.

Weights become int8, symmetric, with one scale per output channel; activations int8 with a zero point of their own, over
the range that the images give, on average. Biases are not corrected. The normalisation of the image stays in floating
point, and so does what XNNPACK has in no other. Layers are ranked in PyTorch, which computes the quantized graph step
by step: to convert it for each of them would take minutes.

Usage:
    >>> network = ExecutorchNetwork.read(Path("street.pte"), "NHWC", lambda: Conversion(deployed(bundle, 0.5), size))
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from litheseg.bundle.description import append_description
from litheseg.deploy.conversion import Conversion, quiet
from litheseg.deploy.executorch import FloatsFirst, lowered
from litheseg.deploy.quantize.networks import QuantizableNetwork
from litheseg.deploy.samples import CalibrationImages
from litheseg.deploy.torch_export import export_program, layer_of
from litheseg.errors import LithesegError, MissingExtraError, first_line
from litheseg.progress import work

__all__ = ["ExecutorchNetwork"]

_INPUT = "the input"  # what `layer_of` calls operators outside of layers


class ExecutorchNetwork(QuantizableNetwork):
    """A graph of PyTorch; see `QuantizableNetwork`.

    Args:
        model: the graph; of an int8 network with its steps from and to integers.
        layout: of its input, "NHWC" or "NCHW".
        example: an input, black.
        alone: of a probe: the graph in which one layer alone runs in int8, by its name.
    """

    suffix, libraries, corrects_biases = ".pte", ("executorch", "torchao"), False

    def __init__(
        self, model: Any, layout: str, example: torch.Tensor, alone: Callable[[str], Any] | None = None
    ) -> None:
        super().__init__(model, layout)
        self._example, self._alone, self.simulated = example, alone, self._simulated

    @classmethod
    def require(cls) -> None:
        """See `QuantizableNetwork.require`."""
        for package in cls.libraries:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "executorch", "int8 in ExecuTorch")

    @classmethod
    def read(cls, path: Path, layout: str, source: Callable[[], Conversion] | None = None) -> QuantizableNetwork:
        """See `QuantizableNetwork.read`."""
        cls.require()
        assert source is not None, f"{path} is made of a network in PyTorch"
        conversion = source()
        assert conversion.size is not None, "ExecuTorch plans memory for one size"
        program = export_program(FloatsFirst.of(conversion.network), conversion.size)
        return cls(program.module(), layout, conversion.network.example(conversion.size))

    def quantized(
        self, images: CalibrationImages, *, kept: Collection[str] = (), corrected: bool = True, probe: bool = False
    ) -> QuantizableNetwork:
        """See `QuantizableNetwork.quantized`."""
        seen = list(images) if probe else images  # a probe goes through its few images again for every layer
        model = self._int8(seen, lambda name: name not in kept)
        alone = (lambda name: self._int8(seen, lambda other: other == name)) if probe else None
        return ExecutorchNetwork(model, self.layout, self._example, alone)

    def layers(self) -> tuple[tuple[str, str], ...]:
        """See `QuantizableNetwork.layers`; additions and the like are one layer, called after what holds them."""
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

        computing = {kind for pattern in XNNPACKQuantizer.SUPPORTED_PATTERNS for kind in pattern.op_overloads}
        kinds: dict[str, str] = {}
        for node in self.model.graph.nodes:
            if node.target in computing and any("dequantize" in str(value.target) for value in node.all_input_nodes):
                kinds.setdefault(layer_of(node), node.target.name().partition("::")[2])
        return tuple(kinds.items())

    def only(self, name: str) -> QuantizableNetwork:
        """See `QuantizableNetwork.only`."""
        assert self._alone is not None, "of a probe"
        return ExecutorchNetwork(self._alone(name), self.layout, self._example)

    @torch.no_grad()
    def _simulated(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(self.model(torch.from_numpy(self._batch(image)))[0].numpy())

    def write(self, path: Path, text: str = "") -> tuple[Path, ...]:
        """See `QuantizableNetwork.write`."""
        with work("converting to ExecuTorch"), quiet():
            _, content = lowered(torch.export.export(self.model, (self._example,)))
        path.write_bytes(content)
        if text:
            append_description(path, text)
        return (path,)

    @torch.no_grad()
    def _int8(self, images: Any, chosen: Callable[[str], bool]) -> Any:
        """The graph, of which the layers of these names run in int8."""
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = XNNPACKQuantizer().set_global(_configuration(len(images)))
        quantizer.set_filter_function(lambda node: _takes_part(node, chosen))
        try:
            with quiet():
                prepared = prepare_pt2e(copy.deepcopy(self.model), quantizer)
            with work("calibrating, images", len(images)) as passes:
                for image in images:
                    prepared(torch.from_numpy(self._batch(image)))
                    passes.advance()
            with quiet():
                return convert_pt2e(prepared)
        except LithesegError:  # an image that cannot be read
            raise
        except Exception as error:  # the quantizer has no class for what it cannot do
            raise LithesegError(
                f"torchao cannot quantize this network ({first_line(error)}); export it as fp32"
            ) from error


def _takes_part(node: fx.Node, chosen: Callable[[str], bool]) -> bool:
    """Whether an operator is of a chosen layer; a ReLU goes with the layer before it, weights with any."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import is_relu_node

    if is_relu_node(node):
        node = node.all_input_nodes[0]
    return node.op != "call_function" or (layer_of(node) != _INPUT and chosen(layer_of(node)))


def _configuration(images: int) -> Any:
    """XNNPACK's own, but ranges are averages over the images, which take no histogram of each activation."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MovingAverageMinMaxObserver

    usual = get_symmetric_quantization_config(is_per_channel=True)
    observer = MovingAverageMinMaxObserver.with_args(averaging_constant=1 / images, eps=2**-12)
    ranges = replace(usual.input_activation, observer_or_fake_quant_ctr=observer)
    return replace(usual, input_activation=ranges, output_activation=ranges)
