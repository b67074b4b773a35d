"""Compute a Core ML program in PyTorch, operator by operator, as Apple defines them: a check where Core ML is not.

Core ML runs on Apple's systems only. Elsewhere the file is read back as it was written, weights and all, and computed
here: what was converted wrongly (a weight, a padding, how a map is resized) shows in its labels. Apple's own kernels,
and the device's arithmetic, do not; a benchmark kit checks these on a Mac.

Definitions: apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html

Usage:
    >>> program = CoreMlProgram.read(Path("street.mlpackage"))
    >>> logits = program(torch.zeros(1, 3, 360, 480))  # values from 0 to 255
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.errors import LithesegError

__all__ = ["WEIGHTS", "CoreMlProgram"]

WEIGHTS = Path("Data/com.apple.CoreML/weights")
"""Where a package has them."""

Values = Mapping[str, Any]


class CoreMlProgram:
    """A program that was read.

    Args:
        operations: as coremltools holds them, in the order in which they run.
        input: the name of its only input.
        output: the name of its only output.
    """

    def __init__(self, operations: Sequence[Any], input: str, output: str) -> None:
        self._operations = [operation for operation in operations if operation.op_type != "const"]
        self._input, self._output = input, output

    @classmethod
    def read(cls, path: Path) -> CoreMlProgram:
        """The program of a package (.mlpackage)."""
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
        main = load(spec, spec.specificationVersion, str(path / WEIGHTS)).functions["main"]
        return cls(main.operations, next(iter(main.inputs)), main.outputs[0].name)

    @property
    def operators(self) -> Counter[str]:
        """How often it has each."""
        return Counter(operation.op_type for operation in self._operations)

    @property
    def weights(self) -> list[np.ndarray]:
        """The weights of its convolutions and linear layers."""
        found = (operation.inputs.get("weight") for operation in self._operations)
        return [weight.val for weight in found if weight is not None and weight.val is not None]

    def __call__(self, image: Tensor) -> Tensor:
        """The program's output.

        Args:
            image: float32 1 x C x H x W, as it was decoded.

        Raises:
            LithesegError: an operator that is not known here.
        """
        results: dict[str, Any] = {self._input: image}
        for operation in self._operations:
            if (compute := _OPERATORS.get(operation.op_type)) is None:
                raise LithesegError(
                    f"Core ML's operator '{operation.op_type}' ({operation.name}) is not known here, so the program "
                    "cannot be checked; write it unchecked with --no-check (check=False), and check it on a Mac"
                )
            given = {name: _value(var, results) for name, var in operation.inputs.items() if var is not None}
            outcome = compute(given)
            many = outcome if isinstance(outcome, tuple) else (outcome,)
            results |= {var.name: value for var, value in zip(operation.outputs, many, strict=True)}
        return torch.as_tensor(results[self._output])


def _value(var: Any, results: Mapping[str, Any]) -> Any:
    """A tensor, or what else a constant is; constants of more than a number are tensors too."""
    if isinstance(var, (list, tuple)):
        return [_value(entry, results) for entry in var]
    if var.name in results:
        return results[var.name]
    value = var.val
    return torch.from_numpy(np.array(value)) if isinstance(value, (np.ndarray, np.number, np.bool_)) else value


def _whole(values: Values, name: str, default: Sequence[int]) -> list[int]:
    found = values.get(name)
    return list(default) if found is None else [int(number) for number in found.flatten()]


def _flag(values: Values, name: str) -> bool:
    return bool(values.get(name, False))


def _padding(values: Values, kernel: Sequence[int]) -> list[int]:
    """left, right, top, bottom: as `F.pad` takes them."""
    kind, sizes = values.get("pad_type", "valid"), values["x"].shape[-2:]
    if kind == "valid":
        return [0] * 4
    if kind == "custom":
        top, bottom, left, right = _whole(values, "pad", [0] * 4)
        return [left, right, top, bottom]
    strides, dilations = _whole(values, "strides", (1, 1)), _whole(values, "dilations", (1, 1))
    pads = []
    for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (length - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if kind == "same" else (large, small))
    return [*pads[1], *pads[0]]


def _convolution(values: Values) -> Tensor:
    weight = values["weight"]
    padded = F.pad(values["x"], _padding(values, weight.shape[-2:]))
    how = {"stride": _whole(values, "strides", (1, 1)), "dilation": _whole(values, "dilations", (1, 1))}
    return F.conv2d(padded, weight, values.get("bias"), groups=int(values.get("groups", 1)), **how)


def _transposed(values: Values) -> Tensor:
    weight, strides = values["weight"], _whole(values, "strides", (1, 1))
    how = {"stride": strides, "dilation": _whole(values, "dilations", (1, 1))}
    full = F.conv_transpose2d(values["x"], weight, None, groups=int(values.get("groups", 1)), **how)
    left, right, top, bottom = _padding(values, weight.shape[-2:])
    wanted = _whole(values, "output_shape", (0, 0, full.shape[2] - top - bottom, full.shape[3] - left - right))[-2:]
    cut = full[:, :, top : top + wanted[0], left : left + wanted[1]]
    whole = F.pad(cut, (0, wanted[1] - cut.shape[3], 0, wanted[0] - cut.shape[2]))
    return whole if (bias := values.get("bias")) is None else whole + bias.view(-1, 1, 1)


def _pooled(values: Values, most: bool) -> Tensor:
    kernel = _whole(values, "kernel_sizes", ())
    strides, pads, ceil = _whole(values, "strides", (1, 1)), _padding(values, kernel), _flag(values, "ceil_mode")
    if most:
        return F.max_pool2d(F.pad(values["x"], pads, value=-torch.inf), kernel, strides, ceil_mode=ceil)
    summed = F.avg_pool2d(F.pad(values["x"], pads), kernel, strides, ceil_mode=ceil)
    if not _flag(values, "exclude_padding_from_average"):
        return summed
    inside = F.avg_pool2d(F.pad(torch.ones_like(values["x"][:, :1]), pads), kernel, strides, ceil_mode=ceil)
    return summed / inside


def _scaled(values: Values, mode: str) -> Tensor:
    factors = [float(values[f"scale_factor_{side}"]) for side in ("height", "width")]
    how = {} if mode == "nearest" else {"align_corners": _flag(values, "align_corners")}
    return F.interpolate(values["x"], scale_factor=factors, mode=mode, recompute_scale_factor=False, **how)


def _resized(values: Values) -> Tensor:
    size = [int(values[f"target_size_{side}"]) for side in ("height", "width")]
    corners = {"STRICT_ALIGN_CORNERS": True, "ALIGN_CORNERS": True, "UNALIGN_CORNERS": False}
    if (mode := str(values.get("sampling_mode", "DEFAULT"))) not in corners:
        raise LithesegError(f"Core ML's 'resize_bilinear' with sampling_mode {mode} is not known here")
    return F.interpolate(values["x"], size, mode="bilinear", align_corners=corners[mode])


def _normed(values: Values) -> Tensor:
    given = {"gamma": torch.ones(1), "beta": torch.zeros(1), **values}
    shape = (-1, *[1] * (values["x"].dim() - 2))
    mean, variance, gamma, beta = (given[name].view(shape) for name in ("mean", "variance", "gamma", "beta"))
    return torch.as_tensor((values["x"] - mean) / torch.sqrt(variance + values["epsilon"]) * gamma + beta)


def _layer_normed(values: Values) -> Tensor:
    shape = [values["x"].shape[axis] for axis in _whole(values, "axes", ())]
    return F.layer_norm(values["x"], shape, values.get("gamma"), values.get("beta"), float(values["epsilon"]))


def _product(values: Values) -> Tensor:
    x, y = (values[name].mT if _flag(values, f"transpose_{name}") else values[name] for name in ("x", "y"))
    return torch.as_tensor(x @ y)


def _sliced(values: Values) -> Tensor:
    x = values["x"]
    masks = {name: _whole(values, f"{name}_mask", [0] * x.dim()) for name in ("begin", "end", "squeeze")}
    begins, ends = _whole(values, "begin", ()), _whole(values, "end", ())
    strides, cut = _whole(values, "stride", [1] * x.dim()), []
    for axis in range(x.dim()):
        if masks["squeeze"][axis]:
            cut.append(begins[axis])
        else:
            first = None if masks["begin"][axis] else begins[axis]
            cut.append(slice(first, None if masks["end"][axis] else ends[axis], strides[axis]))  # type: ignore[arg-type]
    return torch.as_tensor(x[tuple(cut)])


def _split(values: Values) -> tuple[Tensor, ...]:
    axis, sizes = int(values["axis"]), values.get("split_sizes")
    if sizes is not None:
        return values["x"].split(_whole(values, "split_sizes", ()), axis)  # type: ignore[no-any-return]
    return values["x"].chunk(int(values["num_splits"]), axis)  # type: ignore[no-any-return]


def _cropped(values: Values) -> Tensor:
    (top, bottom), (left, right) = (_whole(values, f"crop_{side}", (0, 0)) for side in ("height", "width"))
    height, width = values["x"].shape[-2:]
    return torch.as_tensor(values["x"][..., top : height - bottom, left : width - right])


def _padded(values: Values) -> Tensor:
    pads = _whole(values, "pad", ())
    order = [pads[index + side] for index in range(len(pads) - 2, -1, -2) for side in (0, 1)]
    mode = {"reflection": "reflect", "replicate": "replicate"}.get(str(values.get("mode", "constant")), "constant")
    fill = {"value": float(values.get("constant_val", 0))} if mode == "constant" else {}
    return F.pad(values["x"], order, mode, **fill)


def _expanded(values: Values) -> Tensor:
    x, axes = values["x"], _whole(values, "axes", ())
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return torch.as_tensor(x)


def _reduced(function: Callable[..., Tensor]) -> Callable[[Values], Tensor]:
    return lambda values: function(values["x"], _whole(values, "axes", ()), keepdim=_flag(values, "keep_dims"))


def _of_one(function: Callable[[Tensor], Tensor]) -> Callable[[Values], Tensor]:
    return lambda values: function(values["x"])


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Values], Tensor]:
    return lambda values: function(values["x"], values["y"])


_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "bool": torch.bool}
_OPERATORS: dict[str, Callable[[Values], Any]] = {
    "add": _of_two(torch.add),
    "avg_pool": lambda values: _pooled(values, most=False),
    "batch_norm": _normed,
    "cast": lambda values: values["x"].to(_TYPES[str(values["dtype"])]),
    "clip": lambda values: values["x"].clamp(float(values["alpha"]), float(values["beta"])),
    "concat": lambda values: torch.cat(values["values"], int(values["axis"])),
    "conv": _convolution,
    "conv_transpose": _transposed,
    "crop": _cropped,
    "exp": _of_one(torch.exp),
    "expand_dims": _expanded,
    "gelu": lambda values: F.gelu(values["x"], approximate="none" if values["mode"] == "EXACT" else "tanh"),
    "identity": _of_one(torch.clone),
    "layer_norm": _layer_normed,
    "leaky_relu": lambda values: F.leaky_relu(values["x"], float(values["alpha"])),
    "linear": lambda values: F.linear(values["x"], values["weight"], values.get("bias")),
    "matmul": _product,
    "max_pool": lambda values: _pooled(values, most=True),
    "maximum": _of_two(torch.maximum),
    "minimum": _of_two(torch.minimum),
    "mul": _of_two(torch.mul),
    "pad": _padded,
    "pow": _of_two(torch.pow),
    "real_div": _of_two(torch.div),
    "reduce_max": _reduced(torch.amax),
    "reduce_mean": _reduced(torch.mean),
    "reduce_sum": _reduced(torch.sum),
    "relu": _of_one(torch.relu),
    "relu6": _of_one(F.relu6),
    "reshape": lambda values: values["x"].reshape(_whole(values, "shape", ())),
    "resize_bilinear": _resized,
    "rsqrt": lambda values: torch.rsqrt(values["x"] + values.get("epsilon", 0)),
    "sigmoid": _of_one(torch.sigmoid),
    "sigmoid_hard": lambda values: (values["alpha"] * values["x"] + values["beta"]).clamp(0, 1),
    "silu": _of_one(F.silu),
    "slice_by_index": _sliced,
    "softmax": lambda values: values["x"].softmax(int(values.get("axis", -1))),
    "softplus": _of_one(F.softplus),
    "split": _split,
    "sqrt": _of_one(torch.sqrt),
    "squeeze": lambda values: values["x"].squeeze(_whole(values, "axes", ())),
    "sub": _of_two(torch.sub),
    "tanh": _of_one(torch.tanh),
    "thresholded_relu": lambda values: values["x"] * (values["x"] >= values["alpha"]),
    "transpose": lambda values: values["x"].permute(_whole(values, "perm", ())),
    "upsample_bilinear": lambda values: _scaled(values, "bilinear"),
    "upsample_nearest_neighbor": lambda values: _scaled(values, "nearest"),
}
