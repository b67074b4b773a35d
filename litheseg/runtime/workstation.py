"""Where the box asks for PyTorch: the one door from the runtime to the rooms above it.

An export runs without PyTorch. A model file does not, nor does a `torch.export` archive: what runs, counts or loads
them lives above, is imported by name, and only when one of them is at hand.

Usage:
    >>> engines = workstation("deploy.torch_engine", "running model.safetensors")
    >>> networks = engines.open_model("model.safetensors")
"""

from __future__ import annotations

import importlib
from typing import Any

from litheseg.errors import MissingExtraError

__all__ = ["workstation"]


def workstation(module: str, purpose: str) -> Any:
    """A module of the rooms that need PyTorch.

    Args:
        module: its name below `litheseg`.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: PyTorch, or a package that comes with it, is not installed.
    """
    try:
        return importlib.import_module(f"litheseg.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "litheseg":
            raise
        raise MissingExtraError(error.name, "train", purpose) from error
