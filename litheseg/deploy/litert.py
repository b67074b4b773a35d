"""A network as a LiteRT file (.tflite, the format of TensorFlow Lite), converted in this process by litert-torch.

The image stays 1 x H x W x C, which is LiteRT's own order: the converter turns the convolutions to it, and what is left
is one transposition, of the logits. The size is fixed; the converter has none that is open.

An average pool that leaves its padding out of the count has no operator in LiteRT, save where LiteRT by itself would
pad just so. The converter falls back on a general reduction, slow and without int8. Here such a pool becomes one that
counts its padding, times a constant: how much more of a window there is than of the image in it. And the normalisation
becomes a convolution of each channel with one number, since of integers that is one step, rounded once.

Usage:
    >>> save_litert(litert_model(deployed(bundle, 0.5), (360, 480)), Path("street.tflite"), text)
"""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.bundle.description import append_description
from litheseg.deploy.conversion import Conversion, quiet
from litheseg.deploy.network import Deployed
from litheseg.deploy.torch_export import layer_of
from litheseg.errors import LithesegError, MissingExtraError, ModelError, first_line, innermost
from litheseg.progress import work

__all__ = ["LIBRARIES", "USAGE", "litert_model", "save_litert", "write"]

LIBRARIES = ("litert-torch", "ai-edge-litert")
USAGE = (
    "from ai_edge_litert.interpreter import Interpreter",
    '[result] = Interpreter("{path}").get_signature_runner()(image=image).values()',
)
_OLDEST = (0, 10)  # of the converter


def write(conversion: Conversion, path: Path, text: str) -> None:
    """See `litheseg.deploy.conversion`."""
    save_litert(litert_model(conversion.network, conversion.size), path, text)


def litert_model(network: Deployed, size: tuple[int, int] | None) -> bytes:
    """The content of a .tflite file.

    Args:
        network: in evaluation mode.
        size: height and width of its input in pixels.

    Raises:
        LithesegError: no size is given, or the converter is too old.
        MissingExtraError: the converter is not installed.
        ModelError: an operator that LiteRT lacks; names it, and the layer.
    """
    if size is None:
        raise LithesegError("a network in LiteRT takes one size of images; give it (--size HxW), or another format")
    litert_torch, example = _converter(), {"image": network.example(size)}
    named = _Named(_Prepared(network)).eval()
    try:
        with work("converting to LiteRT"), quiet():
            return _renamed(litert_torch.convert(named, sample_kwargs=example).model_content(), network)
    except Exception as error:  # each step of the converter has errors of its own
        reason, remedy = _reason(error), "export to onnx or torch instead"
        raise ModelError(f"LiteRT cannot hold this network ({reason}); {remedy}") from error


def save_litert(content: bytes, path: Path, text: str = "") -> None:
    """Write a file, with `text` behind the network, where LiteRT does not look.

    Raises:
        OSError: it cannot be written.
    """
    path.write_bytes(content)
    if text:
        append_description(path, text)


def _converter() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # looked at once, when it is imported
    try:
        with quiet():
            import litert_torch
    except ImportError as error:
        raise MissingExtraError("litert-torch", "litert-export", "export to LiteRT") from error
    found = version("litert-torch")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise LithesegError(
            f"litert-torch {found} is too old to convert these networks; pip install --upgrade 'litert-torch>={oldest}'"
        )
    litert_torch.config.show_progress = False
    return litert_torch


class _Prepared(Deployed):
    """A network as the converter is given it."""

    def __init__(self, network: Deployed) -> None:
        inner = _without_uneven_pools(network.network)
        super().__init__(inner, network.images, layout=network.layout, output=network.output)

    def normalised(self, planes: Tensor) -> Tensor:
        return F.conv2d(planes, self.gain.view(-1, 1, 1, 1), self.offset.view(-1), groups=self.images.channels)


class _Named(nn.Module):
    """A network whose output has a name, which becomes the one in the file."""

    def __init__(self, network: Deployed) -> None:
        super().__init__()
        self.deployed = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {self.deployed.output: self.deployed(image)}


class _CountedPool(nn.Module):
    """What an `nn.AvgPool2d` with ``count_include_pad=False`` computes, by way of one with True."""

    def __init__(self, pool: nn.AvgPool2d) -> None:
        super().__init__()
        self._arguments = tuple(_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = self._arguments
        mean = F.avg_pool2d(x, kernel, stride, padding)
        sides = (
            [k / (min(i * s - p + k, extent) - max(i * s - p, 0)) for i in range(count)]
            for k, s, p, extent, count in zip(kernel, stride, padding, x.shape[2:], mean.shape[2:], strict=True)
        )
        rows, columns = sides
        return mean * torch.tensor([[row * column for column in columns] for row in rows])


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _without_uneven_pools(network: nn.Module) -> nn.Module:
    """A copy in which pools that leave out the padding are computed otherwise."""
    made = copy.deepcopy(network)
    for name, pool in list(made.named_modules()):
        uneven = isinstance(pool, nn.AvgPool2d) and any(_pair(pool.padding)) and not pool.count_include_pad
        if uneven and not pool.ceil_mode and pool.divisor_override is None:
            made.set_submodule(name, _CountedPool(pool))
    return made


def _renamed(content: bytes, network: Deployed) -> bytes:
    """The same network, its layers called as in PyTorch, where the converter names the classes of all around them.

    Layers are known again by their weights. Another operator is called after the last layer before it, as in
    ``decoder.merge.0.resize_bilinear``; a second one of the same name has a number.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    weights = {name: weight for name, weight in network.network.named_parameters() if weight.ndim > 1}
    layers = {_sorted(weight.numpy()): name.rpartition(".")[0] for name, weight in weights.items()}
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    [graph], seen, last = model.subgraphs, Counter[str](), ""
    for step in graph.operators:
        constants = {index: model.buffers[graph.tensors[index].buffer].data for index in step.inputs if index >= 0}
        constants = {index: data for index, data in constants.items() if data is not None}
        stored = (_sorted(np.array(data).view(np.float32)) for data in constants.values() if len(data) % 4 == 0)
        known = next((layers[values] for values in stored if values in layers), "")
        kind = str(flatbuffer_utils.opcode_to_name(model, step.opcodeIndex)).lower()
        last, name = known or last, known or f"{last}.{kind}".lstrip(".")
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name}#{seen[name]}"
        for place, index in enumerate((*step.outputs, *constants)):
            graph.tensors[index].name = f"{name}:{place}" if place else name
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _sorted(values: np.ndarray) -> bytes:
    """Numbers in whatever order and shape."""
    return bytes(np.sort(values, axis=None).tobytes())


def _reason(error: BaseException) -> str:
    """What went wrong: in a word of the converter's, with the operator and the layer where it was."""
    error = innermost(error)
    said = first_line(error)
    node, frame = None, error.__traceback__
    while frame is not None:
        here = frame.tb_frame.f_locals.get("node")
        node, frame = here if isinstance(here, torch.fx.Node) else node, frame.tb_next
    if node is None:
        return said
    return f"{said}, operator {node.target} in layer {layer_of(node).removeprefix('deployed.network.')}"
