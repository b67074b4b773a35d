"""Frames read ahead in a thread: all of them, or only the newest one whenever somebody asks.

It does not know where frames come from, nor what becomes of them.

Usage:
    >>> with Feed(source, newest=source.live) as feed:
    ...     for frame in feed: ...
    >>> feed.dropped
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import cast

from litheseg.runtime.video.frames import FrameSource, VideoFrame

__all__ = ["Feed"]

_AHEAD = 4  # frames
_LEAVE = 2.0  # seconds; a thread that waits for a silent network any longer ends by itself


class Feed:
    """Reads a source.

    Args:
        source: closed at the end.
        newest: a frame that nobody has taken when the next one comes is dropped.
        paced: frames come at the times that they are shown, as from a camera.
    """

    def __init__(self, source: FrameSource, *, newest: bool = False, paced: bool = False) -> None:
        self.dropped = 0
        self._source, self._newest, self._paced = source, newest, paced
        self._waiting: deque[VideoFrame] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._finished, self._error = False, cast(BaseException | None, None)
        self._thread = threading.Thread(target=self._read, name="frames", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._source.stop()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_LEAVE)

    def __iter__(self) -> Iterator[VideoFrame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finished)
                if not self._waiting:
                    break
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        began = time.monotonic()
        try:
            for frame in self._source:
                if self._paced and self._stop.wait(max(0.0, frame.seconds - (time.monotonic() - began))):
                    break
                if not self._put(frame):
                    break
        except BaseException as error:  # raised where the frames are used
            self._error = error
        finally:
            self._source.close()
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def _put(self, frame: VideoFrame) -> bool:
        """Offer a frame; false if nobody wants any more."""
        with self._changed:
            if self._newest:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            else:
                self._changed.wait_for(lambda: len(self._waiting) < _AHEAD or self._stop.is_set())
            self._waiting.append(frame)
            self._changed.notify_all()
        return not self._stop.is_set()
