"""Annotate videos: read, predict, paint and write frames, and hold a target by changing the widths.

A file gives every frame; a live source gives the newest one, and the others are dropped. Several sources share one
network and one budget (`litheseg.runtime.sharing`). What could not be read is in the summary. Ctrl-C ends the videos
where they are: the files are finished and play.

Usage:
    >>> summary = annotate_video("model.safetensors", "drive.mp4", "annotated.mp4", target_fps=15)
    >>> summary.frames, summary.widths
    (312, {1.0: 40, 0.5: 272})
    >>> front, rear = annotate_videos("model.safetensors", ["0", "1"], "camera.mp4", target_fps=10, priorities=(2, 1))
    >>> front.output, rear.output
    ('camera-1.mp4', 'camera-2.mp4')
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.bundle.exported import Export
from litheseg.bundle.targets import PrecisionName, RuntimeName
from litheseg.errors import DataError, did_you_mean
from litheseg.masks.opening import MAX_PIXELS
from litheseg.masks.pictures import OverlayStyle
from litheseg.runtime.controller import Decision
from litheseg.runtime.predictor import Model, Predictor
from litheseg.runtime.sharing import SharedController
from litheseg.runtime.video.painting import VIDEO_KINDS, FramePainter, VideoKind
from litheseg.runtime.video.smoothing import MaskSmoother, SmoothingCost
from litheseg.runtime.video.sources import FrameSource, TimedFrame, open_frames, retry_pauses
from litheseg.runtime.video.stream import VideoStream, rounds
from litheseg.values import Names, Numbers, Quantity, Width

__all__ = ["VIDEO_KINDS", "VideoKind", "VideoProgress", "VideoSummary", "annotate_video", "annotate_videos"]

_RECENT = 30  # frames over which the frame rate is shown


@dataclass(frozen=True)
class VideoProgress:
    """How far a run is.

    Attributes:
        frames: labelled so far.
        total: frames in all; None if unknown.
        fps: frames per second, lately.
        width: in use; of several sources the mean.
        dropped: frames for which there was no time.
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
        dropped: of a live source, or with `drop`: frames for which there was no time.
        corrupt: frames that could not be read, or not wholly; of a stream, also how often it was lost.
        troubles: the first fifty of these by name.
        problem: why it ended early: truncated, lost, or stopped; None if it did not.
        stopped: whether that was Ctrl-C, or another `KeyboardInterrupt`.
        seconds: that it took.
        fps: frames per second, over all.
        latency: milliseconds of a frame, from when it is taken until the next one may be: "p50", "p95" and "p99".
        late: share of the rounds, a frame of each source, that took longer than the target; None without one.
        widths: frames at each width.
        decisions: of the controller, oldest first; of several sources they are common, and widths means over them.
        encoder: that wrote the video; "png" for a folder.
        source: name of what was read.
        output: what was written.
        smoothing: what smoothing cost, and what it gave; None without it.
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
    source: str
    output: str
    smoothing: SmoothingCost | None


