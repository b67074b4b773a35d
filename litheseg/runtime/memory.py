"""Room for pixels: how many may be in work at once, so that many huge images together do not fill the memory.

It counts, and decodes nothing.

Usage:
    >>> room = PixelRoom(200_000_000)
    >>> with room.taken(24_000_000): ...
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PixelRoom"]


class PixelRoom:
    """Lets images of so many pixels in at the same time; one that is larger than all of it waits until it is alone.

    Args:
        pixels: of all images together.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels, self._used = pixels, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image, and keep it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()
