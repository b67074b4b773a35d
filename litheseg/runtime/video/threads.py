"""Frames read ahead and pictures written behind, each in a thread, so that the network need not wait for either.

Usage:
    >>> with ReadAhead(source, newest=source.live) as frames, WriteBehind(writer.write) as behind:
    ...     for frame in frames:
    ...         behind.write(frame, picture, mask)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import cast

import numpy as np

from litheseg.runtime.video.sources import FrameSource, TimedFrame

__all__ = ["ReadAhead", "WriteBehind"]

_AHEAD = 4  # frames
_BEHIND = 4  # pictures
_LEAVE_SECONDS = 2.0  # a thread that waits for a silent network any longer ends by itself


class ReadAhead:
    """Reads a source in a thread: all frames, or only the newest one.

    Args:
        source: closed at the end.
        newest: a frame that was not taken when the next one comes is dropped, and counted in `dropped`.
        in_time: frames come at the times that they are shown, as from a camera.
        changed: notified when a frame is there or the source has ended; readers may share one. None for its own.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        newest: bool = False,
        in_time: bool = False,
        changed: threading.Condition | None = None,
    ) -> None:
        self.dropped = 0
        self._source, self._newest, self._in_time = source, newest, in_time
        self._waiting: deque[TimedFrame] = deque()
        self._changed = changed or threading.Condition()
        self._stop = threading.Event()
        self._finished, self._error = False, cast(BaseException | None, None)
        self._thread = threading.Thread(target=self._read, name="frames", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._source.stop()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_LEAVE_SECONDS)

    def __iter__(self) -> Iterator[TimedFrame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finished)
            if (frame := self.take()) is None:
                return
            yield frame

    @property
    def waiting(self) -> bool:
        """Whether a frame can be taken now."""
        return bool(self._waiting)

    @property
    def ended(self) -> bool:
        """Whether all frames have been taken, and no other will come."""
        return self._finished and not self._waiting

    @property
    def keeps_all(self) -> bool:
        """Whether no frame is dropped, so that waiting for one loses nothing."""
        return not self._newest

    def take(self) -> TimedFrame | None:
        """A frame, if one is there; does not wait.

        Raises:
            Exception: what went wrong in the thread, once the frames before it have been taken.
        """
        with self._changed:
            if self._waiting:
                frame = self._waiting.popleft()
                self._changed.notify_all()
                return frame
            if self._finished and self._error is not None:
                raise self._error
            return None

    def _read(self) -> None:
        began = time.monotonic()
        try:
            for frame in self._source:
                if self._in_time:
                    self._stop.wait(max(0.0, frame.seconds - (time.monotonic() - began)))
                if not self._stop.is_set():
                    self._put(frame)
                if self._stop.is_set():
                    break
        except BaseException as error:  # raised where the frames are used
            self._error = error
        finally:
            self._source.close()
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def _put(self, frame: TimedFrame) -> None:
        with self._changed:
            if self._newest:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            else:
                self._changed.wait_for(lambda: len(self._waiting) < _AHEAD or self._stop.is_set())
            self._waiting.append(frame)
            self._changed.notify_all()


class WriteBehind:
    """Writes pictures in a thread.

    Within its context pictures are taken in; at its end all of them are written, or, after an error, none of those that
    still wait. What goes wrong in the thread is raised at a later picture, or at the end.

    Args:
        write: what to do with each picture: its frame, uint8 H W 3, and the labels that it shows, uint8 H W.
    """

    def __init__(self, write: Callable[[TimedFrame, np.ndarray, np.ndarray], None]) -> None:
        self._write, self._waiting = write, deque[Future[None]]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            while self._waiting and error is None:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def write(self, frame: TimedFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        """Take a picture; waits while too many pictures do."""
        while self._waiting and (len(self._waiting) > _BEHIND or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, frame, picture, mask))
