"""Whole fits of a tiny model: real exports and scores, times by formula."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from litheseg.budget import fit as room
from litheseg.budget import kit
from litheseg.budget.candidates import Candidate, Choices, Limits, Variant
from litheseg.budget.choose import choose_measured
from litheseg.budget.fit import fit
from litheseg.budget.fit_result import FitResult, pareto
from litheseg.budget.found import BudgetError, Point
from litheseg.budget.kit import Measurements, read_measurements
from litheseg.budget.measure import Accuracy, Exports
from litheseg.bundle.exported import load_export
from litheseg.cli import main
from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.bundle import calibrate, open_bundle_data
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, load_bundle, model_digest
from litheseg.runtime import latency
from litheseg.runtime.latency import Latency, Scope
from litheseg.runtime.pipeline import Pipeline
from litheseg.runtime.predictor import Predictor

FEW: dict[str, Any] = {"sizes": ((32, 48),), "runtime": ("torch",), "threads": (1,)}


def cost(candidate: Candidate) -> float:
    network = candidate.network
    return 2 + 18 * network.width * network.size[0] / 32 + 10 * (candidate.runtime == "torch")


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Puts a formula in the place of the clock; how many candidates were timed together, and how often."""
    calls: list[tuple[int, int]] = []

    def measure(
        pipelines: Mapping[Candidate, Pipeline], _: Any, *, repeats: int, **__: Any
    ) -> dict[Candidate, dict[Scope, Latency]]:
        calls.append((len(pipelines), repeats))
        return {c: {Scope.END_TO_END: Latency(Scope.END_TO_END, [cost(c)] * repeats)} for c in pipelines}

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(Exports, "engine", lambda *_: None)
    monkeypatch.setattr(Accuracy, "miou", lambda _, candidate: round(0.7 * candidate.network.width, 4))
    monkeypatch.setattr(Accuracy, "worst", lambda _, candidate: ("pole", round(0.06 * candidate.network.width, 4)))
    return calls


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> Callable[..., FitResult]:
    """`fit` of the bundle in a few places, with a cache of the test's own."""

    def run(budget: float, **options: Any) -> FitResult:
        assert bundle.path is not None
        return fit(bundle.path, budget=budget, cache=tmp_path / "cache", output=tmp_path / "out", force=True, **options)

    return run


