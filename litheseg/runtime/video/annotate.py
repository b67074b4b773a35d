"""Annotate a video: read, predict, paint and write frames, and hold a target by changing the width.

A file gives every frame; a live source gives the newest one, and the others are dropped. What could not be read is in
the summary. Ctrl-C ends the video where it is: the file is finished and plays.

Usage:
    >>> summary = annotate_video("model.safetensors", "drive.mp4", "annotated.mp4", target_fps=15)
    >>> summary.frames, summary.widths
    (312, {1.0: 40, 0.5: 272})
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from litheseg.bundle.exported import Export
from litheseg.bundle.targets import PrecisionName, RuntimeName
from litheseg.errors import DataError, did_you_mean
from litheseg.masks.pictures import OverlayStyle, legend_strip
from litheseg.masks.reading import MAX_PIXELS
from litheseg.runtime.controller import Controller, Decision
from litheseg.runtime.predictor import Model, Predictor
from litheseg.runtime.video.sources import FrameSource, open_frames, retry_pauses
from litheseg.runtime.video.threads import ReadAhead, WriteBehind
from litheseg.runtime.video.writing import open_writer
from litheseg.values import Names, Quantity, Width

__all__ = ["VIDEO_KINDS", "VideoKind", "VideoProgress", "VideoSummary", "annotate_video"]

VideoKind = Literal["overlay", "mask", "side-by-side"]
VIDEO_KINDS: tuple[str, ...] = get_args(VideoKind)

_LEGEND_LINES = 4
_RECENT = 30  # frames over which the frame rate is shown


@dataclass(frozen=True)
class VideoProgress:
    """How far a run is.

    Attributes:
        frames: labelled so far.
        total: frames in all; None if unknown.
        fps: frames per second, lately.
        width: in use.
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
    clear: Names | None = None,
    legend: bool = True,
    force: bool = False,
    width: Width | None = None,
    target_fps: float | None = None,
    target_ms: float | None = None,
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
) -> VideoSummary:
    """Label every frame of a video and write the annotated video.

    Args:
        model: a model file, or an export: its folder or one of its networks; also a loaded one, or a predictor (then
            `runtime`, `precision`, `threads`, `tile` and `device` are its own).
        source: what `open_frames` takes, or an open source.
        output: a video such as out.mp4, or a folder for PNGs.
        kind: what to show: "overlay", "mask" or "side-by-side".
        alpha: weight of the class colours, in [0, 1].
        clear: names of classes that stay as they are; by default background, void, other, ....
        legend: names and colours of the classes below the picture.
        force: replace a video that exists.
        width: the width, or with a target the first; None for the predictor's own.
        target_fps: frames per second to hold, by changing the width.
        target_ms: milliseconds that 95% of the frames are to stay below, by changing the width.
        drop: of a file, too, drop the frames for which there is no time at its own frame rate.
        limit: stop after so many frames.
        fps: frames per second of an image sequence; None for 25.
        attempts: to open a lost stream again, in a row.
        runtime: what runs the network; None for torch, or what fits the export.
        precision: of the network; None for fp32 if there is one.
        threads: of the CPU; None for as many as the runtime takes.
        tile: side of the tiles, in pixels, in which frames are labelled at their own size.
        max_pixels: of one frame, width times height; larger ones are refused.
        device: cpu, cuda, cuda:1, ...
        progress: called after each frame.

    Raises:
        DataError: an input that cannot be read at all, an output that exists, or a wrong option.
        WidthError: the model does not have the width.
        MissingExtraError: PyAV is not installed.
        LithesegError: the output cannot be written.
    """
    if kind not in VIDEO_KINDS:
        raise DataError(f"unknown kind '{kind}'.{did_you_mean(kind, VIDEO_KINDS)}")
    style = OverlayStyle(alpha, None if clear is None else tuple(clear), legend)
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit} is no number of frames; give 1 or more")
    predictor = model
    if not isinstance(predictor, Predictor):
        predictor = Predictor(
            predictor, device=device, runtime=runtime, precision=precision, threads=threads, tile=tile
        )
    predictor.header.images.require_rgb8("a camera or a video")
    first = predictor.width if width is None else predictor.check_width(width)
    style.painted(predictor.classes)  # an unknown class is refused before anything is opened
    controller = None
    if target_ms is not None or target_fps is not None:
        controller = Controller(predictor.widths, target_ms=target_ms, target_fps=target_fps, start=first)
    if isinstance(source, (str, Path, int)):
        source = open_frames(source, fps=fps, pauses=retry_pauses(attempts), max_pixels=max_pixels)
    frames = ReadAhead(source, newest=source.live or drop, in_time=drop and not source.live)
    annotation = _Annotation(predictor, source, frames, controller, first, kind, style)
    with open_writer(output, source.rate, predictor.classes, kind, force=force) as writer:
        predictor.prepare(*(predictor.widths if controller else (first,)))
        with frames, WriteBehind(writer.write) as behind:
            annotation.run(behind, limit, progress)
        if not annotation.times:
            why = source.problem or "; ".join(source.troubles.named[:1]) or "it is empty"
            raise DataError(f"{source.name}: no frame could be decoded ({why}); check that it plays elsewhere")
    return annotation.summary(writer.encoder)


