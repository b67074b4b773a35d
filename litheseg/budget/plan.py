"""Grouping obeys the clock: which grouped convolutions are faster as dense ones, on this machine and in this runtime.

A grouped convolution is a dense one whose weight is zero outside the diagonal blocks. Fewer multiplications are not
always less time: where a runtime's grouped kernel is slower than its dense one, the dense layer with zeros computes the
same function and is deployed instead. Each layer is timed alone, in float32, at the size of its own input, in turns
with its dense twin; the twin has to be faster by 3 % to be taken. Which layers those are is a plan, kept per width,
input size, runtime and threads, as JSON, and used again with `--plan`.

It does not know whole networks' time: a runtime may fuse a layer with its neighbours. `fit` times what it deploys.

Usage:
    >>> spot = Spot(0.5, (360, 480), "openvino", threads=2)
    >>> plan.measure(bundle.plain(0.5), spot)
    >>> deployed = replace(bundle, dense=plan.dense(spot)).plain(0.5)
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from litheseg.errors import LithesegError, MissingExtraError
from litheseg.files import atomic_path
from litheseg.machine import host_facts, interleave
from litheseg.models.inference import threads_limited
from litheseg.nn.surgery import grouped_layers, to_dense
from litheseg.runtime.engines import openvino_core, session_options

__all__ = [
    "Geometry",
    "LayerTimes",
    "Plan",
    "Spot",
    "geometries",
    "load_plan",
    "measure_layers",
]

PLAN_VERSION = 1
_FASTER = 0.97  # what the dense layer's time must be below, as a share of the grouped one's
_OPSET, _IR_VERSION = 17, 8

Call = Callable[[], Any]


class Spot(NamedTuple):
    """Where a plan holds."""

    width: float
    size: tuple[int, int]
    runtime: str
    threads: int


class Geometry(NamedTuple):
    """All of a grouped convolution that time depends on."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]


@dataclass(frozen=True)
class LayerTimes:
    """Median milliseconds of one layer, grouped and as a dense one."""

    grouped_ms: float
    dense_ms: float

    @property
    def dense(self) -> bool:
        """Whether it had better be dense."""
        return self.dense_ms < _FASTER * self.grouped_ms


@dataclass
class Plan:
    """Which layers stay dense, by spot.

    Attributes:
        model: digest of the model (`litheseg.budget.store.model_digest`).
        host: facts of the machine that it was measured on.
        entries: spot -> name of each grouped layer -> its times.
    """

    model: str = ""
    host: Mapping[str, Any] = field(default_factory=host_facts)
    entries: dict[Spot, dict[str, LayerTimes]] = field(default_factory=dict)

    def measure(self, module: nn.Module, spot: Spot, **measuring: Any) -> None:
        """Add a spot, unless it is known; layers of a geometry that is known there are not timed again.

        Args:
            module: the plain network of the spot's width.
            spot: where.
            **measuring: further arguments of `measure_layers`.
        """
        if spot not in self.entries:
            wanted = geometries(module, spot.size)
            times = measure_layers(set(wanted.values()), spot.runtime, spot.threads, **measuring)
            self.entries[spot] = {name: times[geometry] for name, geometry in wanted.items()}

    def dense(self, spot: Spot) -> tuple[str, ...]:
        """Names of the layers that stay dense at a spot; none where it is not known."""
        return tuple(name for name, times in self.entries.get(spot, {}).items() if times.dense)

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            LithesegError: the file cannot be written.
        """
        entries = [
            {
                **spot._asdict(),
                "layers": {name: asdict(times) | {"dense": times.dense} for name, times in layers.items()},
            }
            for spot, layers in self.entries.items()
        ]
        content = {"litheseg": "plan", "version": PLAN_VERSION, "model": self.model, "host": self.host}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({**content, "entries": entries}, indent=1) + "\n", encoding="utf-8")


def load_plan(path: Path, model: str) -> Plan:
    """Read a plan.

    Args:
        path: a file that `Plan.save` wrote.
        model: digest of the model that it must be of.

    Raises:
        LithesegError: the file cannot be read, is no plan, or is one of another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["litheseg"], content["version"]) != ("plan", PLAN_VERSION):
            raise ValueError(f"it is '{content['litheseg']}' of version {content['version']}")
        entries = {_spot(entry): _layers(entry["layers"]) for entry in content["entries"]}
        plan = Plan(str(content["model"]), content["host"], entries)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LithesegError(f"{path} is no plan ({error}); leave out --plan to measure one") from error
    if plan.model != model:
        raise LithesegError(f"{path} is the plan of another model; leave out --plan to measure one for this model")
    return plan


