"""From frames to a labelled video: read ahead, label, paint, write behind, and hold a pace by turning the width.

A file gives every frame; a live source gives the newest one, and the others are dropped. What could not be read is in
the summary. Ctrl-C ends the video where it is: the file is finished and plays. It knows the parts, and none of their
work.

Usage:
    >>> summary = annotate_video("model.safetensors", "drive.mp4", "labelled.mp4", target_fps=15)
    >>> summary.frames, summary.widths
    (312, {1.0: 40, 0.5: 272})
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from litheseg.bundle.exported import Export
from litheseg.errors import DataError
from litheseg.masks.reading import MAX_PIXELS
from litheseg.runtime.controller import Controller, Decision
from litheseg.runtime.predictor import Model, Predictor
from litheseg.runtime.video.feed import Feed
from litheseg.runtime.video.frames import FrameSource
from litheseg.runtime.video.painting import FramePainter, VideoKind
from litheseg.runtime.video.reading import Patience, open_frames
from litheseg.runtime.video.writing import Behind, Writer, open_writer

__all__ = ["VideoProgress", "VideoSummary", "annotate_video"]

_RECENT = 30  # frames over which the pace is told


@dataclass(frozen=True)
class VideoProgress:
    """How far a run is.

    Attributes:
        frames: labelled so far.
        total: frames in all; None if nobody knows.
        fps: frames per second, lately.
        width: in use.
        dropped: frames that nobody had time for.
        corrupt: frames that could not be read, or not wholly; of a stream, also how often it was lost.
    """

    frames: int
    total: int | None
    fps: float
    width: float
    dropped: int
    corrupt: int


@dataclass(frozen=True)
class VideoSummary:
    """What became of a video.

    Attributes:
        frames: labelled and written.
        dropped: of a live source, or with `drop`: frames that nobody had time for.
        corrupt: frames that could not be read, or not wholly; of a stream, also how often it was lost.
        troubles: the first fifty of these by name.
        problem: why it ended early: truncated, lost, or stopped; None if it did not.
        stopped: whether that was Ctrl-C, or another `KeyboardInterrupt`.
        seconds: that it took.
        fps: frames per second, over all.
        latency: milliseconds of a frame, from when it is taken until the next one may be: "p50", "p95" and "p99".
        late: share of the frames that took longer than the target; None without one.
        widths: frames at each width.
        decisions: of the controller, oldest first.
        encoder: that wrote the video; "png" for a folder.
    """

    frames: int
    dropped: int
    corrupt: int
    troubles: tuple[str, ...]
    problem: str | None
    stopped: bool
    seconds: float
    fps: float
    latency: Mapping[str, float]
    late: float | None
    widths: Mapping[float, int]
    decisions: tuple[Decision, ...]
    encoder: str


def annotate_video(
    model: Predictor | Model | Export | str | Path,
    source: str | Path | int | FrameSource,
    output: str | Path,
    *,
    kind: VideoKind = "overlay",
    alpha: float = 0.5,
    force: bool = False,
    width: float | None = None,
    target_fps: float | None = None,
    target_ms: float | None = None,
    drop: bool = False,
    limit: int | None = None,
    fps: float | None = None,
    attempts: int = Patience.attempts,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    tile: int | None = None,
    max_pixels: int = MAX_PIXELS,
    device: str = "cpu",
    progress: Callable[[VideoProgress], None] = lambda _: None,
) -> VideoSummary:
    """Label every frame of a video and write the annotated video.

    Args:
        model: a model file, or an export: its folder or one of its networks; also a loaded one, or a predictor (then
            `runtime`, `precision`, `threads`, `tile` and `device` are its own).
        source: what `open_frames` takes, or an open source.
        output: a video such as out.mp4, or a folder for PNGs.
        kind: what to show: "overlay", "mask" or "side-by-side".
        alpha: weight of the class colours, in [0, 1].
        force: replace a video that exists.
        width: the width, or with a target the first; None for the predictor's own.
        target_fps: frames per second to hold, by changing the width.
        target_ms: milliseconds that 95% of the frames are to stay below, by changing the width.
        drop: of a file, too, drop the frames for which there is no time at its own frame rate.
        limit: stop after so many frames.
        fps: frames per second of an image sequence; None for 25.
        attempts: to open a lost stream again, in a row.
        runtime: as in `Predictor`.
        precision: as in `Predictor`.
        threads: of the CPU; as in `Predictor`.
        tile: side of the tiles, in pixels, in which frames are labelled at their own size.
        max_pixels: of one frame, width times height; larger ones are refused.
        device: as in `Predictor`.
        progress: called after each frame.

    Raises:
        DataError: an input that cannot be read at all, an output that exists, or a wrong option.
        WidthError: the model does not have the width.
        MissingExtraError: PyAV is not installed.
        LithesegError: the output cannot be written.
    """
    predictor = model
    if not isinstance(predictor, Predictor):
        predictor = Predictor(
            predictor, device=device, runtime=runtime, precision=precision, threads=threads, tile=tile
        )
    painter = FramePainter(predictor.classes, kind, alpha)
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit} is no number of frames; give 1 or more")
    first = predictor.width if width is None else predictor.check_width(width)
    controller = None
    if target_ms is not None or target_fps is not None:
        controller = Controller(predictor.widths, target_ms=target_ms, target_fps=target_fps, start=first)
    if isinstance(source, (str, Path, int)):
        source = open_frames(source, fps=fps, patience=Patience(attempts), max_pixels=max_pixels)
    feed = Feed(source, newest=source.live or drop, paced=drop and not source.live)
    with open_writer(output, source.rate, predictor.classes, kind, force=force) as writer:
        predictor.prepare(*(predictor.widths if controller else (first,)))
        with feed, Behind(writer) as behind:
            run = _Run(predictor, painter, behind, controller, first)
            run.go(source, feed, limit, progress)
        if not run.times:
            raise DataError(_nothing(source))
    return run.summary(source, feed)


def _nothing(source: FrameSource) -> str:
    why = source.problem or "; ".join(source.troubles.named[:1]) or "it is empty"
    return f"{source.name}: no frame could be decoded ({why}); check that it plays elsewhere"


@dataclass
class _Run:
    """The loop, and what it counts."""

    predictor: Predictor
    painter: FramePainter
    writer: Writer
    controller: Controller | None
    width: float
    times: list[float] = field(default_factory=list)
    widths: Counter[float] = field(default_factory=Counter)
    stopped: str = ""
    began: float = field(default_factory=time.perf_counter)

    def go(self, source: FrameSource, feed: Feed, limit: int | None, progress: Callable[[VideoProgress], None]) -> None:
        """Until the end, the limit or Ctrl-C."""
        recent: deque[float] = deque([time.perf_counter()], maxlen=_RECENT + 1)
        try:
            for frame in feed:
                started = time.perf_counter()
                mask = self.predictor.predict_rgb(frame.pixels, width=self.width)
                self.writer.write(frame, self.painter(frame.pixels, mask), mask)
                self._note(started)
                recent.append(time.perf_counter())
                pace = (len(recent) - 1) / max(recent[-1] - recent[0], 1e-9)
                done = len(self.times)
                progress(VideoProgress(done, source.total, pace, self.width, feed.dropped, source.troubles.count))
                if limit is not None and done >= limit:
                    break
        except KeyboardInterrupt as stop:
            self.stopped = str(stop) or "Ctrl-C"

    def _note(self, started: float) -> None:
        now = time.perf_counter()
        self.times.append(1e3 * (now - started))
        self.widths[self.width] += 1
        if self.controller is not None:
            self.width = self.controller.observe(self.times[-1], now - self.began)

    def summary(self, source: FrameSource, feed: Feed) -> VideoSummary:
        """What came of it."""
        seconds = time.perf_counter() - self.began
        p50, p95, p99 = np.percentile(self.times, [50, 95, 99]).tolist()
        return VideoSummary(
            frames=len(self.times),
            dropped=feed.dropped,
            corrupt=source.troubles.count,
            troubles=tuple(source.troubles.named),
            problem=f"stopped by {self.stopped}" if self.stopped else source.problem,
            stopped=bool(self.stopped),
            seconds=seconds,
            fps=len(self.times) / seconds,
            latency={"p50": p50, "p95": p95, "p99": p99},
            late=float(np.mean(np.array(self.times) > self.controller.target_ms)) if self.controller else None,
            widths=dict(sorted(self.widths.items(), reverse=True)),
            decisions=tuple(self.controller.decisions) if self.controller else (),
            encoder=self.writer.encoder,
        )
