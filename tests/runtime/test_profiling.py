from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from tiny_budget import untrained
from torch import nn

import litheseg
from litheseg import machine
from litheseg.cli import main
from litheseg.cost import width_costs
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import DataError, LithesegError
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import Engine
from litheseg.runtime.latency import Scope, measure, street_frames
from litheseg.runtime.pipeline import STAGES, Pipeline
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.profiling import profile, profile_table


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained(tmp_path_factory.mktemp("model") / "model.safetensors")


class FakeEngine(Engine):
    """Logits of two classes at a quarter of the size: the second class where red is above 127."""

    runtime, precision, output, size = "fake", "fp32", "logits", None

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def run(self, image: np.ndarray) -> np.ndarray:
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
    assert np.array_equal(pipeline(picture), Predictor(bundle, width=0.5)(picture))


def test_stages_are_told_apart_by_the_clock() -> None:
    ticks = itertools.accumulate([0, 1_000_000, 20_000_000, 3_000_000])
    assert Pipeline(FakeEngine(), (16, 24)).stages(image(), clock=lambda: next(ticks)) == (1.0, 20.0, 3.0)


def test_stages_add_up() -> None:
    result = measure({"a": Pipeline(FakeEngine(), (16, 24))}, [image()], repeats=5, warmup=0)["a"]
    assert set(result) == set(Scope) and all(latency.scope is scope for scope, latency in result.items())
    for index in range(5):
        stages = (result[Scope(name)].ms[index] for name in STAGES)
        assert result[Scope.END_TO_END].ms[index] == pytest.approx(sum(stages))


def test_every_pipeline_sees_the_same_images_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_AGAIN", 0.0)  # one untimed pass a turn, however fast
    engines = {name: FakeEngine() for name in "ab"}
    pictures = [np.zeros((8 * (i + 1), 8, 3), np.uint8) for i in range(3)]
    result = measure({name: Pipeline(engine) for name, engine in engines.items()}, pictures, repeats=4, warmup=2)
    assert engines["a"].seen == engines["b"].seen
    assert [shape[0] for shape in engines["a"].seen[:4]] == [8, 16, 24, 8]
    assert all(len(stages[Scope.END_TO_END]) == 4 for stages in result.values())


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1, "repeats": 1}])
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(LithesegError, match="timing needs"):
        measure({"a": Pipeline(FakeEngine())}, [image()], **wrong)


@pytest.mark.parametrize("fps", [0.0, -3.0, float("nan")])
def test_a_pace_out_of_range(fps: float) -> None:
    with pytest.raises(LithesegError, match=r"fps is \S+; give images a second"):
        measure({"a": Pipeline(FakeEngine())}, [image()], fps=fps)


def test_profile_counts_and_times_every_way(bundle: Bundle) -> None:
    rows = profile(bundle, (1.0, 0.7), image=(48, 64), repeats=2, warmup=0, threads=1)
    assert [(row.width, row.runtime, row.precision) for row in rows] == [(1.0, "torch", "fp32"), (0.7, "torch", "fp32")]
    for row, counted in zip(rows, width_costs(bundle, (1.0, 0.7)), strict=True):
        assert (row.params, row.macs, row.peak_bytes) == (counted.params, counted.macs, counted.peak_bytes)
        content = row.to_dict()
        total = content["end_to_end"]
        assert total["p50_ms"] <= total["p95_ms"] <= total["p99_ms"] and content["network"]["p50_ms"] < total["p50_ms"]
    table = profile_table(rows)
    assert {"MACs", "network", "end to end p95"} <= set(table.head) and len(table.rows) == 2


def test_the_function_and_the_command_give_the_same_quantity(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "stages", lambda self, image: (1.0, 20.0, 3.0))
    assert main(["profile", str(bundle.path), "--widths", "0.5", "--repeats", "2", "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)["widths"]
    [row] = litheseg.profile(bundle, (0.5,), repeats=2)
    assert row.to_dict() == shown
    assert (shown["end_to_end"]["p50_ms"], shown["network"]["p50_ms"]) == (24.0, 20.0)


def test_a_module_is_profiled_as_it_is(bundle: Bundle) -> None:
    [row] = profile(nn.Conv2d(3, 5, 1), size=(8, 12), repeats=1, warmup=0)
    assert (row.width, row.macs) == (1.0, 8 * 12 * 15)
    elastic = bundle.model()
    assert [row.width for row in profile(elastic, size=(32, 48), repeats=1, warmup=0)] == [1.0, 0.5]
    with pytest.raises(LithesegError, match="runs in PyTorch"):
        profile(elastic, size=(32, 48), runtimes=("openvino",), repeats=1)


def test_what_cannot_run_here_is_an_error_or_left_out(bundle: Bundle) -> None:
    with pytest.raises(LithesegError, match="int8"):
        profile(bundle, (0.5,), precisions=("int8",), repeats=1)
    reasons: list[str] = []
    rows = profile(bundle, (0.5,), runtimes=("torch",), precisions=("fp32", "int8"), repeats=1, left_out=reasons.append)
    assert [row.precision for row in rows] == ["fp32"]
    assert len(reasons) == 1 and reasons[0].startswith("torch int8: ")
    with pytest.raises(LithesegError, match="torch int8"):
        profile(bundle, (0.5,), runtimes=("torch",), precisions=("int8",), repeats=1, left_out=reasons.append)
    with pytest.raises(LithesegError, match="threads is 0"):
        profile(bundle, (0.5,), threads=0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes(bundle: Bundle, runtime: str) -> None:
    pytest.importorskip(runtime)
    pytest.importorskip("onnxscript")
    [row] = profile(bundle, (0.5,), runtimes=(runtime,), repeats=1, warmup=0, threads=1)
    assert row.runtime == runtime and row.latency[Scope.NETWORK].ms[0] > 0


def test_an_engine_that_takes_other_sizes_says_so(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    engine = bundle_engine(bundle, 0.5, "onnxruntime", size=(32, 48))
    with pytest.raises(DataError, match="32x48"):
        measure({"a": Pipeline(engine, (16, 24))}, [image()], repeats=1)