def geometries(module: nn.Module, size: tuple[int, int]) -> dict[str, Geometry]:
    """Of every grouped layer that runs, by name.

    Args:
        module: takes 1 x 3 x H x W.
        size: H and W.
    """
    found: dict[str, Geometry] = {}

    def record(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.setdefault(name, _geometry(layer, args[0]))

    probe = copy.deepcopy(module).to("meta").eval()
    for name, layer in grouped_layers(probe).items():
        layer.register_forward_pre_hook(partial(record, name))
    with torch.no_grad():
        probe(torch.empty(1, 3, *size, device="meta"))
    return found


def measure_layers(
    wanted: Sequence[Geometry] | set[Geometry],
    runtime: str,
    threads: int,
    *,
    repeats: int = 21,
    opened: Callable[[nn.Conv2d, Geometry, str, int], Call] | None = None,
    **turns: Any,
) -> dict[Geometry, LayerTimes]:
    """Time layers grouped and dense, side by side.

    Args:
        wanted: which.
        runtime: one of `litheseg.bundle.exported.RUNTIMES`.
        threads: of the CPU.
        repeats: timed passes of each layer.
        opened: makes a layer callable in a runtime; tests give their own.
        **turns: further arguments of `litheseg.machine.interleave`.

    Raises:
        MissingExtraError: a runtime that is not installed.
    """
    opened = opened or _opened
    result = {}
    for geometry in sorted(wanted):
        layer = _random_layer(geometry)
        calls = {
            kind: opened(own, geometry, runtime, threads)
            for kind, own in (("grouped", layer), ("dense", to_dense(layer)))
        }
        times: dict[str, list[float]] = interleave(calls, repeats, **turns)
        result[geometry] = LayerTimes(float(np.median(times["grouped"])), float(np.median(times["dense"])))
    return result


def _spot(entry: Mapping[str, Any]) -> Spot:
    height, width = entry["size"]
    return Spot(float(entry["width"]), (int(height), int(width)), str(entry["runtime"]), int(entry["threads"]))


def _layers(content: Mapping[str, Any]) -> dict[str, LayerTimes]:
    return {name: LayerTimes(float(times["grouped_ms"]), float(times["dense_ms"])) for name, times in content.items()}


def _geometry(layer: nn.Conv2d, image: Tensor) -> Geometry:
    def pair(value: Any) -> tuple[int, int]:
        return (int(value[0]), int(value[1]))

    # Only time is asked of it: whatever a padding is called, it is so many pixels.
    sides = layer._reversed_padding_repeated_twice
    padding = (int(sides[2]), int(sides[0]))
    shape = (layer.in_channels, layer.out_channels, pair(layer.kernel_size), pair(layer.stride))
    return Geometry(*shape, padding, pair(layer.dilation), layer.groups, pair(image.shape[-2:]))


def _random_layer(geometry: Geometry) -> nn.Conv2d:
    shape = dict(
        zip(
            ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
            geometry[:7],
            strict=True,
        )
    )
    with torch.random.fork_rng(devices=[]):
        return nn.Conv2d(**shape).eval().requires_grad_(False)  # type: ignore[arg-type]


def _opened(layer: nn.Conv2d, geometry: Geometry, runtime: str, threads: int) -> Call:
    image = np.random.default_rng(0).standard_normal((1, geometry.in_channels, *geometry.size), dtype=np.float32)
    if runtime == "torch":
        return _in_torch(layer, torch.from_numpy(image), threads)
    path_like = _onnx_bytes(layer, geometry)
    return _IN_RUNTIME[runtime](path_like, image, threads)


def _in_torch(layer: nn.Conv2d, image: Tensor, threads: int) -> Call:
    def call() -> Tensor:
        with torch.inference_mode(), threads_limited(threads):
            return layer(image)  # type: ignore[no-any-return]

    return call


def _in_onnxruntime(model: bytes, image: np.ndarray, threads: int) -> Call:
    runtime = _imported("onnxruntime", None)
    session = runtime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": image})


def _in_openvino(model: bytes, image: np.ndarray, threads: int) -> Call:
    core = openvino_core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda: request.infer({0: image}, share_inputs=True)


_IN_RUNTIME = {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino}


def _onnx_bytes(layer: nn.Conv2d, geometry: Geometry) -> bytes:
    """A model of the one layer: written by hand, since exporting takes a thousand times as long."""
    onnx = _imported("onnx", "export")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    tensors = {"w": layer.weight.detach().numpy(), **({} if layer.bias is None else {"b": layer.bias.detach().numpy()})}
    sides = {"strides": layer.stride, "pads": [*geometry.padding, *geometry.padding], "dilations": layer.dilation}
    node = helper.make_node("Conv", ["x", *tensors], ["y"], group=layer.groups, **sides)
    image = helper.make_tensor_value_info("x", kind, [1, geometry.in_channels, *geometry.size])
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph([node], "layer", [image], [helper.make_tensor_value_info("y", kind, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def _imported(package: str, extra: str | None) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, extra, "timing layers in another runtime than PyTorch") from error