@dataclass
class _Annotation:
    """The loop over the frames, and what it counts."""

    predictor: Predictor
    source: FrameSource
    frames: ReadAhead
    controller: Controller | None
    width: float
    kind: VideoKind
    style: OverlayStyle
    times: list[float] = field(default_factory=list)  # milliseconds by frame
    widths: Counter[float] = field(default_factory=Counter)
    strip: np.ndarray | None = None
    stopped: str = ""
    began: float = 0.0

    def run(self, writer: WriteBehind, limit: int | None, progress: Callable[[VideoProgress], None]) -> None:
        """Until the end, the limit or Ctrl-C."""
        self.began = time.perf_counter()
        recent, palette = deque([self.began], maxlen=_RECENT + 1), self.predictor.classes.palette()
        painted = self.style.painted(self.predictor.classes)
        clear = np.ones(256, bool)
        clear[painted] = False
        try:
            for frame in self.frames:
                started = time.perf_counter()
                mask = self.predictor.predict_rgb(frame.pixels, width=self.width)
                writer.write(frame, self.painted(frame.pixels, palette[mask], clear[mask]), mask)
                recent.append(now := time.perf_counter())
                self.times.append(1e3 * (now - started))
                self.widths[self.width] += 1
                if self.controller is not None:
                    self.width = self.controller.observe(self.times[-1], now - self.began)
                done, fps = len(self.times), (len(recent) - 1) / max(now - recent[0], 1e-9)
                corrupt = self.source.troubles.count
                progress(VideoProgress(done, self.source.total, fps, self.width, self.frames.dropped, corrupt))
                if done == limit:
                    break
        except KeyboardInterrupt as stop:
            self.stopped = str(stop) or "Ctrl-C"

    def painted(self, image: np.ndarray, colours: np.ndarray, clear: np.ndarray) -> np.ndarray:
        """The picture to show, uint8 H W 3, or H 2W 3 side by side, and below it the legend.

        Args:
            image: the frame.
            colours: of its labels.
            clear: bool H W, where the frame stays as it is.
        """
        if self.kind == "mask":
            return colours
        # Pillow blends several times as fast as NumPy.
        mixed = np.array(Image.blend(Image.fromarray(image), Image.fromarray(colours), self.style.alpha))
        np.copyto(mixed, image, where=clear[..., None])
        shown = np.concatenate([image, mixed], axis=1) if self.kind == "side-by-side" else mixed
        return np.concatenate([shown, self._legend(shown.shape[1])]) if self.style.legend else shown

    def _legend(self, width: int) -> np.ndarray:
        """All classes that are painted, as far as a few lines hold them; the same for all frames."""
        if self.strip is None or self.strip.shape[1] != width:
            classes = self.predictor.classes
            self.strip = legend_strip(classes, self.style.painted(classes), width, _LEGEND_LINES)
        return self.strip

    def summary(self, encoder: str) -> VideoSummary:
        """What came of it."""
        seconds, times, controller = time.perf_counter() - self.began, np.array(self.times), self.controller
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
        return VideoSummary(
            frames=len(times),
            dropped=self.frames.dropped,
            corrupt=self.source.troubles.count,
            troubles=tuple(self.source.troubles.named),
            problem=f"stopped by {self.stopped}" if self.stopped else self.source.problem,
            stopped=bool(self.stopped),
            seconds=seconds,
            fps=len(times) / seconds,
            latency={"p50": p50, "p95": p95, "p99": p99},
            late=float(np.mean(times > controller.target_ms)) if controller else None,
            widths=dict(sorted(self.widths.items(), reverse=True)),
            decisions=tuple(controller.decisions) if controller else (),
            encoder=encoder,
        )
