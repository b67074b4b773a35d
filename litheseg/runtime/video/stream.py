"""A source of frames on its way to an output: read ahead, labelled, painted, written behind, and counted.

Usage:
    >>> with VideoStream(open_frames("0"), "camera.mp4", to_picture, predictor.classes) as camera:
    ...     camera.start()
    ...     for together in rounds([camera], condition):
    ...         for index, frame in together:
    ...             camera.label(frame, predictor, width=0.5)
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

from litheseg.errors import DataError
from litheseg.masks.classes import Classes
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.video.painting import FramePainter
from litheseg.runtime.video.smoothing import MaskSmoother
from litheseg.runtime.video.sources import FrameSource, TimedFrame
from litheseg.runtime.video.threads import ReadAhead, WriteBehind
from litheseg.runtime.video.writing import open_writer

__all__ = ["VideoStream", "rounds"]


class VideoStream:
    """One source and its video. Within its context the output is open, and from `start` on frames are read.

    Args:
        source: of frames.
        output: a video or a folder, as of `open_writer`.
        painter: of its pictures.
        classes: of the labels.
        changed: notified when a frame is there; None for its own.
        drop: frames of a file, too, for which there is no time at its own frame rate.
        smoother: of its labels; None for none.
        force: replace a video that exists.

    Attributes:
        source: of frames.
        output: where they go.
        reader: that reads ahead.
        smoother: of the labels; None for none.
        times: milliseconds of each frame, from when it is taken until the next one may be.
        widths: frames at each width.
        encoder: that writes the video.
        problem: why there is no video; None if there is one.
        over: whether it has been finished.
    """

    def __init__(
        self,
        source: FrameSource,
        output: str | Path,
        painter: FramePainter,
        classes: Classes,
        *,
        changed: threading.Condition | None = None,
        drop: bool = False,
        smoother: MaskSmoother | None = None,
        force: bool = False,
    ) -> None:
        self.source, self.output, self.smoother = source, output, smoother
        self.times: list[float] = []
        self.widths: Counter[float] = Counter()
        self.encoder, self.over = "", False
        self.problem: str | None = None
        self.reader = ReadAhead(source, newest=source.live or drop, in_time=drop and not source.live, changed=changed)
        self._paint, self._classes, self._force = painter, classes, force
        self._stack = ExitStack()

    def __enter__(self) -> VideoStream:
        opened = open_writer(self.output, self.source.rate, self._classes, self._paint.kind, force=self._force)
        self._writer = self._stack.enter_context(opened)
        self.encoder = self._writer.encoder
        return self

    def start(self) -> None:
        """Begin to read."""
        self._stack.enter_context(self.reader)
        self._behind = self._stack.enter_context(WriteBehind(self._writer.write))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish(error)

    def finish(self, error: BaseException | None = None) -> None:
        """Read no more, and write what there is; after an error, or where there were no frames, no video is left."""
        if self.over:
            return
        self.over = True
        if error is None and not self.times:
            why = self.source.problem or "; ".join(self.source.troubles.named[:1]) or "it is empty"
            self.problem = f"{self.source.name}: no frame could be decoded ({why}); check that it plays elsewhere"
            error = DataError(self.problem)
        self._stack.__exit__(type(error) if error else None, error, None)

    def label(self, frame: TimedFrame, predictor: Predictor, width: float) -> float:
        """Label, paint and write a frame; returns the milliseconds that it took."""
        started = time.perf_counter()
        if self.smoother is None:
            mask = predictor.predict_rgb(frame.pixels, width=width)
        elif predictor.tile_of(frame.pixels):
            raise DataError(f"{self.source.name}: frames that are labelled in tiles cannot be smoothed; leave that out")
        else:
            mask = self.smoother.label(predictor.pipeline(width), frame.pixels)
        self._behind.write(frame, self._paint(frame.pixels, mask), mask)
        self.times.append(1e3 * (time.perf_counter() - started))
        self.widths[width] += 1
        return self.times[-1]


def rounds(cameras: Sequence[VideoStream], changed: threading.Condition) -> Iterator[list[tuple[int, TimedFrame]]]:
    """A frame of each camera, with its index: of files always the next, of others the newest if there is a new one.

    A camera that has ended is finished; so ends the last round.

    Args:
        cameras: started, with `changed` as theirs.
        changed: what they notify.

    Raises:
        Exception: what went wrong while a source was read.
    """
    while active := {index: camera for index, camera in enumerate(cameras) if not camera.over}:
        readers = [camera.reader for camera in active.values()]
        with changed:
            changed.wait_for(partial(_ready, readers))
        together = [(index, frame) for index, camera in active.items() if (frame := camera.reader.take()) is not None]
        if together:
            yield together
        for camera in active.values():
            if camera.reader.ended and not camera.over:
                camera.reader.take()  # raises what ended it, if it was an error
                camera.finish()


def _ready(readers: Sequence[ReadAhead]) -> bool:
    """Whether there is something to do, and every file, which loses nothing by it, has been waited for."""
    there = [reader.waiting or reader.ended for reader in readers]
    return any(there) and all(is_there or not reader.keeps_all for is_there, reader in zip(there, readers, strict=True))
