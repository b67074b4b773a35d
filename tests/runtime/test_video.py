from __future__ import annotations

import errno
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_colours import CLASSES, colour_bundle, dominant
from tiny_rtsp import RATE, RtspCamera
from tiny_video import FakeSource, frame, numbers, read_video, write_images, write_video

from litheseg.errors import DataError, LithesegError, MissingExtraError, WidthError
from litheseg.models import MODELS
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.video import VideoProgress, annotate_video, open_frames, retry_pauses
from litheseg.runtime.video import writing as writing_module
from litheseg.runtime.video.sources import LiveStream, TimedFrame
from litheseg.runtime.video.threads import ReadAhead, WriteBehind

av = pytest.importorskip("av")


@pytest.fixture
def predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.setitem(MODELS, "dominant", dominant)
    return Predictor(colour_bundle(tmp_path / "model.safetensors"), size=None)


@pytest.fixture
def slow(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> dict[float, float]:
    """Seconds that each width takes; to be changed by the test."""
    seconds = {1.0: 0.04, 0.5: 0.0}
    real = predictor.predict_rgb

    def predict_rgb(image: np.ndarray, *, width: float) -> np.ndarray:
        time.sleep(seconds[width])
        return real(image, width=width)

    monkeypatch.setattr(predictor, "predict_rgb", predict_rgb)
    return seconds


def leftovers(folder: Path) -> list[str]:
    """Files that should not be there: those that are being written begin with a dot."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


# Whole videos


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi", ".mov"])
def test_every_frame_of_a_file_is_labelled(predictor: Predictor, tmp_path: Path, ending: str) -> None:
    source = write_video(tmp_path / "in.mp4")
    seen: list[VideoProgress] = []
    summary = annotate_video(predictor, source, tmp_path / f"out{ending}", kind="mask", progress=seen.append)
    assert (summary.frames, summary.dropped, summary.corrupt, summary.problem) == (30, 0, 0, None)
    assert (summary.widths, summary.decisions, summary.encoder) == ({1.0: 30}, (), "libx264")
    assert summary.late is None
    assert summary.latency["p50"] <= summary.latency["p95"] <= summary.latency["p99"]
    frames = read_video(tmp_path / f"out{ending}")
    assert numbers(frames) == [number % 3 for number in range(30)]
    # The class colours, but for what the compression does to them.
    assert np.abs(frames[0].astype(int) - (255, 0, 0)).mean() < 8
    assert [state.frames for state in seen] == [*range(1, 31)]
    assert (seen[-1].total, seen[-1].width, seen[-1].dropped) == (30, 1.0, 0) and seen[-1].fps > 0
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 2)])
def test_pictures_of_any_size_and_kind(predictor: Predictor, tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(frame(number, *size)).save(folder / f"{number}.png")
    height, width = (side + side % 2 for side in size)
    for kind, columns in (("overlay", width), ("mask", width), ("side-by-side", 2 * size[1])):
        out = tmp_path / f"{kind}.mp4"
        annotate_video(predictor, folder, out, kind=kind, legend=False)  # type: ignore[arg-type]
        frames = read_video(out)
        assert len(frames) == 3 and frames[0].shape == (height, columns, 3)


def test_side_by_side_is_the_frame_and_its_overlay(predictor: Predictor, tmp_path: Path) -> None:
    annotate_video(
        predictor, write_images(tmp_path / "in"), tmp_path / "out", kind="side-by-side", alpha=1, legend=False
    )
    picture = np.asarray(Image.open(tmp_path / "out/frame_2.png"))
    assert np.array_equal(picture[:, :64], frame(1))
    assert (picture[:, 64:] == (0, 255, 0)).all()


def test_the_legend_stands_below_every_frame(predictor: Predictor, tmp_path: Path) -> None:
    annotate_video(predictor, write_images(tmp_path / "in"), tmp_path / "out", clear=[CLASSES.names[1]])
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").iterdir())]
    height, width = frame(1).shape[:2]
    assert {picture.shape for picture in pictures} == {pictures[0].shape} and pictures[0].shape[1] == width
    assert all(np.array_equal(picture[height:], pictures[0][height:]) for picture in pictures)
    named = {tuple(color) for color in pictures[0][height:].reshape(-1, 3).tolist()} & set(CLASSES.colors)
    assert named == {CLASSES.colors[0], CLASSES.colors[2]}
    assert np.array_equal(pictures[1][:height], frame(1)), "a frame of the class that stays clear"


def test_a_folder_of_masks_holds_class_indices(predictor: Predictor, tmp_path: Path) -> None:
    summary = annotate_video(predictor, write_images(tmp_path / "in", 12), tmp_path / "out", kind="mask")
    assert summary.encoder == "png"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"frame_{n}.png" for n in range(1, 13)}
    for number in range(12):
        mask = Image.open(tmp_path / f"out/frame_{number + 1}.png")
        assert mask.mode == "P" and (np.asarray(mask) == number % 3).all()
        assert mask.getpalette()[:9] == [value for color in CLASSES.colors for value in color]


def test_frames_of_a_video_are_counted_in_a_folder(predictor: Predictor, tmp_path: Path) -> None:
    annotate_video(predictor, write_video(tmp_path / "in.mp4", 3), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "000002.png"]


def test_times_and_rate_are_kept(predictor: Predictor, tmp_path: Path) -> None:
    annotate_video(predictor, write_video(tmp_path / "in.mp4", 20, rate=10), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [decoded.time for decoded in container.decode(video=0)]
    np.testing.assert_allclose(np.diff(times), 0.1, atol=1e-3)


def test_without_h264_mpeg4_is_written(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing_module, "_can_encode", lambda _, name: name == "mpeg4")
    summary = annotate_video(predictor, write_video(tmp_path / "in.mp4"), tmp_path / "out.mp4", kind="mask")
    assert summary.encoder == "mpeg4"
    assert numbers(read_video(tmp_path / "out.mp4")) == [number % 3 for number in range(30)]


def test_a_limit_and_another_width(predictor: Predictor, tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4")
    summary = annotate_video(predictor, source, tmp_path / "out.mp4", limit=7, width=0.5)
    assert (summary.frames, summary.widths, summary.problem) == (7, {0.5: 7}, None)
    assert predictor.width == 1.0, "the predictor's own width is left alone"


def test_an_animated_gif_is_a_video(predictor: Predictor, tmp_path: Path) -> None:
    frames = [Image.fromarray(frame(number)) for number in range(6)]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:], duration=100)
    assert annotate_video(predictor, tmp_path / "in.gif", tmp_path / "out.mp4", kind="mask").frames == 6
    assert numbers(read_video(tmp_path / "out.mp4")) == [0, 1, 2, 0, 1, 2]


# Images as frames


def test_images_come_in_the_order_of_counting(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", 11)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    for address in (folder, str(folder / "*.png"), folder / "frame_%d.png", str(folder / "frame_%02d.png")):
        source = open_frames(address, fps=10)
        frames = list(source)
        assert [found.name for found in frames] == [f"frame_{number}" for number in range(1, 12)]
        assert (source.total, source.live, float(source.rate)) == (11, False, 10)
        assert frames[3].seconds == pytest.approx(0.3)


def test_a_broken_image_is_left_out_and_named(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 4)
    (folder / "frame_2.png").write_bytes((folder / "frame_2.png").read_bytes()[:100])
    summary = annotate_video(predictor, folder, tmp_path / "out")
    assert (summary.frames, summary.corrupt) == (3, 1)
    assert "frame_2.png is damaged or truncated" in summary.troubles[0]


# Damage


def damaged(path: Path, count: int) -> Path:
    """With bytes in the middle overwritten."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + count] = np.random.default_rng(0).bytes(count)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_corrupt_frame_is_counted_and_named(predictor: Predictor, tmp_path: Path, codec: str) -> None:
    source = damaged(write_video(tmp_path / "in.mp4", codec=codec), 300)
    summary = annotate_video(predictor, source, tmp_path / "out.mp4", kind="mask")
    assert 26 <= summary.frames <= 30 and len(read_video(tmp_path / "out.mp4")) == summary.frames
    assert 1 <= summary.corrupt <= 4 and len(summary.troubles) == summary.corrupt
    assert all("frame at 0." in trouble for trouble in summary.troubles)
    assert "damaged" in summary.troubles[0] or "corrupt" in summary.troubles[0]


def test_frames_that_the_container_lost_are_missed(predictor: Predictor, tmp_path: Path) -> None:
    source = damaged(write_video(tmp_path / "in.mkv", codec="mpeg4"), 2500)
    summary = annotate_video(predictor, source, tmp_path / "out.mp4")
    assert summary.frames < 28
    assert summary.problem is not None and "in.mkv is truncated or damaged" in summary.problem


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".avi"])
def test_of_a_truncated_file_everything_that_is_there_is_kept(
    predictor: Predictor, tmp_path: Path, ending: str
) -> None:
    source = write_video(tmp_path / f"in{ending}", 60, faststart=ending == ".mp4")
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 6 // 10])
    summary = annotate_video(predictor, source, tmp_path / "out.mp4", kind="mask")
    assert summary.problem is not None and f"in{ending} is truncated or damaged" in summary.problem
    assert "of 60 frames are there" in summary.problem
    assert 30 <= summary.frames < 40 and not summary.stopped
    whole = summary.frames - 1  # of the last frame there may be a part
    assert numbers(read_video(tmp_path / "out.mp4"))[:whole] == [number % 3 for number in range(whole)]


