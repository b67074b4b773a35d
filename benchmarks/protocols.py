"""The protocols of `protocols.yaml`: what every row is given, and whether it is trained once or per sequence.

Usage:
    >>> read_protocols(Path("benchmarks/protocols.yaml"))["camvid-seq"].folds
    ('0001TP', '0006R0', '0016E5')
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

__all__ = ["Protocol", "read_protocols"]


@dataclass(frozen=True)
class Protocol:
    """How rows are trained and scored.

    Attributes:
        arguments: overrides of the recipe.
        folds: sequences of the training images; a row is trained once without each, and scored on it. Empty for one
            training, scored on the published val.
    """

    arguments: tuple[str, ...]
    folds: tuple[str, ...] = ()


def read_protocols(path: Path) -> dict[str, Protocol]:
    """By name, in the file's order; a list is of arguments alone."""
    content = yaml.safe_load(path.read_text())
    return {
        name: Protocol(tuple(entry["arguments"]), tuple(entry["folds"]))
        if isinstance(entry, dict)
        else Protocol(tuple(entry))
        for name, entry in content.items()
    }
