"""What weights must be, wherever they come from: real numbers, finite, and no negative variances.

It does not know files: whoever reads one adds its name.

Usage:
    >>> problem = weight_problem("stem.0.1.running_var", tensor)
    >>> problem
    "'stem.0.1.running_var' is negative where a variance is expected"
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["WEIGHT_KINDS", "weight_problem"]

WEIGHT_KINDS = ("weight", "bias", "running_mean", "running_var")
"""Last parts of the names of what a network computes with; other tensors count, or say where something lies."""


def weight_problem(name: str, value: Tensor, own_name: str = "") -> str | None:
    """What is wrong with a tensor; None if nothing is.

    Args:
        name: of it in the model; its last part says of which kind it is.
        value: on the CPU.
        own_name: where it comes from, if it is called something else there.
    """
    kind, label = name.rpartition(".")[2], own_name or name
    if not value.is_floating_point():
        if kind in WEIGHT_KINDS or value.is_complex():
            return f"'{label}' is {_type(value)}, where real numbers are expected"
        return None
    if not bool(torch.isfinite(value).all()):
        return f"'{label}' holds infinite or undefined numbers"
    if kind == "running_var" and bool((value < 0).any()):
        own = "a variance" if label == name else f"'{name}' of the model, a variance,"
        return f"'{label}' is negative where {own} is expected"
    return None


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
