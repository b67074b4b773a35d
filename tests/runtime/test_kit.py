from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_budget import untrained

from litheseg import machine
from litheseg.budget.candidates import Candidate, Variant
from litheseg.budget.kit import SCRIPT, kit_networks, read_measurements, write_kit
from litheseg.errors import LithesegError
from litheseg.files import file_digest
from litheseg.machine import host_facts, interleave, settle
from litheseg.models.bundle import Bundle, model_digest
from litheseg.runtime import kit as script
from litheseg.runtime.kit import summary

RUNTIME = "onnxruntime"
NOTHING = {"litheseg": "measurements", "schema": 1, "model": "mine", "host": {}, "fps": None, "rows": []}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def kit(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(RUNTIME)
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("target") / "kit"
    assert write_kit(bundle, folder, widths=(1.0, 0.8), sizes=[(32, 48)]) == 2  # one that was never calibrated
    return folder


def run(kit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As on a target: isolated, and with neither PyTorch nor litheseg to be had."""
    code = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("litheseg", "torch"):
            raise ImportError(name + " is not on the target")
sys.meta_path.insert(0, Absent())
sys.argv[0] = {str(kit / SCRIPT)!r}
sys.path.insert(0, {str(kit)!r})  # as `python measure.py` does
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert not {{"litheseg", "torch"}} & set(sys.modules)
"""
    return subprocess.run([sys.executable, "-I", "-c", code, *options], capture_output=True, text=True, timeout=120)


def test_the_last_turn_may_be_shorter() -> None:
    assert len(interleave({"a": lambda: None}, 7)["a"]) == 7


def test_many_passes_take_few_turns() -> None:
    calls: list[str] = []
    times = interleave({name: (lambda name=name: calls.append(name)) for name in "ab"}, 400)
    assert all(len(values) == 400 for values in times.values())
    assert sum(one != other for one, other in itertools.pairwise(calls)) <= 0.05 * len(calls)


class Simulated:
    """A clock, and threads of this process that spin until some time; in place of the module `time`."""

    def __init__(self) -> None:
        self.now = self.used = self.spin_until = 0.0

    def sleep(self, seconds: float) -> None:
        self.used += max(0.0, min(seconds, self.spin_until - self.now))
        self.now += seconds

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used

    def perf_counter_ns(self) -> int:
        return int(1e9 * self.now)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    clock = Simulated()
    monkeypatch.setattr(machine, "time", clock)
    monkeypatch.setattr(machine, "_AGAIN", 0.02)
    return clock


def test_turns_rotate_and_begin_untimed(simulated: Simulated) -> None:
    """Found in a p95 of 2.5 ms that was 1.9 alone: the first passes of a turn are slower."""
    calls: list[str] = []
    took = {"a": 0.009, "b": 0.02, "c": 0.5}

    def call(name: str) -> None:
        calls.append(name)
        simulated.now += took[name]

    result = interleave({n: partial(call, n) for n in took}, 5, warmup=1, timed=lambda c: (c(), len(calls))[1])
    turns = [list(group) for _, group in itertools.groupby(calls[3:])]
    assert calls[:3] == list(took)
    assert [turn[0] for turn in turns] == ["a", "b", "c", "b", "c", "a"], "rotating order"
    timed, untimed = [3, 3, 3, 2, 2, 2], [3, 1, 1, 1, 1, 3]  # 20 ms, once at least
    assert [len(turn) for turn in turns] == [sum(pair) for pair in zip(timed, untimed, strict=True)]
    assert {name: len(times) for name, times in result.items()} == {"a": 5, "b": 5, "c": 5}
    assert result["a"] == [7, 8, 9, 27, 28], "the untimed ones are left out"


def test_a_turn_waits_until_the_threads_of_the_one_before_stop_spinning(simulated: Simulated) -> None:
    """Found in promises of 11 ms that took 4 alone: ONNX Runtime's threads spin on after a pass."""
    disturbed: list[bool] = []

    def spinning() -> None:
        simulated.now += 0.03
        simulated.spin_until = simulated.now + 0.06

    def after() -> None:
        disturbed.append(simulated.now < simulated.spin_until)
        simulated.now += 0.02

    interleave({"spinning": spinning, "after": after}, 6)
    assert disturbed[:3] == [True] * 3, "the warm-up waits for nobody"
    assert disturbed[3:] == [False] * 8
    assert simulated.now < 11 * 0.05 + 4 * 0.08, "and no longer than needed"


def test_passes_of_a_turn_come_at_a_pace(simulated: Simulated) -> None:
    began: list[float] = []
    took = itertools.cycle([0.01, 0.02, 0.09])

    def labelling() -> None:
        began.append(simulated.now)
        simulated.now += next(took)

    times = interleave({"camera": labelling}, 6, warmup=0, fps=20)["camera"]
    gaps = [second - first for first, second in itertools.pairwise(began[:4])]
    assert gaps == pytest.approx([0.05, 0.05, 0.09]), "who is late begins at once"
    assert times == pytest.approx([20, 90, 10, 90, 10, 20]), "waiting is not in them"


def test_waiting_for_idle_threads_ends(simulated: Simulated) -> None:
    simulated.spin_until = 60.0
    assert not settle(limit=0.1) and simulated.now == pytest.approx(0.1, abs=0.01)
    simulated.sleep(60)
    assert settle()


def test_a_summary_is_numpys() -> None:
    times = np.random.default_rng(0).lognormal(size=200)
    told = summary(list(times))
    assert told["p95"] == pytest.approx(np.percentile(times, 95), abs=1e-4)
    assert told["mean"] == pytest.approx(times.mean(), abs=1e-4) and told["repeats"] == 200


def test_facts_name_the_machine() -> None:
    facts = host_facts()
    assert facts["cpu"] and facts["cores"] >= 1 and facts["versions"]["numpy"] == np.__version__
    assert json.loads(json.dumps(facts)) == facts


def test_the_script_is_this_module_and_runs_without_litheseg(kit: Path, bundle: Bundle) -> None:
    for module, name in ((script, SCRIPT), (machine, "machine.py")):
        assert (kit / name).read_text() == Path(str(module.__file__)).read_text()
    done = run(kit, "--threads", "1", "--repeats", "4", "--runtime", RUNTIME)
    assert done.returncode == 0, done.stderr
    assert "w0.8-32x48-fp32" in done.stdout
    content = json.loads((kit / "measurements.json").read_text())
    assert content["scope"] == "network" and content["host"]["cpu"] and RUNTIME in content["host"]["versions"]
    found = read_measurements(kit / "measurements.json", model_digest(bundle))
    wide, between = (Candidate(Variant(width, (32, 48), "fp32"), RUNTIME, 1) for width in (1.0, 0.8))
    assert set(found.samples) == {wide, between} and all(len(times) == 4 for times in found.samples.values())
    for row in content["rows"]:
        assert row["p50"] == pytest.approx(np.percentile(row["ms"], 50), abs=1e-3) and row["agreement"] > 0.999


def test_one_network_may_be_measured_again(kit: Path, tmp_path: Path) -> None:
    output = tmp_path / "again.json"
    again = ("--only", "w1-32x48-fp32", "--threads", "1,2", "--repeats", "2", "--fps", "50")
    done = run(kit, *again, "--output", str(output))
    assert done.returncode == 0 and "the network alone, 50 images a second" in done.stdout, done.stderr
    rows, pace = (json.loads(output.read_text())[name] for name in ("rows", "fps"))
    assert pace == 50
    assert {(row["id"], row["threads"]) for row in rows if row["runtime"] == RUNTIME} == {
        ("w1-32x48-fp32", 1),
        ("w1-32x48-fp32", 2),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "w9"], "the kit has w1-32x48-fp32, w0.8-32x48-fp32"),
        (["--kit", "nowhere"], "copy the whole folder"),
        (["--repeats", "0"], "'0' is no whole number above 0"),
        (["--threads", "two"], "'two' is no whole number above 0"),
        (["--fps", "0"], "'0' is no rate"),
        (["--fps", "film"], "'film' is no rate; write images a second, such as 15"),
    ],
)
def test_wrong_usage_of_the_script(
    kit: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--kit", str(kit), *options] if "--kit" not in options else options
    try:
        status = script.main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2 and message in capsys.readouterr().err


def test_a_device_that_labels_unlike_pytorch_is_not_timed(
    kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kit, tmp_path / "kit")
    [check] = (tmp_path / "kit" / "checks").iterdir()
    with np.load(check) as file:
        content = dict(file)
    content["w1"] = (content["w1"] + 1) % 3
    np.savez(check, **content)
    facts = json.loads((tmp_path / "kit" / "kit.json").read_text())
    facts["checks"] = {path: file_digest(check) for path in facts["checks"]}
    (tmp_path / "kit" / "kit.json").write_text(json.dumps(facts))
    only = ("--kit", str(tmp_path / "kit"), "--only", "w1-32x48-fp32", "--runtime", RUNTIME, "--threads", "1")
    assert script.main(only) == 2
    assert "unlike PyTorch" in capsys.readouterr().err


def test_a_changed_network_is_refused(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(kit, tmp_path / "kit")
    [network, *_] = (tmp_path / "kit" / "networks").rglob("*.onnx")
    network.write_bytes(network.read_bytes()[:-1])
    assert script.main(["--kit", str(tmp_path / "kit")]) == 2
    assert "checksum differs" in capsys.readouterr().err
    network.unlink()
    assert script.main(["--kit", str(tmp_path / "kit")]) == 2
    assert "is missing" in capsys.readouterr().err


def test_kits_have_widths_between_the_trained_ones(bundle: Bundle) -> None:
    assert [n.width for n in kit_networks(bundle, None, [(32, 48)])] == [1.0, 0.8333, 0.6667, 0.5]
    assert len(kit_networks(bundle, (1.0, 0.7), [(32, 48), (16, 24)])) == 4


def test_a_folder_that_holds_something_is_kept(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LithesegError, match="is there already"):
        write_kit(bundle, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "holds no measurements"),
        ({"litheseg": "kit", "schema": 1}, "it is 'kit'"),
        ({"litheseg": "measurements", "schema": 9}, "schema 9"),
        (
            {"litheseg": "measurements", "schema": 1, "model": "x", "host": {}, "rows": [{"width": 1}]},
            "no measurements",
        ),
        ({**NOTHING, "fps": "film"}, "no measurements"),
        ({**NOTHING, "model": "other"}, "another model"),
        (NOTHING, "no timings"),
    ],
)
def test_measurements_that_cannot_be_used(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "measurements.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(LithesegError, match=message):
        read_measurements(path, "mine")
    with pytest.raises(LithesegError, match=r"nothing\.json holds no measurements"):
        read_measurements(tmp_path / "nothing.json", "mine")
