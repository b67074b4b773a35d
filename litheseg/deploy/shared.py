"""Several widths in ONNX that share one file of weights.

The channels of a narrower network are channels of the whole one, times what its own batch norms amount to. So what any
of the widths has of the weights is stored once, as trained, and every width's graph begins by taking rows and columns
and multiplying by factors, which runtimes do once, at loading. Only weights for which this gives the same bits are
shared; others, such as those of re-parameterised blocks, stay in the file of their width.

How layers shrink is found by numbering the weights, extracting the width, and seeing which numbers are left.

Usage:
    >>> share_weights({1.0: wide, 0.5: narrow}, bundle, Path("weights.bin"))  # onnx.ModelProto, changed in place
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from litheseg.deploy.network import fold_batch_norms
from litheseg.models.bundle import Bundle
from litheseg.nn import extract

__all__ = ["share_weights"]

_ALIGNMENT = 4096  # bytes; runtimes map files into memory by pages
_SMALL = 1024  # bytes; below, sharing costs more than it saves
_PREFIX = "network."  # of names, see `litheseg.deploy.network.Deployed`


@dataclass(frozen=True)
class _Part:
    """A weight as a part of the full one: ``full[rows][:, columns] * factors``."""

    full: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    factors: np.ndarray | None = None

    @property
    def value(self) -> np.ndarray:
        taken = self.full[self.rows][:, self.columns]
        return taken if self.factors is None else taken * self.factors


def share_weights(models: Mapping[float, Any], bundle: Bundle, path: Path) -> None:
    """Move the weights that widths have in common to one file beside them.

    Args:
        models: `onnx.ModelProto` by width, as `litheseg.deploy.onnx.onnx_model` makes them of this bundle; changed.
        bundle: whose widths they are.
        path: the file of weights, in the folder where the models will be.

    Raises:
        OSError: the file cannot be written.
    """
    elastic = bundle.model()
    numbered, full = _numbered(elastic)
    shared = {width: _shared(model, _parts(elastic, numbered, full, width)) for width, model in models.items()}
    with path.open("wb") as file:
        used = defaultdict[str, list[_Part]](list)
        for parts in shared.values():
            for name, part in parts.items():
                used[name].append(part)
        stored = {name: _Stored(file, path.name, parts) for name, parts in used.items()}
        for width, model in models.items():
            nodes: list[Any] = []
            for initializer in list(model.graph.initializer):
                if (name := _layer(initializer)) in shared[width]:
                    part = stored[name].part(shared[width][name])
                    nodes += _replace(model.graph, initializer, part, stored[name].place)
            rest = list(model.graph.node)
            del model.graph.node[:]
            model.graph.node.extend([*nodes, *rest])


class _Stored:
    """What any of the widths has of a weight, in the file.

    Attributes:
        place: where it is, as ONNX puts it.
    """

    def __init__(self, file: BinaryIO, name: str, parts: Sequence[_Part]) -> None:
        self._rows = np.unique(np.concatenate([part.rows for part in parts]))
        self._columns = np.unique(np.concatenate([part.columns for part in parts]))
        self._weight = parts[0].full[self._rows][:, self._columns]
        self.place = _append(file, self._weight, name)

    def part(self, part: _Part) -> _Part:
        """A part of the full weight as a part of what is stored."""
        rows, columns = np.searchsorted(self._rows, part.rows), np.searchsorted(self._columns, part.columns)
        return _Part(self._weight, rows, columns, part.factors)


def _layer(initializer: Any) -> str:
    return str(initializer.name).removeprefix(_PREFIX).removesuffix(".weight")


def _shared(model: Any, parts: Mapping[str, Sequence[_Part]]) -> dict[str, _Part]:
    """The weights of a network that are parts of the full ones, bit by bit, by layer."""
    from onnx.numpy_helper import to_array

    found = {}
    for initializer in model.graph.initializer:
        for part in parts.get(_layer(initializer), ()):
            if np.array_equal(part.value, to_array(initializer)):
                found[_layer(initializer)] = part
                break
    return found


def _numbered(elastic: nn.Module) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A copy whose weights are numbered from 0 to their size, and the weights that stood there, by layer."""
    numbered, full = copy.deepcopy(elastic), {}
    for name, layer in numbered.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4 and weight.nbytes >= _SMALL:
            full[name] = weight.detach().numpy()
            layer.weight = nn.Parameter(torch.arange(weight.numel(), dtype=torch.float64).view_as(weight))
    return numbered, full


def _parts(
    elastic: nn.Module, numbered: nn.Module, full: Mapping[str, np.ndarray], width: float
) -> dict[str, list[_Part]]:
    """What the weight of each layer may be a part of, by the layer's name; it remains to be seen whether it is."""
    left = {name: layer.weight for name, layer in extract(numbered, width).named_modules() if name in full}
    factors = fold_batch_norms(extract(elastic, width))
    return {name: list(_candidates(full[name], numbers, factors.get(name))) for name, numbers in left.items()}  # type: ignore[arg-type]


def _candidates(full: np.ndarray, numbers: Tensor, factors: Tensor | None) -> Iterator[_Part]:
    """The part of which these numbers are left; factors go by rows, or by columns if the convolution is transposed."""
    per_row, per_column = full[0].size, full[0, 0].size
    positions = numbers.detach().numpy().astype(np.int64).clip(0, full.size - 1)
    rows, columns = positions[:, 0, 0, 0] // per_row, positions[0, :, 0, 0] % per_row // per_column
    if factors is None:
        yield _Part(full, rows, columns)
        return
    for axis, extent in ((0, len(rows)), (1, len(columns))):
        if len(factors) == extent:
            yield _Part(full, rows, columns, factors.numpy().reshape([-1 if i == axis else 1 for i in range(4)]))


def _append(file: BinaryIO, weight: np.ndarray, name: str) -> dict[str, str]:
    """Write a tensor; returns where it is, as ONNX puts it."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    place = {"location": name, "offset": str(file.tell()), "length": str(weight.nbytes)}
    file.write(np.ascontiguousarray(weight, "<f4").tobytes())
    return place


def _replace(graph: Any, initializer: Any, part: _Part, place: Mapping[str, str]) -> list[Any]:
    """Put nodes that make the weight in the place of the weight; returns them."""
    from onnx import TensorProto, helper, numpy_helper

    name, steps = initializer.name, list(_steps(part))
    names = [f"{name}.{index}" for index in range(len(steps))] + [name]  # of what goes in and, at last, what comes out
    graph.initializer.remove(initializer)
    full = graph.initializer.add(name=names[0], data_type=TensorProto.FLOAT, dims=part.full.shape)
    full.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        full.external_data.add(key=key, value=value)
    nodes = []
    for index, (kind, constants, attributes) in enumerate(steps):
        inputs = [f"{name}.{index}.{position}" for position in range(len(constants))]
        graph.initializer.extend(map(numpy_helper.from_array, constants, inputs))
        nodes.append(helper.make_node(kind, [names[index], *inputs], [names[index + 1]], **attributes))
    return nodes


def _steps(part: _Part) -> Iterator[tuple[str, list[np.ndarray], dict[str, Any]]]:
    """Operators from the full weight to the part, with their constants and attributes."""
    for axis, kept in enumerate((part.rows, part.columns)):
        count = len(kept)
        if not np.array_equal(kept, np.arange(count)):
            yield "Gather", [kept], {"axis": axis}
        elif count < part.full.shape[axis]:
            yield "Slice", [np.array([end]) for end in (0, count, axis)], {}
    if part.factors is not None:
        yield "Mul", [part.factors], {}