def annotate_videos(
    model: Predictor | Model | Export | str | Path,
    sources: Sequence[str | Path | int | FrameSource],
    output: str | Path,
    *,
    kind: VideoKind = "overlay",
    alpha: float = 0.5,
    clear: Names | None = None,
    legend: bool = True,
    force: bool = False,
    width: Width | None = None,
    target_fps: float | None = None,
    target_ms: float | None = None,
    priorities: Numbers | None = None,
    smooth: float = 0.0,
    drop: bool = False,
    limit: int | None = None,
    fps: float | None = None,
    attempts: int = 8,
    runtime: RuntimeName | None = None,
    precision: PrecisionName | None = None,
    threads: int | None = None,
    tile: int | None = None,
    max_pixels: Quantity = MAX_PIXELS,
    device: str = "cpu",
    progress: Callable[[VideoProgress], None] = lambda _: None,
) -> list[VideoSummary]:
    """Label every frame of videos and write the annotated videos.

    Args:
        model: a model file, or an export: its folder or one of its networks; also a loaded one, or a predictor (then
            `runtime`, `precision`, `threads`, `tile` and `device` are its own).
        sources: each what `open_frames` takes, or an open source.
        output: a video such as out.mp4, or a folder for PNGs; of several sources they are out-1.mp4, out-2.mp4, ....
        kind: what to show: "overlay", "mask" or "side-by-side".
        alpha: weight of the class colours, in [0, 1].
        clear: names of classes that stay as they are; by default background, void, other, ....
        legend: names and colours of the classes below the picture.
        force: replace a video that exists.
        width: the width, or with a target the first; None for the predictor's own.
        target_fps: frames per second of each source to hold, by changing the widths.
        target_ms: milliseconds that 95% of the frames are to stay below, by changing the widths; of several sources a
            frame of each together.
        priorities: of the sources, above 0: one of 2 is to run twice as wide as one of 1; None for all alike.
        smooth: weight of the frames before, in [0, 1), in an average over time: 0.6 hides what lasts for one frame, and
            shows changes a frame late; 0 for none.
        drop: of a file, too, drop the frames for which there is no time at its own frame rate.
        limit: stop after so many frames of each source.
        fps: frames per second of an image sequence; None for 25.
        attempts: to open a lost stream again, in a row.
        runtime: what runs the network; None for torch, or what fits the export.
        precision: of the network; None for fp32 if there is one.
        threads: of the CPU; None for as many as the runtime takes.
        tile: side of the tiles, in pixels, in which frames are labelled at their own size.
        max_pixels: of one frame, width times height; larger ones are refused.
        device: cpu, cuda, cuda:1, ...
        progress: called after each frame.

    Returns:
        One for each source.

    Raises:
        DataError: no sources, an input that cannot be read at all, an output that exists, or a wrong option.
        WidthError: the model does not have the width.
        MissingExtraError: PyAV is not installed.
        LithesegError: the output cannot be written.
    """
    if kind not in VIDEO_KINDS:
        raise DataError(f"unknown kind '{kind}'.{did_you_mean(kind, VIDEO_KINDS)}")
    style = OverlayStyle(alpha, None if clear is None else tuple(clear), legend)
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit} is no number of frames; give 1 or more")
    if not sources:
        raise DataError("nothing to label; give at least one video, folder, camera or URL")
    smoothers = [MaskSmoother(smooth) if smooth else None for _ in sources]
    predictor = model
    if not isinstance(predictor, Predictor):
        predictor = Predictor(
            predictor, device=device, runtime=runtime, precision=precision, threads=threads, tile=tile
        )
    predictor.header.images.require_rgb8("a camera or a video")
    first = predictor.width if width is None else predictor.check_width(width)
    # An unknown class is refused before anything is opened.
    painters = [FramePainter(predictor.classes, style, kind) for _ in sources]
    controller = None
    if target_ms is not None or target_fps is not None:
        target = {"target_ms": target_ms, "target_fps": target_fps}
        controller = SharedController(predictor.widths, len(sources), priorities=priorities, start=first, **target)
    elif priorities is not None:
        raise DataError("priorities share a budget; give one (--target-fps or --target-ms)")
    opening: dict[str, Any] = {"fps": fps, "pauses": retry_pauses(attempts), "max_pixels": max_pixels}
    opened = [open_frames(one, **opening) if isinstance(one, (str, Path, int)) else one for one in sources]
    changed = threading.Condition()
    with ExitStack() as stack:
        cameras = [
            stack.enter_context(
                VideoStream(
                    one, to, paint, predictor.classes, changed=changed, drop=drop, smoother=smoother, force=force
                )
            )
            for one, to, paint, smoother in zip(opened, _outputs(output, len(opened)), painters, smoothers, strict=True)
        ]
        predictor.prepare(*(predictor.widths if controller else (first,)))
        run = _Annotation(predictor, cameras, controller, first)
        run.go(changed, limit, progress)
    if not any(camera.times for camera in cameras):
        raise DataError(cameras[0].problem or "no frame could be decoded")
    return [run.summary(camera) for camera in cameras]


def annotate_video(
    model: Predictor | Model | Export | str | Path,
    source: str | Path | int | FrameSource,
    output: str | Path,
    **options: Any,
) -> VideoSummary:
    """Label every frame of one video and write the annotated video.

    Args:
        model: as of `annotate_videos`.
        source: what `open_frames` takes, or an open source.
        output: a video such as out.mp4, or a folder for PNGs.
        **options: of `annotate_videos`.

    Raises:
        LithesegError: as `annotate_videos`.
    """
    return annotate_videos(model, [source], output, **options)[0]


