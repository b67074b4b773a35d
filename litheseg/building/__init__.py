"""From a folder of labelled images and a budget to a deployed network: fingerprint, plan, stages, result.

Usage:
    >>> result = litheseg.build("data/mine", budget=20.0, minutes=60, output="deployed")
    >>> result.deployed
    PosixPath('deployed/export')
"""

from __future__ import annotations

__all__: list[str] = []
