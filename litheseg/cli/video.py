"""Label videos, sequences of images, cameras and streams.

With a target the width moves, so that 95% of the frames hold it. Of a file every frame is labelled, unless --drop says
to keep its frame rate; of a camera or stream always the newest one. Several inputs share the network and the target:
each gets the widest width with which all of them together hold it, and writes a video of its own.

Examples:
  litheseg video model.safetensors drive.mp4 --output labelled.mp4
  litheseg video model.safetensors drive.mp4 --output labelled.mp4 --width 0.25 --kind side-by-side
  litheseg video model.safetensors 0 --output camera.mp4 --target-fps 15              a camera; Ctrl-C ends the video
  litheseg video exports/street rtsp://camera/stream --output street.mp4 --runtime openvino --target-ms 40
  litheseg video model.safetensors 'frames/*.png' --output masks/ --kind mask         exact masks: palette PNGs
  litheseg video exports/street 0 1 2 --output yard.mp4 --target-fps 10 --priorities 2,1,1     three cameras
  litheseg video model.safetensors drive.mp4 --output calm.mp4 --smooth 0.6           masks that do not flicker
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import complain_of, print_json, show
from litheseg.cli.stopping import sigterm_stops
from litheseg.progress import work
from litheseg.runtime.video import VideoProgress, VideoSummary, annotate_videos

__all__ = ["video"]


@command(annotate_videos, without=("sources",), exclusive=("target_fps", "target_ms"))
def video(model: str, inputs: Sequence[str], *, output: str, json: bool = False, **options: Any) -> int:
    """Print how many frames were written, how fast, and what could not be read.

    Args:
        model: a model file, or an export: its folder or one of its networks.
        inputs: videos; folders or 'pattern*.png'; cameras: 0; or URLs.
        output: a video such as out.mp4, or a folder for PNGs; of several inputs out-1.mp4, out-2.mp4, ....
        json: print JSON.
        **options: of `annotate_videos`.
    """

    def note(state: VideoProgress) -> None:
        lost = (f"{state.dropped} dropped" if state.dropped else "", f"{state.corrupt} corrupt")
        width = f"width {state.width:g}" if len(inputs) == 1 else f"mean width {state.width:.2f}"
        frames.show(state.frames, state.total, f"{state.fps:.1f} frames/s", width, *lost[: 1 + (state.corrupt > 0)])

    with work("labelling frames") as frames, sigterm_stops() as terminated:
        summaries = annotate_videos(model, inputs, output, progress=note, **options)
    for summary in summaries:
        complain_of(summary.troubles, " frames could not be read, or not wholly", shown=5, total=summary.corrupt)
        if summary.problem:
            complain_of([summary.problem])
    if json:
        content = [_plain(summary) for summary in summaries]
        print_json(content[0] if len(inputs) == 1 else {"videos": content})
    else:
        for summary in summaries:
            _print(summary, len(inputs) > 1)
    if summaries[0].stopped:
        return 143 if terminated.is_set() else 130
    return 1 if any(summary.problem or summary.corrupt for summary in summaries) else 0


def _plain(summary: VideoSummary) -> dict[str, Any]:
    return asdict(summary) | {"widths": {f"{width:g}": count for width, count in summary.widths.items()}}


def _print(summary: VideoSummary, several: bool) -> None:
    if not summary.frames:
        return show(f"{summary.source}: nothing was written")
    p50, p95 = (summary.latency[name] for name in ("p50", "p95"))
    source = f"{summary.source}: " if several else ""
    show(f"{source}{summary.frames} frames written to {summary.output} ({summary.encoder}), {summary.dropped} dropped")
    show(f"{summary.fps:.1f} frames/s; a frame took {p50:.1f} ms, 95% of them less than {p95:.1f}")
    if summary.late is not None:
        shares = ", ".join(f"{width:g} in {count / summary.frames:.0%}" for width, count in summary.widths.items())
        what = "of the rounds, a frame of each input, took" if several else "took"
        changes = f"{len(summary.decisions)} changes{' in all' if several else ''}"
        show(f"{summary.late:.0%} {what} longer than the target; widths: {shares}; {changes}")
    if summary.smoothing is not None:
        cost = summary.smoothing
        flicker = " instead of ".join(f"{100 * share:.2f} %" for share in reversed(cost.flicker))
        late = f"{cost.lag_frames} frame{'s' * (cost.lag_frames != 1)}"
        show(f"smoothed: {flicker} of the pixels flicker; {cost.ms:.2f} ms a frame, sudden changes {late} late")
