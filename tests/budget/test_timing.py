from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from litheseg.budget.profiles import Way, profile_runtimes, render
from litheseg.cost.profile import profile
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import DataError, LithesegError
from litheseg.models.bundle import Bundle
from litheseg.runtime import standalone
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.timing import STAGES, Pipeline, measure_stages, measure_total, street_frames


class FakeEngine:
    """Logits of two classes at a quarter of the size: the second class where red is above 127."""

    runtime, precision, output, size = "fake", "fp32", "logits", None

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.seen.append(image.shape)
        red = image[2::4, 2::4, 0].astype(np.float32) - 127.5
        return np.stack([-red, red])


def image() -> np.ndarray:
    result = np.zeros((32, 48, 3), np.uint8)
    result[:, 24:, 0] = 255
    return result


def test_a_pipeline_goes_from_image_to_mask() -> None:
    engine = FakeEngine()
    mask = Pipeline(engine, (16, 24))(image())
    assert engine.seen == [(16, 24, 3)]
    assert mask.shape == (32, 48) and mask.dtype == np.uint8
    assert (mask[:, :20] == 0).all() and (mask[:, 28:] == 1).all()


def test_an_image_of_the_right_size_is_not_touched() -> None:
    picture = image()
    assert Pipeline(FakeEngine(), (32, 48)).prepare(picture) is picture
    assert Pipeline(FakeEngine()).prepare(picture) is picture


def test_a_pipeline_gives_the_predictors_mask(bundle: Bundle) -> None:
    [picture] = street_frames((48, 64), 1)
    pipeline = Pipeline(bundle_engine(bundle, 0.5, "torch"), bundle.header.size)
    assert np.mean(pipeline(picture) != Predictor(bundle, width=0.5)(picture)) < 0.01


def test_stages_are_told_apart_by_the_clock() -> None:
    ticks = itertools.accumulate([0, 1_000_000, 20_000_000, 3_000_000])
    assert Pipeline(FakeEngine(), (16, 24)).stages(image(), clock=lambda: next(ticks)) == (1.0, 20.0, 3.0)


def test_stages_add_up() -> None:
    result = measure_stages({"a": Pipeline(FakeEngine(), (16, 24))}, [image()], repeats=5, warmup=0)["a"]
    assert set(result) == {*STAGES, "total"}
    for index in range(5):
        assert result["total"].ms[index] == pytest.approx(sum(result[name].ms[index] for name in STAGES))


def test_every_pipeline_sees_the_same_images_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standalone, "_AGAIN", 0.0)  # one untimed pass a turn, however fast
    engines = {name: FakeEngine() for name in "ab"}
    pictures = [np.zeros((8 * (i + 1), 8, 3), np.uint8) for i in range(3)]
    result = measure_total({name: Pipeline(engine) for name, engine in engines.items()}, pictures, repeats=4, warmup=2)
    assert engines["a"].seen == engines["b"].seen
    assert [shape[0] for shape in engines["a"].seen[:4]] == [8, 16, 24, 8]
    assert all(len(times) == 4 for times in result.values())


def test_threads_are_set_around_everything_and_restored() -> None:
    seen: list[int] = []

    class Probe(FakeEngine):
        def __call__(self, picture: np.ndarray) -> np.ndarray:
            seen.append(torch.get_num_threads())
            return super().__call__(picture)

    before = torch.get_num_threads()
    Pipeline(Probe(), (16, 24), threads=before + 1)(image())
    assert seen == [before + 1] and torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1, "repeats": 1}])
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(LithesegError, match="timing needs"):
        measure_stages({"a": Pipeline(FakeEngine())}, [image()], **wrong)


@pytest.mark.parametrize("fps", [0.0, -3.0, float("nan")])
def test_a_pace_out_of_range(fps: float) -> None:
    with pytest.raises(LithesegError, match=r"fps is \S+; give images a second"):
        measure_stages({"a": Pipeline(FakeEngine())}, [image()], fps=fps)


def test_profile_counts_and_times_every_way(bundle: Bundle) -> None:
    rows, left_out = profile_runtimes(bundle, (1.0, 0.7), image=(48, 64), repeats=2, warmup=0, threads=1)
    assert [row.way for row in rows] == [Way(1.0, "torch", "fp32"), Way(0.7, "torch", "fp32")] and left_out == []
    for row, counted in zip(rows, profile(bundle, (1.0, 0.7), latency=False), strict=True):
        assert row.cost == counted
        content = row.to_dict()
        assert content["p50_ms"] <= content["p95_ms"] <= content["p99_ms"] and set(content["stages"]) == set(STAGES)
    assert render(rows, "title").row_count == 2


def test_what_cannot_run_here_is_an_error_or_left_out(bundle: Bundle) -> None:
    with pytest.raises(LithesegError, match="int8"):
        profile_runtimes(bundle, (0.5,), precisions=("int8",), repeats=1)
    rows, left_out = profile_runtimes(bundle, (0.5,), precisions=("fp32", "int8"), repeats=1, tolerant=True)
    assert [row.way.precision for row in rows] == ["fp32"]
    assert len(left_out) == 1 and left_out[0].startswith("torch int8: ")
    with pytest.raises(LithesegError, match="torch int8"):
        profile_runtimes(bundle, (0.5,), precisions=("int8",), repeats=1, tolerant=True)
    with pytest.raises(LithesegError, match="threads is 0"):
        profile_runtimes(bundle, (0.5,), threads=0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes(bundle: Bundle, runtime: str) -> None:
    pytest.importorskip(runtime)
    pytest.importorskip("onnxscript")
    [row], _ = profile_runtimes(bundle, (0.5,), runtimes=(runtime,), repeats=1, warmup=0, threads=1)
    assert row.stages["network"].ms[0] > 0


def test_an_engine_that_takes_other_sizes_says_so(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    engine = bundle_engine(bundle, 0.5, "onnxruntime", size=(32, 48))
    with pytest.raises(DataError, match="32x48"):
        measure_total({"a": Pipeline(engine, (16, 24))}, [image()], repeats=1)
