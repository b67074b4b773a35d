"""From an elastic model to a plain one: at one width, with the small weights, and nothing left that is not used.

Export, quantization and runtimes see only what `extract` returns. It also drops heads that only a loss needs and folds
re-parameterisable blocks: timm's, and any child with a `fold()` method that returns its replacement.

Usage:
    >>> small = extract(model, 0.25)
"""

from __future__ import annotations

from torch import nn

from litheseg.nn.bare import widen_parameters
from litheseg.nn.folding import fold_blocks
from litheseg.nn.slim import set_width
from litheseg.nn.surgery import copied

__all__ = ["drop_training_heads", "extract", "fold"]


def extract(module: nn.Module, width: float = 1.0) -> nn.Module:
    """A plain copy of `module` at `width`, in evaluation mode; equal to the elastic model there to float rounding.

    Raises:
        WidthError: the width is not available.
    """
    plain = copied(module)
    set_width(plain, width)
    for child in plain.modules():
        if hasattr(child, "narrowing"):
            widen_parameters(child)
    _replace_children(plain, "to_plain")
    if hasattr(plain, "width_dial"):
        del plain.width_dial
    drop_training_heads(plain)
    return fold(plain.eval())


def drop_training_heads(module: nn.Module) -> nn.Module:
    """Remove, in place, the children that `training_only` names, anywhere in the model; returns it."""
    for child in module.modules():
        for name in getattr(child, "training_only", ()):
            setattr(child, name, None)
    return module


def fold(module: nn.Module) -> nn.Module:
    """Replace, in place, every foldable block by the one layer it amounts to in evaluation mode; returns the model."""
    _replace_children(module, "fold")
    return fold_blocks(module)


def _replace_children(module: nn.Module, method: str) -> None:
    """Replace every descendant that has `method` by what the method returns."""
    for name, child in module.named_children():
        if hasattr(child, method):
            setattr(module, name, getattr(child, method)().train(child.training))
        else:
            _replace_children(child, method)
