"""`litheseg video`: label a video, a sequence of images, a camera or a stream."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from inspect import signature

from rich import progress as bars
from rich.console import Console

from litheseg.bundle.exported import PRECISIONS, RUNTIMES
from litheseg.cli.options import device_option, json_option, max_pixels_option, parse_width
from litheseg.cli.printing import complain, print_json, show
from litheseg.cli.stopping import sigterm_stops
from litheseg.runtime.video import VIDEO_KINDS, VideoProgress, VideoSummary, annotate_video

__all__ = ["add", "run"]


_SHOWN = 5  # troubles; --json has more


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="a model file, or an export: its folder or one of its networks")
    parser.add_argument("input", metavar="INPUT", help="a video; a folder or 'pattern*.png'; a camera: 0; or a URL")
    parser.add_argument("--output", required=True, metavar="FILE", help="a video such as out.mp4, or a folder for PNGs")
    parser.add_argument("--kind", choices=VIDEO_KINDS, default="overlay", help="what to show [overlay]")
    parser.add_argument("--alpha", type=float, default=0.5, metavar="A", help="weight of the colours, 0 to 1 [0.5]")
    parser.add_argument("--force", action="store_true", help="replace a video that exists")
    _pace_options(parser)
    runtime = parser.add_argument_group("network")
    runtime.add_argument("--runtime", choices=RUNTIMES, help="what runs it [torch, or what fits the export]")
    runtime.add_argument("--precision", choices=PRECISIONS, help="of it [fp32 if there is one]")
    runtime.add_argument("--threads", type=int, metavar="N", help="CPU threads [as many as the runtime takes]")
    runtime.add_argument("--tile", type=int, metavar="PIXELS", help="label frames at their own size, in such tiles")
    max_pixels_option(parser)
    device_option(parser)
    json_option(parser)
    parser.epilog = """examples:
  litheseg video model.safetensors drive.mp4 --output labelled.mp4
  litheseg video model.safetensors drive.mp4 --output labelled.mp4 --width 0.25 --kind side-by-side
  litheseg video model.safetensors 0 --output camera.mp4 --target-fps 15              a camera; Ctrl-C ends the video
  litheseg video exports/street rtsp://camera/stream --output street.mp4 --runtime openvino --target-ms 40
  litheseg video model.safetensors 'frames/*.png' --output masks/ --kind mask         exact masks: palette PNGs

With a target the width moves, so that 95% of the frames hold it. Of a file every frame is labelled, unless --drop says
to keep its pace; of a camera or stream always the newest one.
"""


def _pace_options(parser: ArgumentParser) -> None:
    pace = parser.add_argument_group("pace")
    pace.add_argument(
        "--width", type=parse_width, metavar="W", help="the width, or with a target the first [the widest]"
    )
    target = pace.add_mutually_exclusive_group()
    target.add_argument("--target-fps", type=float, metavar="FPS", help="hold so many frames per second")
    target.add_argument("--target-ms", type=float, metavar="MS", help="hold so many milliseconds per frame")
    pace.add_argument("--drop", action="store_true", help="of a file, too, drop frames to keep its own pace")
    pace.add_argument("--limit", type=int, metavar="N", help="stop after so many frames")
    pace.add_argument("--fps", type=float, metavar="FPS", help="frames per second of an image sequence [25]")
    pace.add_argument("--attempts", type=int, default=8, metavar="N", help="to find a stream that was lost [8]")


def run(args: Namespace) -> int:
    """Do it and print what came of it."""
    options = {name: value for name, value in vars(args).items() if name in signature(annotate_video).parameters}
    options["source"] = args.input
    with _Bar() as bar, sigterm_stops() as terminated:
        summary = annotate_video(progress=bar.show, **options)
    _print(summary, args)
    if summary.stopped:
        return 143 if terminated.is_set() else 130
    return 1 if summary.problem or summary.corrupt else 0


def _print(summary: VideoSummary, args: Namespace) -> None:
    for trouble in summary.troubles[:_SHOWN]:
        complain(trouble, 1)
    if summary.corrupt > _SHOWN:
        complain(f"{summary.corrupt - _SHOWN} more frames could not be read, or not wholly", 1)
    if summary.problem:
        complain(summary.problem, 1)
    if args.json:
        content = asdict(summary) | {"output": args.output}
        print_json(content | {"widths": {f"{width:g}": count for width, count in summary.widths.items()}})
        return
    latency = summary.latency
    show(f"{summary.frames} frames written to {args.output} ({summary.encoder}), {summary.dropped} dropped")
    print(
        f"{summary.fps:.1f} frames/s; a frame took {latency['p50']:.1f} ms, 95% of them less than {latency['p95']:.1f}"
    )
    if summary.late is not None:
        shares = ", ".join(f"{width:g} in {count / summary.frames:.0%}" for width, count in summary.widths.items())
        print(f"{summary.late:.0%} took longer than the target; widths: {shares}; {len(summary.decisions)} changes")


class _Bar:
    """A line on standard error that says how far it is and at which width, if somebody is there to read it."""

    def __init__(self) -> None:
        self._bar = bars.Progress(
            bars.TextColumn("labelling"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[state]}"),
            bars.TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not sys.stderr.isatty(),
            redirect_stdout=False,
        )
        self._task = self._bar.add_task("", total=None, state="loading")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: VideoProgress) -> None:
        """Show it."""
        total = "" if progress.total is None else f"/{progress.total}"
        parts = [f"{progress.frames}{total} frames", f"{progress.fps:.1f} frames/s", f"width {progress.width:g}"]
        parts += [f"{progress.dropped} dropped"] * (progress.dropped > 0)
        parts += [f"[red]{progress.corrupt} corrupt[/red]"] * (progress.corrupt > 0)
        self._bar.update(self._task, completed=progress.frames, total=progress.total, state=", ".join(parts))
