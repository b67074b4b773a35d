"""Label a video, a sequence of images, a camera or a stream.

With a target the width moves, so that 95% of the frames hold it. Of a file every frame is labelled, unless --drop says
to keep its frame rate; of a camera or stream always the newest one.

Examples:
  litheseg video model.safetensors drive.mp4 --output labelled.mp4
  litheseg video model.safetensors drive.mp4 --output labelled.mp4 --width 0.25 --kind side-by-side
  litheseg video model.safetensors 0 --output camera.mp4 --target-fps 15              a camera; Ctrl-C ends the video
  litheseg video exports/street rtsp://camera/stream --output street.mp4 --runtime openvino --target-ms 40
  litheseg video model.safetensors 'frames/*.png' --output masks/ --kind mask         exact masks: palette PNGs
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import complain_of, print_json, show
from litheseg.cli.stopping import sigterm_stops
from litheseg.progress import work
from litheseg.runtime.video import VideoProgress, VideoSummary, annotate_video

__all__ = ["video"]


@command(annotate_video, without=("source",), exclusive=("target_fps", "target_ms"))
def video(model: str, input: str, *, output: str, json: bool = False, **options: Any) -> int:
    """Print how many frames were written, how fast, and what could not be read.

    Args:
        model: a model file, or an export: its folder or one of its networks.
        input: a video; a folder or 'pattern*.png'; a camera: 0; or a URL.
        output: a video such as out.mp4, or a folder for PNGs.
        json: print JSON.
        **options: of `annotate_video`.
    """

    def note(state: VideoProgress) -> None:
        lost = (f"{state.dropped} dropped" if state.dropped else "", f"{state.corrupt} corrupt")
        speed = (f"{state.fps:.1f} frames/s", f"width {state.width:g}")
        frames.show(state.frames, state.total, *speed, *lost[: 1 + (state.corrupt > 0)])

    with work("labelling frames") as frames, sigterm_stops() as terminated:
        summary = annotate_video(model, input, output, progress=note, **options)
    complain_of(summary.troubles, " frames could not be read, or not wholly", shown=5, total=summary.corrupt)
    if summary.problem:
        complain_of([summary.problem])
    if json:
        widths = {f"{width:g}": count for width, count in summary.widths.items()}
        print_json(asdict(summary) | {"output": output, "widths": widths})
    else:
        _print(summary, output)
    if summary.stopped:
        return 143 if terminated.is_set() else 130
    return 1 if summary.problem or summary.corrupt else 0


def _print(summary: VideoSummary, output: str) -> None:
    p50, p95 = (summary.latency[name] for name in ("p50", "p95"))
    show(f"{summary.frames} frames written to {output} ({summary.encoder}), {summary.dropped} dropped")
    show(f"{summary.fps:.1f} frames/s; a frame took {p50:.1f} ms, 95% of them less than {p95:.1f}")
    if summary.late is not None:
        shares = ", ".join(f"{width:g} in {count / summary.frames:.0%}" for width, count in summary.widths.items())
        show(f"{summary.late:.0%} took longer than the target; widths: {shares}; {len(summary.decisions)} changes")
