"""Which grouped convolutions are faster as dense ones, on this machine and in this runtime.

A grouped convolution is a dense one whose weight is zero outside the diagonal blocks. Fewer multiplications are not
always less time: where a runtime's grouped kernel is slower than its dense one, the dense layer with zeros computes the
same function and is deployed instead. Each layer is timed alone, in float32, at its input size, in turns with its dense
form, which must be 3 % faster to be used. The result is a plan per width, input size, runtime and threads, kept as JSON
and used again with `--plan`. Depthwise kernels are not timed: 3x3 ones took 1/3 to 1/60 of a dense one's time
(docs/results/gradual-grouping.md). Those of 1x1, which only scale channels, are.

A runtime may fuse a layer with its neighbours, so `fit` also times the whole network.

Usage:
    >>> plan.measure(bundle.plain(0.5), candidate)
    >>> deployed = replace(bundle, dense=plan.dense(candidate)).plain(0.5)
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from litheseg.budget.candidates import Candidate
from litheseg.errors import LithesegError, MissingExtraError
from litheseg.files import write_text
from litheseg.machine import host_facts, interleave
from litheseg.nn.surgery import grouped_layers, to_dense
from litheseg.nn.watching import image_channels
from litheseg.progress import work
from litheseg.runtime.in_onnxruntime import session_options
from litheseg.runtime.in_openvino import openvino_core

__all__ = ["DensePlan", "LayerTimes", "grouped_inputs", "open_layer", "time_layer", "timed_layers"]

_VERSION = 1
_FASTER = 0.97  # what the dense layer's time must be below, as a share of the grouped one's
_OPSET, _IR_VERSION = 17, 8
_REPEATS = 21


@dataclass(frozen=True)
class LayerTimes:
    """Median milliseconds of one layer, grouped and as a dense one."""

    grouped_ms: float
    dense_ms: float

    @property
    def dense(self) -> bool:
        """Whether the layer is to be dense."""
        return self.dense_ms < _FASTER * self.grouped_ms


@dataclass
class DensePlan:
    """Which layers stay dense.

    Attributes:
        model: digest of the model (`litheseg.models.bundle.model_digest`).
        host: facts of the machine that it was measured on.
        entries: candidate in fp32 -> name of each grouped layer -> its times.
        file: where it is saved whenever a candidate is added; None for nowhere.
    """

    model: str = ""
    host: Mapping[str, Any] = field(default_factory=host_facts)
    entries: dict[Candidate, dict[str, LayerTimes]] = field(default_factory=dict)
    file: Path | None = None

    def measure(self, module: nn.Module, candidate: Candidate, **turns: Any) -> None:
        """Add a candidate, unless it is known; layers that differ in weights only are timed once.

        Args:
            module: the plain network of the candidate's width.
            candidate: which.
            **turns: further arguments of `time_layer`.

        Raises:
            MissingExtraError: a runtime that is not installed.
        """
        if self.knows(candidate):
            return
        layers = grouped_inputs(module, candidate.network.size)
        times: dict[tuple[str, tuple[int, int]], LayerTimes] = {}
        with work(f"timing the grouped layers of {candidate.name}", len(layers), still=True) as timed:
            for layer, size in layers.values():
                if (str(layer), size) not in times:
                    times[str(layer), size] = time_layer(layer, size, candidate.runtime, candidate.threads, **turns)
                timed.advance()
        self.entries[_in_fp32(candidate)] = {name: times[str(layer), size] for name, (layer, size) in layers.items()}
        if self.file is not None:
            self.save(self.file)

    def knows(self, candidate: Candidate) -> bool:
        """Whether the candidate was measured."""
        return _in_fp32(candidate) in self.entries

    def dense(self, candidate: Candidate) -> tuple[str, ...]:
        """Names of the layers that stay dense; none where the candidate was not measured."""
        entry = self.entries.get(_in_fp32(candidate), {})
        return tuple(name for name, times in entry.items() if times.dense)

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            LithesegError: the file cannot be written.
        """
        entries = [
            {
                **candidate.to_dict(),
                "layers": {name: {**asdict(times), "dense": times.dense} for name, times in layers.items()},
            }
            for candidate, layers in self.entries.items()
        ]
        content = {"litheseg": "plan", "version": _VERSION, "model": self.model, "host": self.host, "entries": entries}
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, model: str, *, file: Path | None = None) -> DensePlan:
        """Read a plan.

        Args:
            path: a file that `save` wrote.
            model: digest of the model that it must be of.
            file: where further candidates are saved.

        Raises:
            LithesegError: the file cannot be read, is no plan, or is one of another model.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content["litheseg"], content["version"]) != ("plan", _VERSION):
                raise ValueError(f"it is '{content['litheseg']}' of version {content['version']}")
            entries = {Candidate.from_dict(entry): _layers(entry["layers"]) for entry in content["entries"]}
            plan = cls(str(content["model"]), content["host"], entries, file)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise LithesegError(f"{path} is no plan ({error}); leave out --plan to measure one") from error
        if plan.model != model:
            raise LithesegError(f"{path} is the plan of another model; leave out --plan to measure one for this model")
        return plan


def _in_fp32(candidate: Candidate) -> Candidate:
    return replace(candidate, network=candidate.network._replace(precision="fp32"))


def _layers(content: Mapping[str, Any]) -> dict[str, LayerTimes]:
    return {name: LayerTimes(float(times["grouped_ms"]), float(times["dense_ms"])) for name, times in content.items()}


def timed_layers(module: nn.Module) -> dict[str, nn.Conv2d]:
    """The grouped convolutions of a network that may be faster as dense ones, by name."""

    def hopeless(layer: nn.Conv2d) -> bool:
        return layer.groups == layer.in_channels and math.prod(layer.kernel_size) > 1

    return {name: layer for name, layer in grouped_layers(module).items() if not hopeless(layer)}


def grouped_inputs(module: nn.Module, size: tuple[int, int]) -> dict[str, tuple[nn.Conv2d, tuple[int, int]]]:
    """Every one of the `timed_layers` that runs, by name, with the height and width of its input.

    Args:
        module: takes 1 x 3 x H x W.
        size: H and W.
    """
    found: dict[str, tuple[nn.Conv2d, tuple[int, int]]] = {}
    layers = timed_layers(module)

    def record(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        height, width = args[0].shape[-2:]
        found.setdefault(name, (layers[name], (height, width)))

    probe = copy.deepcopy(module).to("meta").eval()
    for name, layer in timed_layers(probe).items():
        layer.register_forward_pre_hook(partial(record, name))
    with torch.no_grad():
        probe(torch.empty(1, image_channels(probe), *size, device="meta"))
    return found


def time_layer(
    layer: nn.Conv2d, size: tuple[int, int], runtime: str, threads: int, *, repeats: int = _REPEATS, **turns: Any
) -> LayerTimes:
    """Time a layer grouped and dense, in turns.

    Args:
        layer: a grouped one.
        size: height and width of its input.
        runtime: "onnxruntime" or "openvino".
        threads: of the CPU.
        repeats: timed passes of each.
        **turns: further arguments of `litheseg.machine.interleave`.

    Raises:
        MissingExtraError: a runtime that is not installed.
    """
    forms = {"grouped": layer, "dense": to_dense(layer)}
    calls = {name: open_layer(form, size, runtime, threads) for name, form in forms.items()}
    times: dict[str, list[float]] = interleave(calls, repeats, **turns)
    return LayerTimes(median(times["grouped"]), median(times["dense"]))


def open_layer(layer: nn.Conv2d, size: tuple[int, int], runtime: str, threads: int) -> Callable[[], Any]:
    """One pass of a layer in a runtime, over an image of noise; arguments as `time_layer`."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export", "timing layers in another runtime than PyTorch") from error
    image = np.random.default_rng(0).standard_normal((1, layer.in_channels, *size), dtype=np.float32)
    model = _onnx_bytes(onnx, layer, size)
    if runtime == "openvino":
        core = openvino_core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
        return lambda: request.infer({0: image}, share_inputs=True)
    session = onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": image})


def _onnx_bytes(onnx: Any, layer: nn.Conv2d, size: tuple[int, int]) -> bytes:
    """A model of the one layer: written by hand, since exporting takes a thousand times as long."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    tensors = {"w": layer.weight.detach().numpy(), **({} if layer.bias is None else {"b": layer.bias.detach().numpy()})}
    left, right, top, bottom = layer._reversed_padding_repeated_twice  # pixels, also for padding given by name
    sides = {"strides": layer.stride, "pads": [top, left, bottom, right], "dilations": layer.dilation}
    node = helper.make_node("Conv", ["x", *tensors], ["y"], group=layer.groups, **sides)
    image = helper.make_tensor_value_info("x", kind, [1, layer.in_channels, *size])
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph([node], "layer", [image], [helper.make_tensor_value_info("y", kind, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())