class _Annotation:
    """The loop over the frames of all cameras, and what it counts."""

    def __init__(
        self, predictor: Predictor, cameras: Sequence[VideoStream], controller: SharedController | None, width: float
    ) -> None:
        self._predictor, self._cameras, self._controller = predictor, cameras, controller
        self._widths = controller.widths if controller else (width,) * len(cameras)
        self._late: list[bool] = []  # by round
        self._stopped, self._began, self._seconds = "", time.perf_counter(), 0.0
        self._recent = deque([self._began], maxlen=_RECENT + 1)

    def go(self, changed: threading.Condition, limit: int | None, progress: Callable[[VideoProgress], None]) -> None:
        """Until all have come to their end or the limit, or Ctrl-C."""
        self._began = time.perf_counter()
        self._recent = deque([self._began], maxlen=_RECENT + 1)
        for camera in self._cameras:
            camera.start()
        try:
            for together in rounds(self._cameras, changed):
                times = {index: self._label(index, frame, limit, progress) for index, frame in together}
                self._share(times)
        except KeyboardInterrupt as stop:
            self._stopped = str(stop) or "Ctrl-C"
        finally:
            self._seconds = time.perf_counter() - self._began

    def _label(
        self, index: int, frame: TimedFrame, limit: int | None, progress: Callable[[VideoProgress], None]
    ) -> float:
        camera = self._cameras[index]
        took = camera.label(frame, self._predictor, self._widths[index])
        self._recent.append(time.perf_counter())
        progress(self._progress())
        if len(camera.times) == limit:
            camera.finish()
        return took

    def _share(self, times: Mapping[int, float]) -> None:
        """The widths of the next round."""
        if self._controller is None:
            return
        self._widths = self._controller.observe(times, time.perf_counter() - self._began)
        self._late.append(self._controller.round_ms > self._controller.target_ms)
        for index, camera in enumerate(self._cameras):
            if camera.over or camera.reader.ended:
                self._controller.end(index)
        self._widths = self._controller.widths

    def _progress(self) -> VideoProgress:
        totals = [camera.source.total for camera in self._cameras]
        going = [width for width, camera in zip(self._widths, self._cameras, strict=True) if not camera.over]
        return VideoProgress(
            frames=sum(len(camera.times) for camera in self._cameras),
            total=None if None in totals else sum(total or 0 for total in totals),
            fps=(len(self._recent) - 1) / max(self._recent[-1] - self._recent[0], 1e-9),
            width=sum(going or self._widths) / len(going or self._widths),
            dropped=sum(camera.reader.dropped for camera in self._cameras),
            corrupt=sum(camera.source.troubles.count for camera in self._cameras),
        )

    def summary(self, camera: VideoStream) -> VideoSummary:
        """What came of a camera."""
        p50, p95, p99 = np.percentile(camera.times or [0.0], [50, 95, 99]).tolist()
        lost = camera.source.problem or camera.problem
        return VideoSummary(
            frames=len(camera.times),
            dropped=camera.reader.dropped,
            corrupt=camera.source.troubles.count,
            troubles=tuple(camera.source.troubles.named),
            problem=f"stopped by {self._stopped}" if self._stopped else lost,
            stopped=bool(self._stopped),
            seconds=self._seconds,
            fps=len(camera.times) / self._seconds,
            latency={"p50": p50, "p95": p95, "p99": p99},
            late=float(np.mean(self._late)) if self._late else None,
            widths=dict(sorted(camera.widths.items(), reverse=True)),
            decisions=self._controller.decisions if self._controller else (),
            encoder=camera.encoder,
            source=camera.source.name,
            output=str(camera.output),
            smoothing=camera.smoother.cost if camera.smoother else None,
        )


def _outputs(output: str | Path, count: int) -> list[str | Path]:
    """One for each source: out.mp4, or out-1.mp4, out-2.mp4, ...."""
    path = Path(output).expanduser()
    return (
        [output] if count == 1 else [path.with_name(f"{path.stem}-{index + 1}{path.suffix}") for index in range(count)]
    )
