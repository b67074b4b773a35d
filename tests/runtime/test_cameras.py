"""Several sources through one network and one budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry import registered
from tiny_colours import colour_bundle, dominant
from tiny_video import FakeSource, numbers, read_video, write_images, write_video

from litheseg.cli import main
from litheseg.errors import DataError, LithesegError
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.video import annotate_videos

pytest.importorskip("av")
_registered = registered(dominant=dominant)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    colour_bundle(path)
    return str(path)


@pytest.fixture(scope="module")
def predictor(model: str) -> Predictor:
    return Predictor(model)


def test_every_file_is_labelled_whole_and_in_order(predictor: Predictor, tmp_path: Path) -> None:
    inputs = [write_video(tmp_path / "a.mp4", 7), write_images(tmp_path / "b", 3), write_video(tmp_path / "c.mp4", 12)]
    summaries = annotate_videos(predictor, inputs, tmp_path / "out.mp4", kind="mask")
    assert [summary.frames for summary in summaries] == [7, 3, 12]
    for place, (summary, count) in enumerate(zip(summaries, (7, 3, 12), strict=True)):
        assert summary.output == str(tmp_path / f"out-{place + 1}.mp4") and summary.problem is None
        assert numbers(read_video(Path(summary.output))) == [number % 3 for number in range(count)]


def test_live_sources_do_not_wait_for_each_other(predictor: Predictor, tmp_path: Path) -> None:
    quick, slow = FakeSource(40, live=True, pause=0.005), FakeSource(3, live=True, pause=0.1)
    summaries = annotate_videos(predictor, [quick, slow], tmp_path / "out")
    assert summaries[1].frames == 3, "all that it gave"
    assert summaries[0].frames + summaries[0].dropped == 40 and summaries[0].frames > 6
    assert quick.closed and slow.closed


def test_a_budget_is_shared(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    cost = {1.0: 0.008, 0.5: 0.002}

    def slowed(self: Predictor, image: np.ndarray, *, width: float) -> np.ndarray:
        time.sleep(cost[width])
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr(Predictor, "predict_rgb", slowed)
    sources = [FakeSource(60, live=False) for _ in range(2)]
    wide, narrow = annotate_videos(predictor, sources, tmp_path / "out", kind="mask", target_ms=14, priorities=(2, 1))
    assert wide.widths[1.0] > narrow.widths.get(1.0, 0) and narrow.widths[0.5] > 0
    assert wide.decisions == narrow.decisions and wide.late == narrow.late


def test_one_that_cannot_be_read_does_not_spoil_the_others(predictor: Predictor, tmp_path: Path) -> None:
    broken = write_images(tmp_path / "broken", 1)
    (broken / "frame_1.png").write_bytes(b"nothing")
    good, bad = annotate_videos(predictor, [write_images(tmp_path / "good", 4), broken], tmp_path / "out")
    assert (good.frames, good.problem) == (4, None)
    assert bad.frames == 0 and "no frame could be decoded" in str(bad.problem) and bad.corrupt == 1
    assert len(list((tmp_path / "out-1").iterdir())) == 4 and not (tmp_path / "out-2").exists()
    with pytest.raises(DataError, match="no frame could be decoded"):
        annotate_videos(predictor, [broken, broken], tmp_path / "none")


def test_an_error_leaves_nothing_behind(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def failing(self: Predictor, image: np.ndarray, *, width: float) -> np.ndarray:
        if next(calls) == 5:
            raise LithesegError("the network broke")
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr(Predictor, "predict_rgb", failing)
    inputs = [write_images(tmp_path / name, 9) for name in "ab"]
    with pytest.raises(LithesegError, match="the network broke"):
        annotate_videos(predictor, inputs, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_ctrl_c_finishes_all(predictor: Predictor, tmp_path: Path) -> None:
    def stop(state: Any) -> None:
        if state.frames == 6:
            raise KeyboardInterrupt

    inputs = [write_video(tmp_path / f"{name}.mp4", 20) for name in "ab"]
    summaries = annotate_videos(predictor, inputs, tmp_path / "out.mp4", progress=stop)
    assert [summary.frames for summary in summaries] == [3, 3] and all(summary.stopped for summary in summaries)
    assert [len(read_video(tmp_path / f"out-{place}.mp4")) for place in (1, 2)] == [3, 3]


def test_flicker_is_less_with_smoothing_and_labels_keep_their_size(predictor: Predictor, tmp_path: Path) -> None:
    # Colours change with every frame: an average over time can only calm them.
    [summary] = annotate_videos(predictor, [write_video(tmp_path / "a.mp4", 12)], tmp_path / "out.mp4", smooth=0.8)
    cost = summary.smoothing
    assert cost is not None and cost.lag_frames == 3 and cost.ms > 0
    assert cost.changed[0] == 1 and cost.changed[1] < 0.5 and summary.frames == 12


def test_the_command_with_two_inputs(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [str(write_images(tmp_path / name, 3)) for name in "ab"]
    line = ["video", model, *inputs, "--output", str(tmp_path / "out"), "--target-ms", "1000", "--smooth", "0.6"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert printed.count("3 frames written to") == 2 and "of the rounds, a frame of each input" in printed
    assert "instead of" in printed and "1 frame late" in printed
    line[line.index("--output") + 1] = str(tmp_path / "json")
    assert main([*line, "--json", "--limit", "2"]) == 0
    first, second = json.loads(capsys.readouterr().out)["videos"]
    assert first["frames"] == second["frames"] == 2 and first["source"] == inputs[0]
    assert first["smoothing"]["weight"] == 0.6 and second["output"].endswith("json-2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target-ms", "50", "--priorities", "1"], "1 priorities for 2 cameras"),
        (["--priorities", "2,1"], "priorities share a budget"),
        (["--smooth", "1"], "less than 1"),
        (["--smooth", "0.5", "--tile", "256"], "in tiles cannot be smoothed"),
    ],
)
def test_what_the_command_refuses(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    inputs = [str(write_images(tmp_path / name, 2)) for name in "ab"]
    assert main(["video", model, *inputs, "--output", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
