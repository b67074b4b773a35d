"""Imports that wait until they are needed: the public names of a package, and modules that need PyTorch.

An export runs without PyTorch. A model file and a `torch.export` archive do not: the modules that run or count them are
imported by name, through `workstation`, when one of these is given.

Usage:
    >>> __getattr__, __dir__ = lazy_names("litheseg.runtime", {"predictor": ("Predictor",)})
    >>> networks = workstation("deploy.torch_engine", "running model.safetensors").open_model("model.safetensors")
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litheseg.errors import MissingExtraError

__all__ = ["lazy_names", "workstation"]


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` (PEP 562) of a package whose names are imported at first use.

    Args:
        package: its full name.
        modules: the public names in each of its modules.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted({*vars(sys.modules[package]), *homes})


def workstation(module: str, purpose: str) -> Any:
    """Import a module of the rooms that need PyTorch.

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
