"""What a width is: the one check of it, for layers, controllers and the command line.

Usage:
    >>> check_width(0.5)
    0.5
"""

from __future__ import annotations

from litheseg.errors import WidthError

__all__ = ["check_width"]


def check_width(width: float) -> float:
    """`width` as a float in (0, 1].

    Raises:
        WidthError: it is not.
    """
    if not 0.0 < float(width) <= 1.0:
        raise WidthError(f"width {width} is outside (0, 1]; it is the fraction of channels to keep, such as 0.5")
    return float(width)