def test_what_is_no_video_leaves_nothing_behind(predictor: Predictor, tmp_path: Path) -> None:
    cut = write_video(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:1000])  # the index is at the end
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video " * 100)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    (tmp_path / "none").mkdir()
    for name, message in (
        ("cut.mp4", "is no video, or was cut off before its index"),
        ("empty.mp4", "is no video"),
        ("text.mp4", "is no video"),
        ("sound.wav", "has no pictures"),
        ("missing.mp4", "does not exist"),
        ("none", "no images in"),
        ("*.jpg", "no images in"),
    ):
        with pytest.raises(DataError, match=message):
            annotate_video(predictor, tmp_path / name, tmp_path / "out.mp4")
    folder = write_images(tmp_path / "broken", 1)
    (folder / "frame_1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"no frame could be decoded .*frame_1\.png"):
        annotate_video(predictor, folder, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists() and not leftovers(tmp_path)


def test_there_is_no_camera_and_no_server(predictor: Predictor, tmp_path: Path) -> None:
    for address in (97, "97", "/dev/video97", "rtsp://user:secret@127.0.0.1:9/x", "http://127.0.0.1:9/x.ts"):
        with pytest.raises(DataError, match="cannot open") as raised:
            annotate_video(predictor, address, tmp_path / "out.mp4")
        assert "secret" not in str(raised.value)


# Live sources


def test_of_a_live_source_the_newest_frame_is_taken(
    predictor: Predictor, slow: dict[float, float], tmp_path: Path
) -> None:
    slow[1.0] = 0.05
    source = FakeSource(60, live=True, pause=0.005)
    summary = annotate_video(predictor, source, tmp_path / "out.mp4")
    assert summary.frames + summary.dropped == 60
    assert summary.frames < summary.dropped
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [decoded.time for decoded in container.decode(video=0)]
    assert times[-1] == pytest.approx(59 / 25, abs=0.05), "what is dropped leaves its time behind"


def test_of_a_file_frames_are_dropped_only_if_asked(
    predictor: Predictor, slow: dict[float, float], tmp_path: Path
) -> None:
    slow[1.0] = 0.1
    source = write_video(tmp_path / "in.mp4", 25)
    began = time.monotonic()
    summary = annotate_video(predictor, source, tmp_path / "out.mp4", drop=True)
    assert summary.frames + summary.dropped == 25 and summary.dropped > 5
    assert time.monotonic() - began > 0.9, "it is played as fast as it was recorded"


def test_reading_ahead_keeps_every_frame_and_its_order() -> None:
    source = FakeSource(50, live=False)
    with ReadAhead(source) as frames_read:
        seen = [found.seconds for found in frames_read]
    assert seen == [number / 25 for number in range(50)] and frames_read.dropped == 0 and source.closed


def test_leaving_early_stops_the_reader() -> None:
    source = FakeSource(10_000, live=True, pause=0.001)
    with ReadAhead(source, newest=True) as frames_read:
        next(iter(frames_read))
    assert source.stopped and source.closed
    assert not any(thread.name == "frames" for thread in threading.enumerate())


def test_an_error_while_reading_is_raised_where_frames_are_used() -> None:
    class Broken(FakeSource):
        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()
            raise DataError("the cable fell out")

    seen = []
    with pytest.raises(DataError, match="cable"), ReadAhead(Broken(3, live=False)) as frames_read:
        seen.extend(frames_read)
    assert len(seen) == 3


class SlowWriter:
    encoder = "slow"

    def __init__(self, fails_at: int = -1) -> None:
        self.written: list[int] = []
        self._fails_at = fails_at

    def write(self, frame: TimedFrame, picture: np.ndarray, mask: np.ndarray) -> None:
        time.sleep(0.005)
        if len(self.written) == self._fails_at:
            raise LithesegError("no space")
        self.written.append(int(mask[0, 0]))


def masks() -> Iterator[np.ndarray]:
    return (np.full((1, 1), number, np.uint8) for number in range(30))


def test_writing_behind_keeps_every_picture_and_its_order() -> None:
    writer = SlowWriter()
    with WriteBehind(writer.write) as behind:
        for mask in masks():
            behind.write(TimedFrame(mask, 0.0), mask, mask)
    assert writer.written == [*range(30)]


def test_an_error_of_the_writer_is_raised_and_nobody_waits_for_it() -> None:
    for fails_at in (0, 3, 29):
        writer, offered = SlowWriter(fails_at), 0
        with pytest.raises(LithesegError, match="no space"), WriteBehind(writer.write) as behind:
            for mask in masks():
                behind.write(TimedFrame(mask, 0.0), mask, mask)
                offered += 1
        assert writer.written == [*range(fails_at)] and offered >= fails_at


def test_after_an_error_pictures_that_wait_are_not_written() -> None:
    writer = SlowWriter()
    with pytest.raises(ValueError), WriteBehind(writer.write) as behind:
        for mask in masks():
            behind.write(TimedFrame(mask, 0.0), mask, mask)
        raise ValueError
    assert 20 < len(writer.written) < 30


@pytest.mark.parametrize("pauses", [(0.5, 1, 2, 4, 4), ()])
def test_pauses_double_up_to_a_limit(pauses: tuple[float, ...]) -> None:
    assert retry_pauses(attempts=len(pauses), first=0.5, longest=4) == pauses


def test_a_lost_stream_is_opened_again_and_given_up_in_the_end(predictor: Predictor, tmp_path: Path) -> None:
    clip = str(write_video(tmp_path / "clip.mp4", 10))
    answers: list[Any] = [
        ConnectionRefusedError(111, "Connection refused"),
        clip,
        clip,
        OSError("gone"),
        OSError("gone"),
    ]

    def connect() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return av.open(answer)

    source = LiveStream("camera 3", connect, retry_pauses(attempts=2, first=0.01), av.open(clip))
    with ReadAhead(source) as frames_read:
        frames = list(frames_read)
    assert len(frames) == 30 and not answers
    assert source.problem == "camera 3 was lost after 30 frames (it ended), and not found in 2 attempts"
    assert source.troubles.named[0] == "camera 3 was lost after 10 frames (it ended)" and source.troubles.count == 3
    assert all(after.seconds >= before.seconds for before, after in pairwise(frames))


@contextmanager
def http_server(content: bytes, *, connections: int) -> Iterator[str]:
    """Serve a stream without a length, so often; then refuse."""
    left = [connections]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left[0] -= 1
            if left[0] < 0:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live.ts"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_stream_over_http_that_breaks_off(predictor: Predictor, tmp_path: Path) -> None:
    content = write_video(tmp_path / "clip.ts", 20, codec="mpeg4").read_bytes()
    with http_server(content, connections=3) as url:
        source = open_frames(url, pauses=retry_pauses(attempts=2, first=0.01))
        summary = annotate_video(predictor, source, tmp_path / "out.mp4", kind="mask")
    assert summary.problem is not None and "/live.ts was lost after" in summary.problem
    assert summary.frames + summary.dropped >= 30
    assert len(read_video(tmp_path / "out.mp4")) == summary.frames, "what came is kept, and plays"


def test_a_camera_that_speaks_rtsp_and_goes_away_twice(predictor: Predictor, tmp_path: Path) -> None:
    with RtspCamera(30, 20) as camera:
        source = open_frames(camera.url, pauses=retry_pauses(attempts=2, first=0.01))
        with ReadAhead(source) as frames_read:
            frames = list(frames_read)
    assert source.live and source.total is None and source.rate == RATE
    assert 45 <= len(frames) <= 50, "the last frame of a connection may be in part"
    assert numbers([found.pixels for found in frames[:25]]) == [number % 3 for number in range(25)]
    assert source.problem is not None and f"{camera.url} was lost after {len(frames)} frames" in source.problem
    assert all(after.seconds >= before.seconds for before, after in pairwise(frames))


# The controller at work


def test_the_width_holds_a_target(predictor: Predictor, slow: dict[float, float], tmp_path: Path) -> None:
    slow.update({1.0: 0.1, 0.5: 0.0})
    source = FakeSource(40, live=False)
    seen: list[VideoProgress] = []
    summary = annotate_video(predictor, source, tmp_path / "out.mp4", target_fps=20, progress=seen.append)
    assert summary.widths[0.5] > 30 and summary.widths[1.0] < 10
    assert summary.late is not None and 0 < summary.late < 0.25
    [decision] = summary.decisions
    assert (decision.before, decision.after) == (1.0, 0.5)
    assert seen[-1].width == 0.5
    assert predictor.width == 1.0


def test_both_targets_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(LithesegError, match="only one of them"):
        annotate_video(predictor, write_images(tmp_path / "in"), tmp_path / "out.mp4", target_ms=5, target_fps=5)


# Ends that nobody wished for


def test_ctrl_c_leaves_a_video_that_plays(predictor: Predictor, tmp_path: Path) -> None:
    def interrupt(state: VideoProgress) -> None:
        if state.frames == 9:
            raise KeyboardInterrupt

    source = FakeSource(1000, live=True, pause=0.001)
    summary = annotate_video(predictor, source, tmp_path / "out.mp4", kind="mask", progress=interrupt)
    assert (summary.frames, summary.stopped, summary.problem) == (9, True, "stopped by Ctrl-C")
    assert len(read_video(tmp_path / "out.mp4")) == 9
    assert source.closed and not leftovers(tmp_path)


@pytest.mark.parametrize("out", ["out.mp4", "out"])
def test_an_error_leaves_nothing_behind(
    predictor: Predictor, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fails(image: np.ndarray, *, width: float) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise LithesegError("the network broke")
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr(predictor, "predict_rgb", fails)
    with pytest.raises(LithesegError, match="the network broke"):
        annotate_video(predictor, write_video(tmp_path / "in.mp4"), tmp_path / out)
    assert not (tmp_path / out).exists() and not leftovers(tmp_path)


@pytest.mark.parametrize(("out", "method"), [("out.mp4", "VideoWriter.write"), ("out", "FolderWriter.write")])
def test_a_full_disk_is_said_and_leaves_nothing_behind(
    predictor: Predictor, tmp_path: Path, out: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"litheseg.runtime.video.writing.{method}", full)
    with pytest.raises(LithesegError, match=rf"cannot write .*{out}: No space left on device"):
        annotate_video(predictor, write_video(tmp_path / "in.mp4"), tmp_path / out)
    assert not (tmp_path / out).exists() and not leftovers(tmp_path)


def test_what_exists_is_kept(predictor: Predictor, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 2)
    (tmp_path / "out.mp4").write_text("mine")
    with pytest.raises(DataError, match=r"out\.mp4 exists"):
        annotate_video(predictor, source, tmp_path / "out.mp4")
    assert annotate_video(predictor, source, tmp_path / "out.mp4", force=True).frames == 2
    assert len(read_video(tmp_path / "out.mp4")) == 2
    for force in (False, True):
        with pytest.raises(DataError, match="a folder that holds files"):
            annotate_video(predictor, source, tmp_path / "in", force=force)
    assert len(list((tmp_path / "in").iterdir())) == 2
    (tmp_path / "new").mkdir()
    assert annotate_video(predictor, source, tmp_path / "new").frames == 2


def test_wrong_options(predictor: Predictor, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 2)
    for options, error, message in (
        ({"kind": "mosaic"}, DataError, "unknown kind 'mosaic'"),
        ({"alpha": 2}, DataError, "alpha 2"),
        ({"limit": 0}, DataError, "limit 0"),
        ({"width": 0.3}, WidthError, "no width 0.3"),
        ({"output": tmp_path / "out.wmv"}, DataError, r"no video is written as '\.wmv'"),
    ):
        arguments: dict[str, Any] = {"output": tmp_path / "out.mp4", **options}
        with pytest.raises(error, match=message):
            annotate_video(predictor, source, **arguments)
    assert not leftovers(tmp_path)


def test_without_pyav(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_video(tmp_path / "in.mp4", 2)
    images = write_images(tmp_path / "images", 2)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for address, out in ((source, "out"), (images, "out.mp4")):
        with pytest.raises(MissingExtraError, match=r"pip install 'litheseg\[video\]'"):
            annotate_video(predictor, address, tmp_path / out)
    assert annotate_video(predictor, images, tmp_path / "out").frames == 2, "folders need no PyAV"


def test_images_and_frames_that_are_too_large(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", 3)
    Image.new("RGB", (200, 100)).save(folder / "frame_2.png")
    summary = annotate_video(predictor, folder, tmp_path / "out", kind="mask", max_pixels=48 * 64)
    assert (summary.frames, summary.corrupt) == (2, 1) and "200 x 100 pixels" in summary.troubles[0]
    video = write_video(tmp_path / "in.mp4", 2)
    with pytest.raises(DataError, match="64 x 48 pixels, and at most 3071"):
        annotate_video(predictor, video, tmp_path / "out.mp4", max_pixels=48 * 64 - 1)
    assert annotate_video(predictor, video, tmp_path / "out.mp4", max_pixels=48 * 64).frames == 2