def test_a_fit_from_model_to_bundle(run: Any, labelled: Path, tmp_path: Path) -> None:
    """Width 1 takes 30 ms, 0.5 takes 21: 0.875, 0.75 and so on are between."""
    result = run(26.0, data=labelled, command="litheseg fit ...", **FEW)
    promise = result.promise
    assert promise["runtime"] == "torch" and promise["milliseconds"] <= 26.0
    points = {point.candidate.network.width for point in result.found.points}
    assert {1.0, 0.5} < points, "widths between the trained ones were tried"
    best = max((p.miou or 0) for p in result.found.points if cost(p.candidate) <= 26.0)
    assert result.found.chosen.miou == best
    width = result.found.chosen.candidate.network.width
    assert Predictor(load_bundle(result.deployed), width=width)(np.zeros((40, 60, 3), np.uint8)).shape == (40, 60)
    assert (tmp_path / "out" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert content["promise"] == json.loads(json.dumps(promise)) and content["image"] == [48, 64]
    assert content["host"]["cpu"] and content["scored"] == result.scored and content["command"] == "litheseg fit ..."
    assert len(content["points"]) == len(points) and content["limits"]["milliseconds"] == 26.0
    assert not (tmp_path / "out" / "plan.json").exists(), "nothing is grouped"


def test_the_second_fit_only_verifies(run: Any, timed: list[tuple[int, int]]) -> None:
    first = run(26.0, **FEW)
    timed.clear()
    again = run(26.0, **FEW)
    assert again.found.chosen.candidate == first.found.chosen.candidate
    assert timed == [(1, 953)], "one proof, of 20 s: 953 times 21 ms"
    assert any("2 candidates have timings from an earlier fit" in note for note in again.found.notes)
    timed.clear()
    run(26.0, fresh=True, **FEW)
    assert timed[0][1] == 6


def test_a_frame_rate_is_part_of_the_promise_and_of_what_is_remembered(run: Any, timed: list[tuple[int, int]]) -> None:
    run(26.0, **FEW)
    timed.clear()
    result = run(26.0, fps=20, **FEW)
    assert timed[0] == (2, 6), "timed anew"
    assert timed[-1] == (1, 400), "20 s are 400 images"
    assert "end to end at 20 images a second, p95 21.00 ms" in result.sentence()
    assert result.promise["fps"] == result.to_dict()["limits"]["fps"] == 20
    timed.clear()
    run(26.0, fps=20, **FEW)
    assert timed == [(1, 400)]


def test_the_chosen_network_is_exported(run: Any, bundle: Bundle, labelled: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    choices = {**FEW, "widths": (0.7,), "runtime": ("onnxruntime",), "precision": ("fp32",)}
    export = load_export(run(20.0, data=labelled, **choices).deployed)
    assert export.path == tmp_path / "out" / "export" and export.widths == (0.7,)
    assert export.find(runtime="onnxruntime").size == (32, 48)
    data = open_bundle_data(bundle, labelled)
    picture = data.source.read_image(data.source.samples("val")[0])
    calibrated = Predictor(calibrate(bundle, data, (0.7,)), width=0.7)
    assert np.mean(Predictor(export)(picture) == calibrated(picture)) > 0.99


def test_images_of_the_data_are_timed(labelled: Path, bundle: Bundle) -> None:
    data = open_bundle_data(bundle, labelled)
    frames = room._frames(bundle, data, "val", None)
    first = data.source.read_image(data.source.samples("val")[0])
    assert np.array_equal(frames[0], first) and len(frames) == 2
    assert room._frames(bundle, data, "val", (24, 32))[0].shape == room._frames(bundle, None, "val", (24, 32))[0].shape


def test_without_data_trained_widths_count(run: Any) -> None:
    result = run(26.0, runtime=("torch",), threads=(1,))
    assert result.found.chosen.candidate.network == Variant(0.5, (32, 48), "fp32")
    assert result.found.chosen.miou == 0.35 and "no labelled data" in result.scored
    table = result.table()
    assert [row[0] for row in table.rows] == ["chosen", "too slow"]
    assert (
        "width 0.5 at 32x48, fp32 in torch, 1 thread: mIoU 35.0 % (worst class: pole 3.0 %), end to end, p95 21.00 ms"
        in result.sentence()
    )


def test_data_that_is_named_and_missing_is_an_error(run: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run(26.0, data=tmp_path / "nowhere", **FEW)


def test_too_little_names_the_nearest(run: Any) -> None:
    with pytest.raises(BudgetError, match=r"nearest is w0\.5-32x48-fp32 torch 1t: p95 21\.00 ms, mIoU 35\.0 %"):
        run(1.0, **FEW)


def test_a_width_that_a_narrower_one_outdoes_is_said_and_not_drawn(
    run: Any, timed: list[tuple[int, int]], labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {1.0: 0.7, 0.75: 0.3, 0.5: 0.35}  # 0.75 was not trained
    monkeypatch.setattr(Accuracy, "miou", lambda _, candidate: scores[candidate.network.width])
    monkeypatch.setattr(Accuracy, "worst", lambda _, candidate: ("c", 0.04))
    result = run(100.0, data=labelled, widths=(1.0, 0.75, 0.5), **FEW)
    [blind, outdone] = result.warnings
    assert blind.startswith("c is hardly found: IoU 4.0 % at width 1.") and "--min-class-iou" in blind
    assert "width 0.75 was not trained and scores 30.0 %, below the 35.0 % of the narrower width 0.5" in outdone
    drawn = [point.width for points in result._curves().values() for point in points]
    assert sorted(drawn) == [0.5, 1.0] and "0.75" not in {row[1] for row in result.table().rows}
    assert result.promise["worst_class"] == "c" and "worst class: c 4.0 %" in result.sentence()
    assert json.loads((result.folder / "fit.json").read_text())["warnings"] == result.warnings


def test_pareto() -> None:
    def point(width: float, milliseconds: float, miou: float | None) -> Point:
        return Point(
            Candidate(Variant(width, (8, 8), "fp32"), "torch", 1), Latency(Scope.END_TO_END, [milliseconds]), miou
        )

    points = [point(1.0, 9, 0.7), point(0.5, 5, 0.6), point(0.6, 6, 0.55), point(0.7, 9, 0.65), point(0.4, 1, None)]
    assert [p.candidate.network.width for p in pareto(points, 95)] == [0.5, 1.0]


# --- measurements of another machine ---------------------------------------------------------------------------------


def measurements(path: Path, model: str, fps: float | None = None) -> Path:
    rows = [
        {**c.to_dict(), "ms": [cost(c) / c.threads] * 90}
        for width in (1.0, 0.75, 0.5)
        for count in (1, 4)
        for c in [Candidate(Variant(width, (32, 48), "fp32"), "openvino", count)]
    ]
    content = {"litheseg": "measurements", "schema": 1, "model": model, "host": {"cpu": "a small box"}, "fps": fps}
    path.write_text(json.dumps({**content, "rows": rows}))
    return path


class Flat:
    def known(self, network: Variant) -> bool:
        return True

    def miou(self, candidate: Candidate) -> float:
        return candidate.network.width

    def worst(self, candidate: Candidate) -> tuple[str, float] | None:
        return ("pole", 0.1 * candidate.network.width)


def no_costs(networks: Iterable[Variant]) -> dict[Variant, dict[str, float]]:
    return {network: {"macs": 1e9 * network.width} for network in networks}


@pytest.fixture
def measured(tmp_path: Path) -> Measurements:
    return read_measurements(measurements(tmp_path / "measurements.json", "mine"), "mine")


def chosen(measured: Measurements, limits: Limits, **choices: Any) -> Candidate:
    allowed = [candidate for candidate in measured.samples if Choices(**choices).allow(candidate)]
    return choose_measured(measured, limits, Flat(), no_costs, allowed).chosen.candidate  # type: ignore[arg-type]


@pytest.mark.parametrize(("budget", "width", "threads"), [(6.0, 1.0, 4), (4.0, 0.75, 4), (30.0, 1.0, 4)])
def test_the_choice_from_measurements(measured: Measurements, budget: float, width: float, threads: int) -> None:
    candidate = chosen(measured, Limits(budget))
    assert (candidate.network.width, candidate.threads) == (width, threads)


def test_choices_and_limits_hold_for_measurements_too(measured: Measurements) -> None:
    assert chosen(measured, Limits(18.0), threads=(1,)).network.width == 0.75
    assert chosen(measured, Limits(6.0, reserve=2.0)).network.width == 0.75
    assert chosen(measured, Limits(6.0, macs=6e8)).network.width == 0.5
    with pytest.raises(BudgetError, match=r"best is w1-.*, whose worst class, pole, has 10\.0 %"):
        chosen(measured, Limits(6.0, min_class_iou=0.11))
    with pytest.raises(BudgetError, match=r"nearest is w0\.5-.* openvino 4t"):
        chosen(measured, Limits(0.1))
    with pytest.raises(LithesegError, match="that were measured: w1-32x48-fp32 openvino 1t"):
        chosen(measured, Limits(9.0), runtimes=("torch",))


def test_too_few_repeats_for_the_percentile(measured: Measurements) -> None:
    with pytest.raises(LithesegError, match=r"has 90 repeats, and the 99th percentile takes 299; run `python measure"):
        chosen(measured, Limits(9.0, percentile=99))


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is exported."""
    monkeypatch.setattr(Exports, "write", lambda *_, **__: None)


@pytest.mark.usefixtures("exported")
def test_a_fit_for_another_machine_promises_the_network_alone(
    run: Any, bundle: Bundle, tmp_path: Path, timed: list[tuple[int, int]]
) -> None:
    path = measurements(tmp_path / "measurements.json", model_digest(bundle))
    result = run(4.0, measured=path)
    assert result.promise["scope"] == "network" and result.host == {"cpu": "a small box"}
    assert result.found.chosen.candidate == Candidate(Variant(0.5, (32, 48), "fp32"), "openvino", 4)
    assert timed == [], "nothing is timed here"
    with pytest.raises(LithesegError, match="--plan does not go with --measured"):
        run(4.0, measured=path, plan=tmp_path / "plan.json")


@pytest.mark.usefixtures("exported")
def test_measurements_at_a_frame_rate_promise_that_rate(run: Any, bundle: Bundle, tmp_path: Path) -> None:
    path = measurements(tmp_path / "measurements.json", model_digest(bundle), fps=15)
    for fps in (None, 15):
        assert "network at 15 images a second, p95" in run(4.0, fps=fps, measured=path).sentence()
    with pytest.raises(LithesegError, match=r"at 15 images a second, not at 30; run `python measure\.py --fps 30`"):
        run(4.0, fps=30, measured=path)
    with pytest.raises(LithesegError, match="--fps 15 does not go with a budget of 100 ms"):
        run(100.0, measured=path)
    path = measurements(tmp_path / "measurements.json", model_digest(bundle))
    with pytest.raises(LithesegError, match="holds timings one image after the other, not at 30"):
        run(4.0, fps=30, measured=path)


def test_measurements_of_another_model_are_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(LithesegError, match="of another model"):
        run(4.0, measured=measurements(tmp_path / "measurements.json", "other"))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(bundle: Bundle, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", str(bundle.path), "--budget", "26ms", "--data", str(labelled), "--sizes", "32x48", "--threads", "1"]
    words += ["--runtime", "torch", "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "chosen  width" in out and "frontier.png" in out and "p95 ms" in out
    assert main(words) == 2
    assert "holds a fit already" in capsys.readouterr().err
    assert main([*words, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["litheseg"] == "fit"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "20"], ["--budget: '20' has no unit", "20ms"]),
        (["--budget", "abc ms"], ["'abc ms' is no time"]),
        (["--budget", "20ms", "--percentile", "100"], ["percentile 100", "95"]),
        (["--budget", "20ms", "--runtime", "tflite"], ["'tflite'", "'litert'"]),
        (["--budget", "20ms", "--fps", "60"], ["--fps 60", "50 images a second"]),
        (["--budget", "20ms", "--threads", "0"], ["'0'", "1,2"]),
        (["--budget", "20ms", "--sizes", "12"], ["'12'", "360x480"]),
        (["--budget", "20ms", "--model-size", "2"], ["'2'", "50MB"]),
        (["--budget", "20ms", "--measured", "nothing.json"], ["nothing.json"]),
        (["--budget", "2ms", "--runtime", "torch", "--threads", "1"], ["nothing has a p95 within 2.00 ms", "nearest"]),
    ],
)
def test_wrong_usage(
    bundle: Bundle, tmp_path: Path, options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["fit", str(bundle.path), *options, "--cache", str(tmp_path), "--output", str(output)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and all(word in message for word in words)
    assert not output.exists()


def test_measure_writes_a_kit(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    words = ["measure", str(bundle.path), "--widths", ".5", "--sizes", "32x48", "--output", str(tmp_path / "kit")]
    assert main(words) == 0
    assert "1 network and measure.py" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "kit").iterdir()} == {
        *("checks", "kit.json", "machine.py", "measure.py", "networks", "in_onnxruntime.py", "in_openvino.py")
    }


def test_two_kits_do_not_go_to_one_folder(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(tmp_path / "kit", beside=True):
        assert main(["measure", str(bundle.path), "--widths", ".5", "--output", str(tmp_path / "kit")]) == 2
    assert "kit is in use by process" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_kit_holds_every_width_at_every_size(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Variant] = []
    monkeypatch.setattr(kit, "_exported", lambda _, network, *rest: written.append(network) or [])
    words = ["measure", str(bundle.path), "--widths", "1,.5", "--sizes", "32x48,16x24"]
    assert main([*words, "--output", str(tmp_path / "kit")]) == 0
    assert "4 networks and measure.py" in capsys.readouterr().out
    assert {(n.width, n.size) for n in written} == {(w, s) for w in (1.0, 0.5) for s in ((32, 48), (16, 24))}


def test_the_helps_teach(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "measure", "profile"):
        assert main([command, "--help"]) == 0
        assert "examples:" in capsys.readouterr().out
