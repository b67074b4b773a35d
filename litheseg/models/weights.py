"""Weights that come from files: how they are matched by order, and what their values must be.

Authors name their layers as they like but define them in the order in which they run, and so do the models here.
Tensors under other names can therefore be matched by position, if each has the shape and the kind (weight, bias,
running mean or variance) that the model has there.

Usage:
    >>> first_misfit(entries(model.state_dict()), entries(state)) is None
    True
    >>> weight_problem("stem.0.1.running_var", tensor)
    "'stem.0.1.running_var' is negative where a variance is expected"
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

import torch
from torch import Tensor

__all__ = ["Entries", "entries", "first_misfit", "weight_problem"]

Entries = list[tuple[str, Tensor]]
"""Named tensors in order of definition."""

# Last parts of the names of what a network computes with; other tensors count, or say where something lies.
_KINDS = ("weight", "bias", "running_mean", "running_var")


def entries(state: Mapping[str, Tensor]) -> Entries:
    """A state dict's tensors without the counters of batches, which older files lack and evaluation does not need."""

    def counts(name: str, value: Tensor) -> bool:
        return name.endswith("num_batches_tracked") or (value.ndim == 0 and not value.is_floating_point())

    return [(name, value) for name, value in state.items() if not counts(name, value)]


def first_misfit(wanted: Entries, given: Entries) -> int | None:
    """Position of the first tensor that does not fit, one after the other, whatever the names; None where all do."""
    for position, pair in enumerate(zip_longest(wanted, given)):
        if pair[0] is None or pair[1] is None:
            return position
        (name, value), (other_name, other) = pair
        kinds = [name.rpartition(".")[2], other_name.rpartition(".")[2]]
        alike = kinds[0] == kinds[1] or not all(kind in _KINDS for kind in kinds)  # other names say nothing
        if not alike or value.shape != other.shape or not other.is_floating_point():
            return position
    return None


def weight_problem(name: str, value: Tensor, own_name: str = "") -> str | None:
    """What is wrong with a tensor; None if nothing is.

    Args:
        name: of it in the model; its last part says of which kind it is.
        value: on the CPU.
        own_name: where it comes from, if it is called something else there.
    """
    kind, label = name.rpartition(".")[2], own_name or name
    if not value.is_floating_point():
        if kind in _KINDS or value.is_complex():
            return f"'{label}' is {str(value.dtype).removeprefix('torch.')}, where real numbers are expected"
        return None
    if not bool(torch.isfinite(value).all()):
        return f"'{label}' holds infinite or undefined numbers"
    if kind == "running_var" and bool((value < 0).any()):
        own = "a variance" if label == name else f"'{name}' of the model, a variance,"
        return f"'{label}' is negative where {own} is expected"
    return None
