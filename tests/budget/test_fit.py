"""Whole fits of a tiny model: real exports and scores, times by formula."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from litheseg.budget import fit as room
from litheseg.budget import target
from litheseg.budget.account import pareto
from litheseg.budget.candidates import Candidate, Network
from litheseg.budget.fit import Choices, Fit
from litheseg.budget.limits import Limits
from litheseg.budget.measured import choose_measured
from litheseg.budget.scores import MeasuredScores
from litheseg.budget.search import BudgetError, Point
from litheseg.budget.target import Measurements, read_measurements
from litheseg.bundle.exported import load_export
from litheseg.cli import build_parser, main
from litheseg.errors import LithesegError
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, load_bundle, model_digest
from litheseg.runtime.latency import Latency, Scope
from litheseg.runtime.predictor import Predictor

FEW = Choices(sizes=((32, 48),), runtimes=("torch",), threads=(1,))


def cost(candidate: Candidate) -> float:
    network = candidate.network
    return 2 + 18 * network.width * network.size[0] / 32 + 10 * (candidate.runtime == "torch")


class FakeBench:
    """In the place of `Bench`."""

    calls: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, engine: Callable[[Candidate], Any], frames: Sequence[np.ndarray], **_: Any) -> None:
        self.frames = frames

    def unusable(self, candidates: Iterable[Candidate]) -> dict[Candidate, str]:
        return {}

    def measure(self, candidates: Sequence[Candidate], repeats: int) -> dict[Candidate, list[float]]:
        FakeBench.calls.append((len(candidates), repeats))
        return {c: [cost(c)] * repeats for c in candidates}


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "Bench", FakeBench)
    monkeypatch.setattr(FakeBench, "calls", [])
    monkeypatch.setattr(MeasuredScores, "miou", lambda _, network: round(0.7 * network.width, 4))


def test_a_fit_from_model_to_bundle(bundle: Bundle, labelled: Path, tmp_path: Path) -> None:
    """Width 1 takes 30 ms, 0.5 takes 21: 0.875, 0.75 and so on are between."""
    fit = Fit(bundle, Limits(26.0), FEW, data=labelled, cache=tmp_path / "cache")
    account = fit.run()
    promise = account.promise
    assert promise["runtime"] == "torch" and promise["milliseconds"] <= 26.0
    points = {point.candidate.network.width for point in account.found.points}
    assert {1.0, 0.5} < points, "widths between the trained ones were tried"
    best = max((p.miou or 0) for p in account.found.points if cost(p.candidate) <= 26.0)
    assert account.found.chosen.miou == best
    model = fit.deliver(account, tmp_path / "out", command="litheseg fit ...")
    width = account.found.chosen.candidate.network.width
    assert Predictor(load_bundle(model), width=width)(np.zeros((40, 60, 3), np.uint8)).shape == (40, 60)
    assert (tmp_path / "out" / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert content["promise"] == json.loads(json.dumps(promise)) and content["image"] == [48, 64]
    assert content["host"]["cpu"] and content["scored"] == account.scored and content["command"] == "litheseg fit ..."
    assert len(content["points"]) == len(points) and content["limits"]["milliseconds"] == 26.0
    assert not (tmp_path / "out" / "plan.json").exists(), "nothing is grouped"


def test_the_second_fit_only_verifies(bundle: Bundle, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache"}
    first = Fit(bundle, Limits(26.0), FEW, **options).run()
    FakeBench.calls.clear()
    again = Fit(bundle, Limits(26.0), FEW, **options).run()
    assert again.found.chosen.candidate == first.found.chosen.candidate
    assert FakeBench.calls == [(1, 953)], "one proof, of 20 s: 953 times 21 ms"
    FakeBench.calls.clear()
    Fit(bundle, Limits(26.0), FEW, fresh=True, **options).run()
    assert FakeBench.calls[0][1] == 6


def test_a_pace_is_part_of_the_promise_and_of_what_is_remembered(bundle: Bundle, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache"}
    Fit(bundle, Limits(26.0), FEW, **options).run()
    FakeBench.calls.clear()
    account = Fit(bundle, Limits(26.0, fps=20), FEW, **options).run()
    assert FakeBench.calls[0] == (2, 6), "timed anew"
    assert FakeBench.calls[-1] == (1, 400), "20 s are 400 images"
    assert "end to end at 20 images a second, p95 21.00 ms" in account.sentence()
    assert account.promise["fps"] == account.to_dict()["limits"]["fps"] == 20
    FakeBench.calls.clear()
    Fit(bundle, Limits(26.0, fps=20), FEW, **options).run()
    assert FakeBench.calls == [(1, 400)]


def test_the_chosen_network_is_exported(bundle: Bundle, labelled: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    choices = Choices((0.7,), ((32, 48),), ("onnxruntime",), ("fp32",), (1,))
    fit = Fit(bundle, Limits(20.0), choices, data=labelled, cache=tmp_path / "cache")
    export = load_export(fit.deliver(fit.run(), tmp_path / "out"))
    assert export.path == tmp_path / "out" / "export" and export.widths == (0.7,)
    assert export.find(runtime="onnxruntime").size == (32, 48)
    picture = fit.frames[0]
    calibrated = Predictor(fit._calibrated(0.7), width=0.7)
    assert np.mean(Predictor(export)(picture) == calibrated(picture)) > 0.99


def test_without_data_trained_widths_count(bundle: Bundle, tmp_path: Path) -> None:
    account = Fit(bundle, Limits(26.0), Choices(runtimes=("torch",), threads=(1,)), cache=tmp_path).run()
    assert account.found.chosen.candidate.network == Network(0.5, (32, 48), "fp32")
    assert account.found.chosen.miou == 0.6 and "no labelled data" in account.scored
    table = account.table()
    assert table.row_count == 2
    assert list(table.columns[0].cells) == ["chosen", "too slow"]
    assert "width 0.5 at 32x48, fp32 in torch, 1 thread: mIoU 60.0 %, end to end, p95 21.00 ms" in account.sentence()


def test_too_little_names_the_nearest(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"nearest is w0\.5-32x48-fp32 torch 1t: p95 21\.00 ms, mIoU 60\.0 %"):
        Fit(bundle, Limits(1.0), FEW, cache=tmp_path).run()


def test_pareto() -> None:
    def point(width: float, milliseconds: float, miou: float | None) -> Point:
        return Point(
            Candidate(Network(width, (8, 8), "fp32"), "torch", 1), Latency(Scope.END_TO_END, [milliseconds]), miou
        )

    points = [point(1.0, 9, 0.7), point(0.5, 5, 0.6), point(0.6, 6, 0.55), point(0.7, 9, 0.65), point(0.4, 1, None)]
    assert [p.candidate.network.width for p in pareto(points, 95)] == [0.5, 1.0]


# --- measurements of another machine ---------------------------------------------------------------------------------


def measurements(path: Path, model: str, fps: float | None = None) -> Path:
    rows = [
        {**c.to_dict(), "ms": [cost(c) / c.threads] * 90}
        for width in (1.0, 0.75, 0.5)
        for count in (1, 4)
        for c in [Candidate(Network(width, (32, 48), "fp32"), "openvino", count)]
    ]
    content = {"litheseg": "measurements", "schema": 1, "model": model, "host": {"cpu": "a small box"}, "fps": fps}
    path.write_text(json.dumps({**content, "rows": rows}))
    return path


class Flat:
    told = "a formula"

    def known(self, network: Network) -> bool:
        return True

    def miou(self, network: Network) -> float:
        return network.width


def no_costs(networks: Iterable[Network]) -> dict[Network, dict[str, float]]:
    return {network: {"macs": 1e9 * network.width} for network in networks}


@pytest.fixture
def measured(tmp_path: Path) -> Measurements:
    return read_measurements(measurements(tmp_path / "measurements.json", "mine"), "mine")


@pytest.mark.parametrize(("budget", "width", "threads"), [(6.0, 1.0, 4), (4.0, 0.75, 4), (30.0, 1.0, 4)])
def test_the_choice_from_measurements(measured: Measurements, budget: float, width: float, threads: int) -> None:
    chosen = choose_measured(measured, Limits(budget), Flat(), no_costs).chosen
    assert (chosen.candidate.network.width, chosen.candidate.threads) == (width, threads)


def test_choices_and_limits_hold_for_measurements_too(measured: Measurements) -> None:
    one = Choices(threads=(1,))
    assert (
        choose_measured(measured, Limits(18.0), Flat(), no_costs, among=one.allows).chosen.candidate.network.width
        == 0.75
    )
    assert choose_measured(measured, Limits(6.0, reserve=2.0), Flat(), no_costs).chosen.candidate.network.width == 0.75
    assert choose_measured(measured, Limits(6.0, macs=6e8), Flat(), no_costs).chosen.candidate.network.width == 0.5
    with pytest.raises(BudgetError, match=r"nearest is w0\.5-.* openvino 4t"):
        choose_measured(measured, Limits(0.1), Flat(), no_costs)
    with pytest.raises(LithesegError, match="that were measured: w1-32x48-fp32 openvino 1t"):
        choose_measured(measured, Limits(9.0), Flat(), no_costs, among=Choices(runtimes=("torch",)).allows)


def test_too_few_repeats_for_the_percentile(measured: Measurements) -> None:
    with pytest.raises(LithesegError, match=r"has 90 repeats, and the 99th percentile takes 299; run `python measure"):
        choose_measured(measured, Limits(9.0, percentile=99), Flat(), no_costs)


def test_a_fit_for_another_machine_promises_the_network_alone(bundle: Bundle, tmp_path: Path) -> None:
    path = measurements(tmp_path / "measurements.json", model_digest(bundle))
    account = Fit(bundle, Limits(4.0), measured=path, cache=tmp_path).run()
    assert account.promise["scope"] == "network" and account.host == {"cpu": "a small box"}
    assert account.found.chosen.candidate == Candidate(Network(0.5, (32, 48), "fp32"), "openvino", 4)
    assert FakeBench.calls == [], "nothing is timed here"


def test_measurements_at_a_pace_promise_that_pace(bundle: Bundle, tmp_path: Path) -> None:
    path = measurements(tmp_path / "measurements.json", model_digest(bundle), fps=15)
    options: dict[str, Any] = {"measured": path, "cache": tmp_path}
    for fps in (None, 15):
        account = Fit(bundle, Limits(4.0, fps=fps), **options).run()
        assert "network at 15 images a second, p95" in account.sentence()
    with pytest.raises(LithesegError, match=r"at 15 images a second, not at 30; run `python measure\.py --fps 30`"):
        Fit(bundle, Limits(4.0, fps=30), **options)
    with pytest.raises(LithesegError, match="--fps 15 does not go with a budget of 100 ms"):
        Fit(bundle, Limits(100.0), **options)
    path = measurements(tmp_path / "measurements.json", model_digest(bundle))
    with pytest.raises(LithesegError, match="holds timings without a pace, not at 30"):
        Fit(bundle, Limits(4.0, fps=30), **options)


def test_measurements_of_another_model_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = measurements(tmp_path / "measurements.json", "other")
    with pytest.raises(LithesegError, match="of another model"):
        Fit(bundle, Limits(4.0), measured=path, cache=tmp_path)


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
        (["--budget", "20"], ["budget '20' has no unit", "20ms"]),
        (["--budget", "abc ms"], ["'abc ms' is no time"]),
        (["--budget", "20ms", "--percentile", "100"], ["percentile 100", "95"]),
        (["--budget", "20ms", "--runtime", "tflite"], ["'tflite'", "openvino"]),
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
    assert {path.name for path in (tmp_path / "kit").iterdir()} == {"kit.json", "machine.py", "measure.py", "networks"}


def test_two_kits_do_not_go_to_one_folder(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(tmp_path / "kit", beside=True):
        assert main(["measure", str(bundle.path), "--widths", ".5", "--output", str(tmp_path / "kit")]) == 2
    assert "kit is in use by process" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_kit_holds_every_width_at_every_size(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Network] = []
    monkeypatch.setattr(target, "_exported", lambda _, network, folder: written.append(network))
    words = ["measure", str(bundle.path), "--widths", "1,.5", "--sizes", "32x48,16x24"]
    assert main([*words, "--output", str(tmp_path / "kit")]) == 0
    assert "4 networks and measure.py" in capsys.readouterr().out
    assert {(n.width, n.size) for n in written} == {(w, s) for w in (1.0, 0.5) for s in ((32, 48), (16, 24))}


def test_the_helps_teach(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "measure", "profile"):
        with pytest.raises(SystemExit):
            build_parser().parse_args([command, "--help"])
        assert "examples:" in capsys.readouterr().out
